"""Runs cases against a store, and says how each ended."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import platform
import secrets
import shlex
import time
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from dagonizer_conformance.cases import all_cases
from dagonizer_conformance.client import METHODS, Client, Record
from dagonizer_conformance.context import Budget, Bystander, Context, Run, network_endpoint
from dagonizer_conformance.harness import Deviation, URLHarness, is_url, resolve
from dagonizer_conformance.interruption import within
from dagonizer_conformance.outcomes import HistoryViolation, Inconclusive, TargetError, Unverified, Violation
from dagonizer_conformance.results import Capability, Level, Report, Result, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dagonizer_conformance.case import Case
    from dagonizer_conformance.harness import Harness
    from dagonizer_conformance.results import Operation

PATIENCE = 10.0
"""How long one operation of a store may take, in seconds; values of many megabytes get more."""

_SOAK_FACTOR = 10
_CLEANING = 6
_SHOWN_FRAMES = 6
_WITHOUT_HOOKS = {Level.CORE, Level.CONCURRENT}

_logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told how a run goes on."""

    def started(self, case_id: str, number: int, total: int) -> None:
        """Take in that a case begins."""

    def finished(self, result: Result) -> None:
        """Take in how it ended."""


async def run(
    target: object,
    *,
    only: str | Iterable[str] | None = None,
    seed: int = 0,
    budget: str = "default",
    allow_remote: bool = False,
    patience: float = PATIENCE,
    observer: Observer | None = None,
) -> Report:
    """Run the cases against ``target`` and return the report.

    ``target`` is a store URL, a ``Harness``, a factory that takes a namespace, or a reference to one of these, as
    ``module:name``. ``only`` selects cases by id, by a part of it, or by a pattern with ``*``. ``seed`` repeats what
    chance decided. ``budget`` is ``smoke``, ``default`` or ``soak``. ``patience`` is how long, in seconds, one
    operation may take. Raises ``TargetError`` when the target cannot be tested, or no case is selected.
    """
    harness = resolve(target, allow_remote=allow_remote)
    session = Session(harness, seed=seed, budget=budget, patience=patience, allow_remote=allow_remote)
    cases = select(session.cases, only)
    results = []
    await session.start()
    try:
        for number, case in enumerate(cases, 1):
            if observer is not None:
                observer.started(case.id, number, len(cases))
            results.append(await session.run_case(case))
            if observer is not None:
                observer.finished(results[-1])
    finally:
        await session.stop()
    return session.report(results)


def select(cases: Sequence[Case], only: str | Iterable[str] | None) -> Sequence[Case]:
    """Return the cases that ``only`` names. Raises ``TargetError`` when there are none."""
    if only is None:
        selected = cases
    else:
        patterns = [only] if isinstance(only, str) else list(only)
        selected = [case for case in cases if any(_matches(case, pattern) for pattern in patterns)]
    if not selected:
        raise TargetError(f"no case matches {only!r}; `dagonizer-conformance list` shows them all")
    return selected


class Session:
    """One run against one harness: what all its cases share."""

    def __init__(
        self,
        harness: Harness,
        *,
        seed: int = 0,
        budget: str = "default",
        patience: float = PATIENCE,
        allow_remote: bool = False,
        reproduce: Callable[[Case], str] | None = None,
    ) -> None:
        self.harness = harness
        self.cases = all_cases()
        namespace = f"dgzconf-{secrets.token_hex(6)}"
        self._run = Run(harness, seed, _budget(budget), patience, namespace, Bystander.of(namespace))
        self._allow_remote = allow_remote
        self._reproduce = reproduce or self._command
        self._secrets: tuple[str, ...] = ()
        self._started = datetime.now(UTC)
        self._began = time.monotonic()
        self._check_declarations()

    async def start(self) -> None:
        """Start the harness, and leave an entry that no case may touch. Raises ``TargetError`` if that fails."""
        try:
            await self.harness.start()
        except Exception as exc:  # a stranger's harness can raise anything
            raise TargetError(f"the harness cannot be started: {_named(exc)}") from exc
        try:
            address = self.harness.address()
            if address is not None and is_url(address):
                self._secrets = URLHarness(address, allow_remote=self._allow_remote).secrets()
            client = await self._bystander_client()
            await client.save(self._run.bystander.key, self._run.bystander.text)
            self._run.bystander = replace(self._run.bystander, saved=time.monotonic())
            await within(self._run.patience, self.harness.close(client.store), "closing a store")
        except Exception as exc:  # a stranger's store can raise anything
            await self._stop_harness()
            if isinstance(exc, TargetError):
                raise
            raise TargetError(self._redacted(f"the store cannot be used at all: {_named(exc)}")) from exc

    async def stop(self) -> None:
        """Remove what ``start`` left, and stop the harness."""
        await self._run.stop_processes()
        try:
            client = await self._bystander_client()
            await client.delete(self._run.bystander.key)
            await within(self._run.patience, self.harness.close(client.store), "closing a store")
        except Exception as exc:  # noqa: BLE001 - the cases have told what is wrong with the store
            _logger.warning("an entry may be left behind in %s: %s", self._run.bystander.namespace, _named(exc))
        finally:
            await self._stop_harness()

    async def _stop_harness(self) -> None:
        try:
            await self.harness.stop()
        except Exception as exc:  # noqa: BLE001 - what the cases have told is worth more
            _logger.warning("the harness could not be stopped: %s", _named(exc))

    async def run_case(self, case: Case) -> Result:
        """Run one case and say how it ended."""
        context = Context(self._run, case.id)
        began = time.monotonic()
        try:
            outcome = await self._outcome(case, context)
        except asyncio.CancelledError:
            # Whoever interrupts the run does not want to keep its entries.
            await self._finished(context, _Outcome(Status.INCONCLUSIVE, "interrupted"))
            raise
        if outcome.status is not Status.UNSUPPORTED:
            outcome = await self._finished(context, outcome)
        if outcome.status is Status.UNVERIFIED and case.level in _WITHOUT_HOOKS:
            outcome = replace(outcome, status=Status.ERROR, detail=f"this needs no hook: {outcome.detail}")
        outcome = self._deviated(case, outcome)
        failed = outcome.status in {Status.FAIL, Status.XFAIL, Status.INCONCLUSIVE, Status.ERROR}
        return Result(
            id=case.id,
            group=case.group,
            level=case.level,
            capability=case.capability,
            sentence=case.sentence,
            status=outcome.status,
            detail=self._redacted(outcome.detail),
            seconds=time.monotonic() - began,
            reproduction=self._reproduce(case) if failed else None,
            timeline=outcome.timeline,
        )

    def report(self, results: Iterable[Result]) -> Report:
        """Return the report of these results."""
        results = tuple(results)
        return Report(
            store=self.harness.describe(),
            namespaces=self.harness.describe_namespaces(),
            seed=self._run.seed,
            budget=self._run.budget.value,
            started=self._started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._began,
            kit_version=version("dagonizer-conformance"),
            python=platform.python_version(),
            complete={result.id for result in results} == {case.id for case in self.cases},
            results=results,
        )

    async def _outcome(self, case: Case, context: Context) -> _Outcome:
        seconds = case.seconds * (_SOAK_FACTOR if self._run.budget is Budget.SOAK else 1)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                if absent := await self._absent(case, context):
                    return _Outcome(Status.UNSUPPORTED, absent)
                await case.check(context)
        except Exception as exc:  # noqa: BLE001 - a stranger's store can raise anything
            if deadline.expired():
                return _Outcome(Status.INCONCLUSIVE, f"its {seconds:g} s were up")
            return _failed(exc, context)
        return _Outcome(Status.PASS, context.note)

    async def _absent(self, case: Case, context: Context) -> str:
        """Return in what way the store does not offer the capability of ``case``; nothing if it does.

        Raises ``Violation`` if the store has half of it, or what its harness says of it is not true.
        """
        match case.capability:
            case None:
                return ""
            case Capability.NETWORK:
                try:
                    network_endpoint(self.harness)
                except LookupError as exc:
                    return str(exc.args[0])
                return ""
        client = await context.open()
        methods = METHODS[case.capability]
        present = [name for name in methods if callable(getattr(client.store, name, None))]
        declared = self.harness.capabilities
        await context.close(client)
        if present and len(present) < len(methods):
            raise Violation(f"the store has {present[0]}, but not {' and '.join(set(methods) - set(present))}")
        absent = "" if present else f"the store has no {' and '.join(methods)}"
        if declared is not None and (case.capability in declared) != bool(present):
            raise Violation(
                f"{absent}, but the harness declares {case.capability}"
                if absent
                else f"the store has {' and '.join(methods)}, but the harness does not declare {case.capability}"
            )
        return absent

    async def _finished(self, context: Context, outcome: _Outcome) -> _Outcome:
        """Close and delete what the case has left; a failure of that counts unless the case failed already."""
        try:
            async with asyncio.timeout(_CLEANING * self._run.patience):
                await context.finish()
        except Exception as exc:  # noqa: BLE001 - a stranger's store can raise anything
            if outcome.status is Status.PASS:
                failed = _failed(exc, context)
                return replace(failed, detail=f"cleaning up after the case: {failed.detail}")
        return outcome

    def _deviated(self, case: Case, outcome: _Outcome) -> _Outcome:
        deviation = (self.harness.deviations or {}).get(case.id)
        if deviation is None:
            return outcome
        if outcome.status is Status.PASS:
            return _Outcome(Status.FAIL, "it passes in spite of its deviation; remove the deviation")
        if outcome.status is not Status.FAIL:
            return outcome
        if deviation.expired:
            return replace(outcome, detail=f"its deviation ended on {deviation.until}; {outcome.detail}")
        return replace(
            outcome,
            status=Status.XFAIL,
            detail=f"tolerated until {deviation.until}: {deviation.reason}\n{outcome.detail}",
        )

    def _check_declarations(self) -> None:
        known = {case.id for case in self.cases}
        for case_id, deviation in dict(self.harness.deviations or {}).items():
            if case_id not in known:
                raise TargetError(f"the harness deviates from {case_id!r}, which is no case")
            # Not of a subclass, which could take its reason or its end away.
            if type(deviation) is not Deviation:
                raise TargetError(f"the deviation from {case_id!r} must be Deviation(reason='…', until=date(…))")
        unknown = set(self.harness.capabilities or ()).difference(Capability)
        if unknown:
            raise TargetError(f"the harness declares {unknown.pop()!r}; capabilities are {', '.join(Capability)}")

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def _bystander_client(self) -> Client:
        namespace = self._run.bystander.namespace
        store = await within(self._run.patience, self.harness.open(namespace), "the harness's open")
        record = Record()
        record.will_save(namespace, self._run.bystander.key, self._run.bystander.text)
        return Client(store, name="bystander", namespace=namespace, record=record, patience=self._run.patience)

    def _command(self, case: Case) -> str:
        target = self.harness.reference()
        if target is None:
            return (
                f"await run({self.harness.describe()}, only={case.id!r}, seed={self._run.seed}, "
                f"budget={self._run.budget.value!r})"
            )
        return (
            f"dagonizer-conformance {shlex.quote(target)} -k {case.id} --seed {self._run.seed} "
            f"--budget {self._run.budget.value}"
        )


@dataclass(frozen=True)
class _Outcome:
    status: Status
    detail: str
    timeline: tuple[Operation, ...] = ()


def _failed(exc: Exception, context: Context) -> _Outcome:
    match exc:
        case HistoryViolation():
            return _Outcome(Status.FAIL, str(exc), exc.timeline)
        case Violation():
            return _Outcome(Status.FAIL, str(exc))
        case _ if any(exc is error for error in context.record.errors):
            call = next(call for call in reversed(context.record.calls) if call.raised is exc)
            return _Outcome(Status.FAIL, f"{call} raised {_named(exc)}")
        case AssertionError():
            return _Outcome(Status.FAIL, "".join(traceback.format_exception(exc)[-_SHOWN_FRAMES:]).strip())
        case Unverified():
            return _Outcome(Status.UNVERIFIED, str(exc))
        case Inconclusive():
            return _Outcome(Status.INCONCLUSIVE, str(exc))
        case _:
            return _Outcome(Status.ERROR, "".join(traceback.format_exception(exc)[-_SHOWN_FRAMES:]).strip())


def _matches(case: Case, pattern: str) -> bool:
    return pattern in case.id or fnmatch.fnmatchcase(case.id, pattern)


def _budget(name: str) -> Budget:
    try:
        return Budget(name)
    except ValueError:
        raise TargetError(f"the budget must be one of {', '.join(Budget)}, not {name!r}") from None


def _named(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
