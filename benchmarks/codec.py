"""Speed and memory of the codec on a document of 1.2 MB with 10,000 executed nodes, beside the standard ways.

All are measured in one run, in turns; what counts are the ratios of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from dagonizer import Checkpoint, CheckpointData, MemoryCheckpointStore

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 25
IMPORT_ROUNDS = 15


def _document() -> CheckpointData:
    number = random.Random(1)  # noqa: S311 - a repeatable document, not a secret
    items = [
        {"id": i, "name": f"item {i} é", "score": number.random(), "tags": ["a", "bb", "ccc"], "ok": True, "of": None}
        for i in range(9_000)
    ]
    return CheckpointData(
        dag_name="process",
        cursor="next",
        state={"metadata": {}, "errors": [], "warnings": [], "items": items},
        executed_nodes=tuple(f"stage-{i:05d}:transform" for i in range(10_000)),
        skipped_nodes=(),
    )


def _medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _peak_of_recall(text: str) -> int:
    async def recall() -> int:
        store = MemoryCheckpointStore()
        await store.save("k", text)
        tracemalloc.start()
        recalled = await Checkpoint.recall(store, "k", lambda snapshot: snapshot)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert recalled is not None
        return peak

    return asyncio.run(recall())


def _importing(modules: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-I", "-c", f"import {modules}"], check=True)  # noqa: S603


def main() -> None:
    """Measure and print, and write the figures into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("bench-report/codec.json"), help="where to write")
    report: Path = parser.parse_args().report
    data = _document()
    text = Checkpoint.to_json(data)
    plain = json.loads(text)
    validator = Draft202012Validator(json.loads(files("dagonizer").joinpath("schema/checkpoint-1.json").read_text()))
    seconds = _medians(
        {
            "restore": lambda: Checkpoint.restore(text, lambda snapshot: snapshot),
            "json.loads + jsonschema": lambda: validator.validate(json.loads(text)),
            "to_json": lambda: Checkpoint.to_json(data),
            "json.dumps": lambda: json.dumps(plain),
        },
        ROUNDS,
    )
    imports = _medians(
        {"none": _importing("sys"), "ours": _importing("dagonizer"), "theirs": _importing("msgspec, pluggy")},
        IMPORT_ROUNDS,
    )
    figures: dict[str, Any] = {
        "document": f"{len(text.encode()):,} bytes",
        "restore is faster than json.loads + jsonschema by": seconds["json.loads + jsonschema"] / seconds["restore"],
        "to_json takes, of json.dumps": seconds["to_json"] / seconds["json.dumps"],
        "import dagonizer takes, of import msgspec, pluggy": (imports["ours"] - imports["none"])
        / (imports["theirs"] - imports["none"]),
        "the same with the interpreter's start": imports["ours"] / imports["theirs"],
        "peak memory of recall, of the document": _peak_of_recall(text) / len(text.encode()),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    for name, figure in figures.items():
        print(f"{name:55} {figure if isinstance(figure, str) else f'{figure:.2f}'}")


if __name__ == "__main__":
    main()
