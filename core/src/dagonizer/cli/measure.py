"""``dagonizer bench``: how fast a store saves and loads from here."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
import uuid
from typing import TYPE_CHECKING

import msgspec
from rich.filesize import decimal
from rich.table import Table

from dagonizer import open_store
from dagonizer.cli.outcome import FAILED, YES, termination_as_interrupt
from dagonizer.cli.terminal import measured, open_console, say
from dagonizer.errors import StoreError, StoreLimitError
from dagonizer.url import StoreURL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rich.console import Console

    from dagonizer.contracts import CheckpointStore

SIZES = (1024, 64 * 1024, 1024 * 1024)
"""Of the values, in bytes."""

IN_FLIGHT = (1, 16)
"""How many operations are under way at a time."""

# In seconds; below, two decimals of a millisecond say little.
_SHORT = 1e-4

_PREFIX = "dagonizer-bench-"


class Cell(msgspec.Struct, frozen=True):
    """What was measured for one operation, size in bytes and number in flight. Times are in seconds."""

    operation: str
    bytes: int
    in_flight: int
    operations: int = 0
    seconds: float = 0.0
    p50: float | None = None
    p99: float | None = None
    operations_per_second: float | None = None
    bytes_per_second: float | None = None
    error: str | None = None


def bench_store(url: str, *, seconds: float, as_json: bool) -> int:
    """Measure every cell for ``seconds``, and print them. The entries that this makes are removed in any case."""
    with termination_as_interrupt():
        cells = asyncio.run(_bench(url, seconds, open_console(stderr=True)))
    if as_json:
        print(json.dumps({"store": str(StoreURL.parse(url)), "cells": msgspec.to_builtins(cells)}, indent=2))
    else:
        console, table = open_console(), _table(cells)
        # Over the edge rather than without some of the digits.
        console.width = max(console.width, measured(console, table).maximum)
        console.print(table)
        for cell in cells:
            if cell.error is not None:
                say(f"{cell.operation} of {_size(cell.bytes)}, {cell.in_flight} in flight: {cell.error}")
    return FAILED if any(cell.error is not None for cell in cells) else YES


def percentile(sorted_values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile: the smallest value that ``percent`` % of all do not exceed."""
    return sorted_values[max(0, -(-len(sorted_values) * percent // 100) - 1)]


async def _bench(url: str, seconds: float, console: Console) -> list[Cell]:
    keys = [f"{_PREFIX}{uuid.uuid4()}-{number}" for number in range(max(IN_FLIGHT))]
    cells: list[Cell] = []
    async with open_store(url) as store:
        # Connecting is not measured, and fails before anything is written.
        await store.load(keys[0])
        status = console.status("measuring")
        if console.is_terminal:
            status.start()
        try:
            for size in SIZES:
                values = [_value(size) for _ in keys]
                for in_flight in IN_FLIGHT:
                    pairs = dict(zip(keys[:in_flight], values, strict=False))
                    for operation, call in _operations(store, pairs):
                        status.update(f"{operation} {_size(size)}, {in_flight} in flight")
                        cells.append(await _measure(operation, size, call, list(pairs), seconds))
        finally:
            status.stop()
            await _clean(store, keys)
    return cells


async def _clean(store: CheckpointStore, keys: Sequence[str]) -> None:
    left: list[str] = []
    reason: StoreError | None = None
    for key in keys:
        try:
            await store.delete(key)
        except StoreError as exc:
            left.append(key)
            reason = exc
    if reason is not None:
        say(f"these entries are left, because they could not be deleted ({reason}): {', '.join(left)}")


def _operations(
    store: CheckpointStore, pairs: dict[str, str]
) -> tuple[tuple[str, Callable[[str], Awaitable[object]]], ...]:
    return ("save", lambda key: store.save(key, pairs[key])), ("load", store.load)


async def _measure(
    operation: str, size: int, call: Callable[[str], Awaitable[object]], keys: Sequence[str], seconds: float
) -> Cell:
    latencies: list[float] = []
    started = time.perf_counter()

    async def repeat(key: str) -> None:
        before = time.perf_counter()
        while True:
            await call(key)
            # A store in memory never waits, and the others are to have their turn.
            await asyncio.sleep(0)
            now = time.perf_counter()
            latencies.append(now - before)
            if now - started >= seconds:
                return
            before = now

    tasks = [asyncio.create_task(repeat(key)) for key in keys]
    try:
        await asyncio.gather(*tasks)
    except StoreLimitError as exc:
        return Cell(operation, size, len(keys), error=str(exc))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    took = time.perf_counter() - started
    latencies.sort()
    return Cell(
        operation,
        size,
        len(keys),
        operations=len(latencies),
        seconds=took,
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        operations_per_second=len(latencies) / took,
        bytes_per_second=len(latencies) * size / took,
    )


def _value(size: int) -> str:
    """Return a JSON string of ``size`` bytes that no store can compress by much."""
    return f'"{base64.b64encode(random.randbytes(size))[: size - 2].decode()}"'  # noqa: S311 - no secret


def _table(cells: Sequence[Cell]) -> Table:
    table = Table(header_style="bold")
    table.add_column("operation")
    for name in ("size", "in flight", "p50 ms", "p99 ms", "per second", "throughput"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, cell in enumerate(cells):
        measured = ["failed"] if cell.error is not None else _measured(cell)
        last = number + 1 < len(cells) and cells[number + 1].bytes != cell.bytes
        table.add_row(cell.operation, _size(cell.bytes), str(cell.in_flight), *measured, end_section=last)
    return table


def _measured(cell: Cell) -> list[str]:
    milliseconds = [_milliseconds(value) for value in (cell.p50, cell.p99) if value is not None]
    return [*milliseconds, f"{cell.operations_per_second or 0:,.0f}", f"{decimal(int(cell.bytes_per_second or 0))}/s"]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}" if seconds >= _SHORT else f"{1000 * seconds:.4f}"


def _size(size: int) -> str:
    return f"{size // 1024} KB" if size < SIZES[-1] else f"{size // SIZES[-1]} MB"
