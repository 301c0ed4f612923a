"""Make the tables and plots of docs/performance.md out of what the other scripts have measured.

The tables replace what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` in the page.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from compare import SIZES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCS = Path(__file__).parent.parent / "docs"
_OURS, _COMPRESSED, _RAW, _CODEC, _GATEWAY, _FIVE_HOPS = (
    "dagonizer",
    "dagonizer, zstd",
    "raw",
    "persist, recall",
    "dagonizer, gateway",
    "aiofiles, five hops",
)
_CROWD = 16
# What is no library that people use.
_NO_PEERS = {_OURS, _COMPRESSED, _RAW, _CODEC, _GATEWAY, _FIVE_HOPS, "raw, gateway"}
_COLORS = ("#3b6ea8", "#c2703d", "#5b9a54", "#8a63a8", "#b04a5a")

Figure = dict[str, Any]


def compared(figures: Sequence[Figure], field: str) -> Iterator[str]:
    """Yield the table of a field, with how many times as much ours does as each other subject."""
    mine = [figure for figure in figures if figure["field"] == field]
    others = [name for name in mine[0]["subjects"] if name != _OURS]
    columns = ("ops/s", "p50 ms", "p99 ms", "CPU ms", "memory", *(f"to {name}" for name in others))
    yield f"| {field} | {' | '.join(columns)} |"
    yield "|---|" + "---:|" * (5 + len(others))
    for figure in mine:
        ours = figure["subjects"][_OURS]
        # What a process takes for small documents is not theirs.
        memory = (
            f"{ours['memory'] / SIZES[figure['size']]:.1f}"
            if figure["in_flight"] == 1 and SIZES[figure["size"]] >= 1 << 20
            else ""
        )
        ratios = (_ratio(figure["subjects"][name]["ours"]) for name in others)
        yield (
            f"| {figure['operation']} {figure['size']}, {figure['in_flight']} in flight | {ours['rate']:,.0f} | "
            f"{ours['p50'] * 1e3:.2f} | {ours['p99'] * 1e3:.2f} | {ours['cpu'] * 1e3:.2f} | {memory} | "
            f"{' | '.join(ratios)} |"
        )


def goals(figures: Sequence[Figure], growth: Figure, times: Figure) -> Iterator[str]:
    """Yield the table of what was aimed at and what was measured."""
    yield "| what | goal | measured |"
    yield "|---|---:|---|"
    for field in dict.fromkeys(figure["field"] for figure in figures):
        mine = [figure for figure in figures if figure["field"] == field]
        yield f"| {field}, to raw | 0.95 | {_reached(mine, _RAW, 0.95)} |"
        for peer in (name for name in mine[0]["subjects"] if name not in _NO_PEERS):
            yield f"| {field}, to {peer} | faster | {_reached(mine, peer, 1.0)} |"
        if field == "file":
            yield f"| file, to {_FIVE_HOPS} | 2 | {_reached(mine, _FIVE_HOPS, 2.0)} |"
        if field == "etcd":
            crowd = [figure for figure in mine if figure["in_flight"] == _CROWD]
            yield f"| etcd over gRPC, to the gateway, {_CROWD} in flight | 5 | {_reached(crowd, _GATEWAY, 5.0)} |"
        if _COMPRESSED in mine[0]["subjects"]:
            large = [figure for figure in mine if SIZES[figure["size"]] >= 1 << 20]
            yield f"| {field}, compressed, from 1 MB on, to raw | 0.95 | {_reached(large, _RAW, 0.95, _COMPRESSED)} |"
        both = [figure["subjects"] for figure in mine if figure["size"] == "1 MB" and figure["in_flight"] == 1]
        raw, codec = (sum(1 / subjects[name]["rate"] for subjects in both) for name in (_RAW, _CODEC))
        yield f"| {field}, persist and recall of 1 MB, to raw save and load | 0.80 | {raw / codec:.2f} |"
    restored = times["restore is faster than json.loads + jsonschema by"]
    yield f"| restore, to json.loads and jsonschema | 6 | {restored:.1f} |"
    yield f"| to_json, to json.dumps | 1.3 | {1 / times['to_json takes, of json.dumps']:.1f} |"
    for figure in growth["keys"]:
        costs = figure["cost at the most keys, of that at the fewest"].items()
        goal = 1.5 if figure["store"] == "file" else 1.2
        said = ", ".join(f"{name} {cost:.2f}" for name, cost in costs)
        yield f"| {figure['store']}, cost at 200,000 keys, that at 10 being 1 | at most {goal} | {said} |"


def _reached(figures: Sequence[Figure], other: str, goal: float, mine: str = _OURS) -> str:
    ratios = {
        f"{figure['operation']} {figure['size']}, {figure['in_flight']} in flight": (
            subjects[other]["ours"]["median"] / subjects[mine]["ours"]["median"]
        )
        for figure in figures
        if other in (subjects := figure["subjects"])
    }
    least = min(ratios, key=lambda cell: ratios[cell])
    reached = sum(ratio >= goal for ratio in ratios.values())
    return f"in {reached} of {len(ratios)}; median {median(ratios.values()):.2f}, least {ratios[least]:.2f} ({least})"


def _ratio(of: dict[str, float]) -> str:
    return f"{of['median']:.2f} ({of['least']:.2f}-{of['most']:.2f})"


def grown(keys: Sequence[Figure]) -> Iterator[str]:
    """Yield the table of operations among many keys."""
    counts = list(keys[0]["rates"]["save"])
    yield f"| store | operation | {' | '.join(f'{int(count):,} keys' for count in counts)} | cost at the most |"
    yield "|---|---|" + "---:|" * (len(counts) + 1)
    for figure in keys:
        for operation, rates in figure["rates"].items():
            cells = [f"{rate:,.0f}/s" for rate in rates.values()]
            cells.append(f"{figure['cost at the most keys, of that at the fewest'][operation]:.2f}")
            yield f"| {figure['store']} | {operation} | {' | '.join(cells)} |"
        seconds = figure["seconds to list"].values()
        yield f"| {figure['store']} | list all | {' | '.join(f'{s:.3f} s' for s in seconds)} | |"


def ran(runs: dict[str, Sequence[Figure]]) -> Iterator[str]:
    """Yield the table of a long run, by its tenths."""
    yield "| tenth of the run | document | " + " | ".join(f"a node, {name}" for name in runs) + " |"
    yield "|---:|---:|" + "---:|" * len(runs)
    for number, parts in enumerate(zip(*runs.values(), strict=True), 1):
        costs = " | ".join(f"{part['seconds'] * 1e6:,.0f} µs" for part in parts)
        yield f"| {number} | {parts[0]['bytes'] / 1000:,.1f} kB | {costs} |"


def started(first: dict[str, float]) -> Iterator[str]:
    """Yield the table of cold starts."""
    yield "| in a new process | seconds more than the interpreter's start |"
    yield "|---|---:|"
    for name, seconds in first.items():
        yield f"| {name} | {seconds:.3f} |"


def plot_ratios(figures: Sequence[Figure], kind: str, path: Path) -> None:
    """Draw how ours stands to the raw drivers (``kind`` is "raw") or to the peers, a panel for each field with any."""
    fields = list(dict.fromkeys(figure["field"] for figure in figures if kind == _RAW or figure["field"] != "etcd"))
    drawn, axes = plt.subplots(1, len(fields), figsize=(3.1 * len(fields), 7), sharey=True)
    cells = [f"{f['operation']} {f['size']} x {f['in_flight']}" for f in figures if f["field"] == fields[0]]
    for axis, field in zip(axes, fields, strict=True):
        mine = [figure for figure in figures if figure["field"] == field]
        others = [name for name in mine[0]["subjects"] if name == _RAW or name not in _NO_PEERS]
        others = [name for name in others if (name == _RAW) == (kind == _RAW)]
        for color, other in zip(_COLORS, others, strict=False):
            ratios = [figure["subjects"][other]["ours"] for figure in mine]
            medians = [ratio["median"] for ratio in ratios]
            spread = (
                [ratio["median"] - ratio["least"] for ratio in ratios],
                [ratio["most"] - ratio["median"] for ratio in ratios],
            )
            axis.errorbar(medians, range(len(mine)), xerr=spread, fmt="o", color=color, ms=4, lw=0.8, label=other)
        axis.axvline(1, color="#888888", lw=0.8)
        axis.set_xscale("log")
        axis.set_xlim(0.2, 25)
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
        axis.set_title(field)
        axis.grid(axis="y", lw=0.3)
        if kind != _RAW:
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.05), frameon=False)
    axes[0].set_yticks(range(len(cells)), cells, fontsize=8)
    axes[0].invert_yaxis()
    drawn.supxlabel("times as many operations a second as the other, with the least and the most of all rounds")
    drawn.tight_layout()
    drawn.savefig(path)
    plt.close(drawn)


def plot_growth(growth: Figure, path: Path) -> None:
    """Draw the cost of operations over the number of keys, and that of a node over the run."""
    drawn, (keys, nodes) = plt.subplots(1, 2, figsize=(11, 4))
    for color, figure in zip(_COLORS, growth["keys"], strict=False):
        for operation, style in (("save", "o-"), ("load", "s--")):
            rates = {int(count): rate for count, rate in figure["rates"][operation].items()}
            costs = [rates[min(rates)] / rate for rate in rates.values()]
            keys.plot(list(rates), costs, style, color=color, ms=4, label=f"{figure['store']} {operation}")
    keys.set_xscale("log")
    keys.set_ylim(0, None)
    keys.set_xlabel("keys in the store")
    keys.set_ylabel("cost of an operation, 1 at the fewest keys")
    keys.legend(fontsize=7, ncols=2)
    for color, (name, parts) in zip(_COLORS, growth["runs"].items(), strict=False):
        sizes = [part["bytes"] / 1000 for part in parts]
        nodes.plot(sizes, [part["seconds"] * 1e6 for part in parts], "o-", color=color, ms=4, label=name)
    nodes.set_ylim(0, None)
    nodes.set_xlabel("kB in the document")
    nodes.set_ylabel("µs a node")
    nodes.legend(fontsize=8)
    drawn.tight_layout()
    drawn.savefig(path)
    plt.close(drawn)


def main() -> None:
    """Write the tables into the page, and the plots beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, default=Path("bench-report"), help="where the figures are")
    options = parser.parse_args()
    reports: dict[str, Any] = {
        name: json.loads((options.reports / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("codec", "compare", "growth")
    }
    figures, growth = reports["compare"]["figures"], reports["growth"]
    tables = {field: compared(figures, field) for field in dict.fromkeys(figure["field"] for figure in figures)}
    codec = ["| codec | |", "|---|---:|", *(f"| {name} | {_shown(of)} |" for name, of in reports["codec"].items())]
    tables["goals"] = goals(figures, growth, reports["codec"])
    tables |= {"keys": grown(growth["keys"]), "runs": ran(growth["runs"]), "first": started(growth["first"])}
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    for name, lines in {**tables, "codec": iter(codec)}.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        table = "\n".join([begin, *lines, end])
        text, found = re.subn(f"{begin}.*?{end}", lambda _, table=table: table, text, flags=re.DOTALL)
        assert found == 1, f"{page} has no place for {name}"
    page.write_text(text, encoding="utf-8")
    mpl.rcParams["svg.hashsalt"] = "dagonizer"
    plots = DOCS / "performance"
    plots.mkdir(exist_ok=True)
    plot_ratios(figures, "raw", plots / "raw.svg")
    plot_ratios(figures, "peers", plots / "peers.svg")
    plot_growth(growth, plots / "growth.svg")


def _shown(figure: object) -> str:
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)


if __name__ == "__main__":
    main()
