"""Tests the kit: each case must catch its mutants, and the reference store must pass, whatever the seed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dagonizer_conformance.cases import all_cases
from dagonizer_conformance.mutants.catalogue import all_mutants
from dagonizer_conformance.mutants.reference import ReferenceHarness
from dagonizer_conformance.outcomes import TargetError
from dagonizer_conformance.results import Result, Status
from dagonizer_conformance.runner import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future

    from rich.console import Console

    from dagonizer_conformance.mutants.mutant import Mutant

PATIENCE = 4.0
"""How long an operation of a mutant may take, in seconds; those that hang are given up so much sooner."""

_TRIES = 5


class MutantTrial(msgspec.Struct, frozen=True):
    """How the cases ended against one mutant."""

    mutant: str
    named: tuple[str, ...]
    """The cases that must catch it."""
    results: tuple[Result, ...]
    tries: int = 1
    """How often it was tried until its cases caught it, or the tries were up."""

    @property
    def caught_by(self) -> tuple[str, ...]:
        """The cases that caught it."""
        return tuple(result.id for result in self.results if result.status is Status.FAIL)

    @property
    def missed_by(self) -> tuple[str, ...]:
        """The cases that should have caught it, and did not."""
        return tuple(case for case in self.named if case not in self.caught_by)


class ReferenceTrial(msgspec.Struct, frozen=True):
    """How the reference store did with one seed."""

    seed: int
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        """The cases that it did not pass."""
        return tuple(result for result in self.results if result.status is not Status.PASS)


class Matrix(msgspec.Struct, frozen=True):
    """Mutants against cases."""

    mutants: tuple[MutantTrial, ...]
    references: tuple[ReferenceTrial, ...]
    unguarded: tuple[str, ...]
    """Cases that no mutant is for."""
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether every mutant was caught by its cases, every case has a mutant, and the reference passed."""
        return not (
            self.unguarded
            or any(trial.missed_by for trial in self.mutants)
            or any(trial.failures for trial in self.references)
        )


def judge(
    *,
    only: Sequence[str] | None = None,
    seeds: int = 25,
    full: bool = False,
    console: Console,
    workers: int | None = None,
) -> Matrix:
    """Try the cases on the mutants, and the reference store with ``seeds`` seeds, in several processes.

    ``only`` selects mutants by a part of their ids or of the ids of their cases; ``full`` tries every case on every
    mutant, else only those that are named to catch it. Chance decides what some cases see, and a busy machine takes
    part in it: cases that have missed a mutant try it again alone, with other seeds, and the console says which needed
    that. Raises ``TargetError`` if there is no such mutant.
    """
    began = time.monotonic()
    chosen = [mutant for mutant in all_mutants() if only is None or any(_matches(mutant, part) for part in only)]
    if not chosen:
        raise TargetError(f"no mutant matches {only!r}")
    guarded = {case for mutant in all_mutants() for case in mutant.caught_by}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        # Not fork: this process has threads.
        ProcessPoolExecutor(workers or os.cpu_count(), multiprocessing.get_context("spawn")) as pool,
        Progress(*columns, console=console) as progress,
    ):
        mutants = {
            mutant.id: pool.submit(_try_mutant, mutant.id, None if full else mutant.caught_by) for mutant in chosen
        }
        references = {seed: pool.submit(_try_reference, seed) for seed in range(seeds)}
        _follow(progress, "mutants", list(mutants.values()))
        _follow(progress, "reference", list(references.values()))
        trials = tuple(
            _try_again(MutantTrial(mutant.id, mutant.caught_by, _results(mutants[mutant.id].result())), pool)
            for mutant in chosen
        )
    for trial in trials:
        if trial.tries > 1:
            console.print(f"{trial.mutant} was tried {trial.tries} times", markup=False)
    return Matrix(
        mutants=trials,
        references=tuple(ReferenceTrial(seed, _results(future.result())) for seed, future in references.items()),
        unguarded=tuple(case.id for case in all_cases() if case.id not in guarded) if only is None else (),
        seconds=time.monotonic() - began,
    )


def _try_again(trial: MutantTrial, pool: Executor) -> MutantTrial:
    """Return ``trial``, and if a case has missed, with what came of that in further tries."""
    for seed in range(1, _TRIES):
        if not trial.missed_by:
            break
        again = _results(pool.submit(_try_mutant, trial.mutant, trial.named, seed=seed).result())
        results = {result.id: result for result in trial.results}
        results |= {result.id: result for result in again if result.id in trial.missed_by}
        trial = msgspec.structs.replace(trial, results=tuple(results.values()), tries=seed + 1)
    return trial


def _try_mutant(mutant_id: str, named: Sequence[str] | None, *, seed: int = 0) -> bytes:
    """Try the cases that are ``named``, or all of them."""
    mutant = next(mutant for mutant in all_mutants() if mutant.id == mutant_id)
    only = None if named is None else {case.id for case in all_cases()}.intersection(named)
    report = asyncio.run(run(mutant.harness(), only=only, seed=seed, budget="smoke", patience=PATIENCE))
    return msgspec.json.encode(report.results)


def _try_reference(seed: int) -> bytes:
    report = asyncio.run(run(ReferenceHarness(), seed=seed, budget="smoke", patience=PATIENCE))
    return msgspec.json.encode(report.results)


def _results(encoded: bytes) -> tuple[Result, ...]:
    return msgspec.json.decode(encoded, type=tuple[Result, ...])


def _follow(progress: Progress, what: str, futures: Sequence[Future[bytes]]) -> None:
    task = progress.add_task(what, total=len(futures))
    for _ in as_completed(futures):
        progress.advance(task)


def _matches(mutant: Mutant, part: str) -> bool:
    return part in mutant.id or any(part in case for case in mutant.caught_by)
