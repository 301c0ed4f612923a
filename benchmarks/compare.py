"""Saves and loads of ours beside the raw drivers and what people use instead, on the same servers, in turns.

Each subject is a process of its own, the peers with environments of their own. In a round every subject has one turn,
and the order changes from round to round, so that what disturbs the machine disturbs all of them alike. A ratio is of
two turns of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import IO, TYPE_CHECKING, Any

from documents import checkpoint
from rich.console import Console
from rich.progress import Progress

from dagonizer import Checkpoint
from dagonizer_test_servers.etcd import Etcd
from dagonizer_test_servers.shared import shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

SUBJECTS = Path(__file__).parent / "subjects"
SIZES = {"1 KB": 1 << 10, "64 KB": 1 << 16, "1 MB": 1 << 20, "16 MB": 1 << 24}
IN_FLIGHT = (1, 16, 64)
OPERATIONS = ("save", "load")
# More would measure the machine's memory. With more etcd takes longer for a request than the seven seconds it allows.
_MOST_AT_ONCE, _MOST_IN_ETCD = 400 << 20, 64 << 20
_SECONDS = 0.25
# Some subjects work on for a while after a turn.
_PAUSE = 0.1
_ROUNDS = {"1 KB": 5, "64 KB": 5, "1 MB": 3, "16 MB": 2}
# For ours: a turn with large documents can take long, and is not to fail.
_TIMEOUT = 600
_LONG = ("--command-timeout=300s",)


@dataclass(frozen=True)
class Field:
    """Who is compared on one server: for each subject its script and what it is told of the server."""

    name: str
    subjects: Mapping[str, tuple[str, str]]
    # What the server needs after a cell of saves.
    tidy: Callable[[], None] = lambda: None
    most_at_once: int = _MOST_AT_ONCE


@dataclass(frozen=True)
class Cell:
    """What every subject of a field does in its turns."""

    size: str
    in_flight: int
    operation: str


class EndedError(Exception):
    """A subject has ended before its time; it has said why on its standard error."""


class Process:
    """A running subject."""

    def __init__(self, script: str, url: str) -> None:
        path = SUBJECTS / f"{script}.py"
        own_environment = path.read_text(encoding="utf-8").startswith("# /// script")
        uv = ("uv", "run", "--quiet", "--no-project", "--python", sys.executable, "--script")
        program = (*(uv if own_environment else (sys.executable,)), str(path))
        self._process = subprocess.Popen(  # noqa: S603 - the scripts beside this one
            (*program, url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def turn(self, **turn: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Have it do one turn, and return what it measured."""
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(turn) + "\n")
        stdin.flush()
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EndedError(f"{self._process.args!r} has ended with {self._process.wait()}")
        return json.loads(line)


def fields(names: list[str], directory: Path) -> Iterator[Field]:
    """Start the servers of the fields with these names, and say who is compared there."""
    for name in names:
        yield {"file": _file, "postgres": _postgres, "redis": _redis, "s3": _s3, "etcd": _etcd}[name](directory)


def _file(directory: Path) -> Field:
    return Field(
        "file",
        {
            "dagonizer": ("dagonizer_store", f"file://{directory}/dagonizer?timeout={_TIMEOUT}"),
            "dagonizer, zstd": ("dagonizer_store", f"file://{directory}/zstd?timeout={_TIMEOUT}&compression=zstd"),
            "persist, recall": ("dagonizer_checkpoint", f"file://{directory}/checkpoint?timeout={_TIMEOUT}"),
            "raw": ("raw_file", f"file://{directory}"),
            "aiofiles, five hops": ("aiofiles_file", f"file://{directory}"),
            "py-key-value filetree": ("peer_key_value_filetree", f"file://{directory}/filetree"),
            "langgraph sqlite": ("peer_langgraph_sqlite", f"file://{directory}/sqlite"),
        },
    )


def _postgres(_: Path) -> Field:
    url = shared("postgres").url
    # LangGraph makes a table of the name that ours has by default.
    ours = f"{url}?table=dagonizer&timeout={_TIMEOUT}"
    return Field(
        "postgres",
        {
            "dagonizer": ("dagonizer_store", ours),
            "persist, recall": ("dagonizer_checkpoint", ours),
            "raw": ("raw_postgres", url),
            "py-key-value": ("peer_key_value_postgres", url),
            "langgraph": ("peer_langgraph_postgres", url),
        },
    )


def _redis(_: Path) -> Field:
    url = shared("redis").url
    ours = f"{url}?timeout={_TIMEOUT}"
    return Field(
        "redis",
        {
            "dagonizer": ("dagonizer_store", ours),
            "dagonizer, zstd": ("dagonizer_store", f"{ours}&prefix=zstd&compression=zstd"),
            "persist, recall": ("dagonizer_checkpoint", ours),
            "raw": ("raw_redis", url),
            "py-key-value": ("peer_key_value_redis", url),
        },
    )


def _s3(_: Path) -> Field:
    url = shared("s3").url
    ours = f"{url}&timeout={_TIMEOUT}"
    return Field(
        "s3",
        {
            "dagonizer": ("dagonizer_store", ours),
            "dagonizer, zstd": ("dagonizer_store", f"{ours.replace('/?', '/zstd?')}&compression=zstd"),
            "persist, recall": ("dagonizer_checkpoint", ours),
            "raw": ("raw_s3", url),
            "py-key-value": ("peer_key_value_s3", url),
            "langgraph": ("peer_langgraph_objectstorage", url),
            "obstore": ("peer_obstore_s3", url),
        },
    )


def _etcd(_: Path) -> Field:
    server = shared("etcd")
    assert isinstance(server, Etcd), "an etcd of our own, which may be compacted"
    url = server.url
    host = url.removeprefix("etcd://")

    def compact() -> None:
        # It keeps whatever was overwritten, in memory too, and 16 MB many times are soon more than it may have.
        (status,) = json.loads(server.ctl("endpoint", "status", "--write-out=json"))
        server.ctl("compact", "--physical", str(status["Status"]["header"]["revision"]), *_LONG)
        server.ctl("defrag", *_LONG)

    return Field(
        "etcd",
        {
            "dagonizer": ("dagonizer_store", f"{url}?timeout={_TIMEOUT}"),
            "dagonizer, zstd": ("dagonizer_store", f"{url}/zstd?timeout={_TIMEOUT}&compression=zstd"),
            "persist, recall": ("dagonizer_checkpoint", f"{url}?timeout={_TIMEOUT}"),
            "raw": ("raw_etcd_grpc", host),
            "dagonizer, gateway": ("dagonizer_store", f"etcd+http://{host}?timeout={_TIMEOUT}"),
            "raw, gateway": ("raw_etcd_gateway", host),
        },
        tidy=compact,
        most_at_once=_MOST_IN_ETCD,
    )


def cells(sizes: list[str], most_at_once: int) -> list[Cell]:
    """Return what is done, each save before the load of the same keys, with so many bytes in flight at most."""
    return [
        Cell(size, in_flight, operation)
        for size in sizes
        for in_flight in IN_FLIGHT
        if SIZES[size] * in_flight <= most_at_once
        for operation in OPERATIONS
    ]


def measured(field: Field, cell: Cell, document: Path, processes: dict[str, Process]) -> dict[str, Any]:
    """Return the figures of a cell, by subject. Peers that fail are taken out of ``processes``, and have none."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
    turn = {
        "operation": cell.operation,
        "document": str(document),
        "key": f"bench-{cell.size.replace(' ', '')}-{cell.in_flight}",
        "in_flight": cell.in_flight,
    }
    for number in range(_ROUNDS[cell.size] + 1):
        names = list(processes)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(_PAUSE)
            try:
                # The first is to warm up.
                turns[name].append(processes[name].turn(**turn, seconds=_SECONDS if number else 0.0))
            except (EndedError, BrokenPipeError) as exc:
                if name == "dagonizer":
                    raise
                print(f"{name}: {exc}", file=sys.stderr)
                del processes[name]
    return {
        "field": field.name,
        "size": cell.size,
        "in_flight": cell.in_flight,
        "operation": cell.operation,
        "subjects": {name: _summary(turns[name][1:], turns["dagonizer"][1:]) for name in processes},
    }


def _summary(turns: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = sorted(latency for turn in turns for latency in turn["latencies"])
    rates = [len(turn["latencies"]) / turn["seconds"] for turn in turns]
    ratios = sorted(len(our["latencies"]) / our["seconds"] / rate for our, rate in zip(ours, rates, strict=True))
    return {
        "operations": len(latencies),
        "rate": median(rates),
        "p50": median(latencies),
        "p99": quantiles(latencies, n=100, method="inclusive")[98] if len(latencies) > 1 else latencies[0],
        "cpu": sum(turn["cpu"] for turn in turns) / len(latencies),
        "memory": max(turn["memory"] for turn in turns),
        # How many times as many operations ours did in the same round.
        "ours": {"median": median(ratios), "least": ratios[0], "most": ratios[-1]},
    }


def main() -> None:
    """Compare, print, and write everything into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", default="file,postgres,redis,s3,etcd", help="which servers, separated by commas")
    parser.add_argument("--sizes", default=",".join(SIZES), help="which sizes, separated by commas")
    parser.add_argument("--subjects", default="", help="which subjects besides our store; all, if not said")
    parser.add_argument("--report", type=Path, default=Path("bench-report/compare.json"), help="where to write")
    options = parser.parse_args()
    sizes, wanted = options.sizes.split(","), [name for name in options.subjects.split(",") if name]
    console, figures = Console(soft_wrap=True), []
    with tempfile.TemporaryDirectory(prefix="dagonizer-bench-") as name:
        directory = Path(name)
        documents = {size: directory / size for size in sizes}
        for size, path in documents.items():
            path.write_text(Checkpoint.to_json(checkpoint(SIZES[size])), encoding="utf-8")
        for field in fields(options.fields.split(","), directory):
            with ExitStack() as stack, Progress(console=console, transient=True) as progress:
                processes = {
                    subject: stack.enter_context(Process(*told))
                    for subject, told in field.subjects.items()
                    if not wanted or subject in {*wanted, "dagonizer"}
                }
                for cell in progress.track(cells(sizes, field.most_at_once), description=field.name):
                    figures.append(measured(field, cell, documents[cell.size], processes))
                    if cell.operation == "save":
                        field.tidy()
                    console.print(_line(figures[-1]))
            report = json.dumps(
                {"cores": os.cpu_count(), "python": sys.version.split()[0], "figures": figures}, indent=1
            )
            options.report.parent.mkdir(parents=True, exist_ok=True)
            options.report.write_text(report, encoding="utf-8")


def _line(figure: dict[str, Any]) -> str:
    cell = f"{figure['field']:9} {figure['size']:>5} x {figure['in_flight']:2} {figure['operation']}"
    ours = figure["subjects"]["dagonizer"]
    others = (
        f"{name} {other['ours']['median']:.2f} ({other['ours']['least']:.2f}-{other['ours']['most']:.2f})"
        for name, other in figure["subjects"].items()
        if name != "dagonizer"
    )
    return f"{cell} {ours['rate']:8,.0f}/s; of theirs: {', '.join(others)}"


if __name__ == "__main__":
    main()
