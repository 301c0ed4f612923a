"""The commands and their options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from dagonizer.cli import checkpoints, doctor, entries, measure, transfer
from dagonizer.cli.complete import complete_key, complete_other_key, complete_url
from dagonizer.cli.demo import run_demo
from dagonizer.cli.discretion import DiscreetGroup
from dagonizer.cli.outcome import INTERRUPTED, UsageError
from dagonizer.cli.stores import show_stores

P = ParamSpec("P")

_HELP = (
    "Checkpoint persistence for DAGs, pipelines and agents.\n\n"
    "The commands for entries work on the store that --store or DAGONIZER_STORE names by URL; the variable keeps a "
    "password out of the list of processes."
)

_EXIT_CODES = (
    "Exit codes: 0 yes or done; 1 the answer is no: an absent key, documents that differ or are invalid, entries that "
    "were kept, findings; 2 wrong use; 3 the store failed, or holds what it should not, or the output cannot be "
    "written; 130 interrupted."
)

# The pretty exceptions of typer print local variables, and with them store URLs and their passwords.
app = typer.Typer(
    name="dagonizer",
    cls=DiscreetGroup,
    help=_HELP,
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_STORE_HELP = "The store."
_Store = Annotated[
    str,
    typer.Option("--store", envvar="DAGONIZER_STORE", metavar="URL", help=_STORE_HELP, autocompletion=complete_url),
]
_OptionalStore = Annotated[
    str | None,
    typer.Option("--store", envvar="DAGONIZER_STORE", metavar="URL", help=_STORE_HELP, autocompletion=complete_url),
]
_AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
_Examined = Annotated[
    str, typer.Argument(envvar="DAGONIZER_STORE", metavar="URL", help=_STORE_HELP, autocompletion=complete_url)
]
_Key = Annotated[str, typer.Argument(metavar="KEY", show_default=False, autocompletion=complete_key)]
_Source = Annotated[
    str,
    typer.Argument(
        envvar="DAGONIZER_SOURCE", metavar="SRC", help="The URL of the store to read.", autocompletion=complete_url
    ),
]
_Target = Annotated[
    str,
    typer.Argument(
        envvar="DAGONIZER_DESTINATION", metavar="DST", help="The URL of the other store.", autocompletion=complete_url
    ),
]
_Prefix = Annotated[str, typer.Option("--prefix", metavar="P", help="Only keys that start with it, literally.")]
_Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="How many entries at a time.")]


def _finish(command: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> NoReturn:
    """End with the exit code that ``command`` returns."""
    try:
        code = command(*args, **kwargs)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        code = INTERRUPTED
    raise typer.Exit(code)


def _show_version(context: typer.Context, asked: bool) -> None:  # noqa: FBT001 - typer calls it
    # A shell that completes what stands behind it only parses.
    if asked and not context.resilient_parsing:
        print(f"dagonizer {version('dagonizer')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


@app.command()
def stores(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for machines.")] = False,
) -> None:
    """Show the stores that are installed, and the parameters that their URLs take."""
    _finish(show_stores, as_json=as_json)


@app.command()
def ls(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", show_default=False, help="Only keys that start with it, literally.")
    ] = "",
    *,
    store: _Store,
    long: Annotated[bool, typer.Option("--long", "-l", help="With dag, cursor, executed nodes and bytes.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="Keys as they are, each ended by NUL.")] = False,
    as_json: _AsJson = False,
) -> None:
    """List the keys of a store, in the order in which it tells them.

    A key that is not plainly printable is shown as a JSON string; --null and --json are exact.
    """
    if null and (long or as_json):
        raise UsageError("--null goes with neither --long nor --json")
    _finish(entries.list_entries, store, prefix, long=long, null=null, as_json=as_json)


@app.command()
def show(
    key: _Key,
    *,
    store: _Store,
    everything: Annotated[bool, typer.Option("--all", help="All items and texts of the state, however many.")] = False,
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="A Mermaid flowchart: what was executed, skipped, and is next.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Show a checkpoint: its DAG, cursor, histories, and its state as a tree."""
    if mermaid and as_json:
        raise UsageError("--mermaid and --json exclude each other")
    _finish(checkpoints.show_checkpoint, store, key, everything=everything, mermaid=mermaid, as_json=as_json)


@app.command()
def get(key: _Key, *, store: _Store, as_json: _AsJson = False) -> None:
    """Write the text under a key to stdout: its UTF-8 bytes, and nothing added."""
    _finish(entries.get_entry, store, key, as_json=as_json)


@app.command()
def put(
    key: _Key,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="What to save; - is stdin.")] = entries.STDIN,
    *,
    store: _Store,
    validate: Annotated[bool, typer.Option("--validate", help="Refuse what is not a checkpoint.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Save a file or stdin under a key, replacing what is there; exactly as it is, a final newline too."""
    _finish(entries.put_entry, store, key, file, validate=validate, as_json=as_json)


@app.command()
def rm(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", show_default=False, autocompletion=complete_key)
    ] = None,
    *,
    store: _Store,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", metavar="P", help="Every entry whose key starts with it, literally; asks first."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Delete entries, by key or all of a prefix."""
    if bool(keys) == (prefix is not None):
        raise UsageError("name either keys or --prefix")
    if prefix is not None:
        _finish(entries.remove_prefix, store, prefix, yes=yes, as_json=as_json)
    _finish(entries.remove_entries, store, keys or (), as_json=as_json)


@app.command()
def validate(
    names: Annotated[
        list[str], typer.Argument(metavar="FILE|KEY...", help="A file, - for stdin, or else a key of the store.")
    ],
    *,
    store: _OptionalStore = None,
    as_json: _AsJson = False,
) -> None:
    """Check whether documents are checkpoints, and tell everything that is wrong with them."""
    _finish(checkpoints.validate_documents, store, names, as_json=as_json)


@app.command()
def diff(
    key: _Key,
    other: Annotated[str, typer.Argument(metavar="KEY", show_default=False, autocompletion=complete_other_key)],
    *,
    store: _Store,
    with_store: Annotated[
        str | None,
        typer.Option("--with-store", metavar="URL", help="The store of the second key.", autocompletion=complete_url),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Compare two entries as JSON: each path at which they differ, with both values."""
    _finish(checkpoints.diff_entries, store, key, store if with_store is None else with_store, other, as_json=as_json)


@app.command()
def watch(
    key: _Key,
    *,
    store: _Store,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.01, help="Between two looks.")] = 1.0,
    count: Annotated[int | None, typer.Option(metavar="N", min=0, help="End after so many changes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")] = False,
) -> None:
    """Follow an entry: a line for what is there now, and one for each change that is seen."""
    _finish(checkpoints.watch_entry, store, key, interval=interval, count=count, as_json=as_json)


@app.command()
def copy(
    source: _Source,
    target: _Target,
    *,
    prefix: _Prefix = "",
    jobs: _Jobs = 16,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Write nothing, tell what would be.")] = False,
    update: Annotated[
        bool, typer.Option("--update", "-u", help="Replace checkpoints of the same DAG that have executed fewer nodes.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace whatever the destination has otherwise.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Copy entries to another store, and read each back.

    What the destination has already is skipped: to go on after an interruption, say the same again. What it has
    otherwise is kept, and the exit code is 1. --update is for runs that have gone on since an earlier copy: it replaces
    a checkpoint of the same DAG if the other has executed the same nodes and more. It cannot tell one run from another.
    """
    _finish(
        transfer.copy_entries,
        source,
        target,
        prefix,
        jobs=jobs,
        dry_run=dry_run,
        replaced="all" if overwrite else "earlier" if update else "none",
        as_json=as_json,
    )


@app.command()
def verify(
    source: _Source,
    target: _Target,
    *,
    prefix: _Prefix = "",
    jobs: _Jobs = 16,
    one_way: Annotated[bool, typer.Option("--one-way", help="Do not look for keys that only DST has.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Compare the entries of two stores: which are missing in DST, different, or extra."""
    _finish(transfer.verify_entries, source, target, prefix, jobs=jobs, one_way=one_way, as_json=as_json)


@app.command()
def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="The store.", autocompletion=complete_url)],
    *,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.0, help="For each cell of the table.")] = 1.0,
    as_json: _AsJson = False,
) -> None:
    """Measure saves and loads of 1 KB, 64 KB and 1 MB, 1 and 16 at a time.

    Its keys start with dagonizer-bench- and are removed at the end.
    """
    _finish(measure.bench_store, url, seconds=seconds, as_json=as_json)


@app.command(name="doctor")
def examine(url: _Examined, *, as_json: _AsJson = False) -> None:
    """Examine a store and its backend: what can hurt later, how to mend it, and what an acknowledged save outlives.

    It saves and deletes an entry of its own; what a first save makes, such as a table or a directory, stays.

    The exit code is 1 if there are warnings or worse, and 3 if the store cannot be reached.
    """
    _finish(doctor.examine, url, as_json=as_json)


@app.command()
def demo(
    *,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A store that two processes share. [default: temporary files]"),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--input", metavar="DIR", help="A tree of Python modules. [default: the standard library]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, progress on stderr.")] = False,
) -> None:
    """Kill a run in the middle, resume it in another process, and compare it with one that was never interrupted."""
    _finish(run_demo, store, directory, as_json=as_json)
