"""The door for pytest: ``TestAcme = suite("acme://localhost:7000")``."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from dagonizer_conformance.harness import resolve
from dagonizer_conformance.results import Level, Result, Status, levels_up_to
from dagonizer_conformance.runner import PATIENCE, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagonizer_conformance.case import Case

SEED_VARIABLE = "DAGONIZER_CONFORMANCE_SEED"


def suite(
    target: object,
    *,
    require: Level | str | None = None,
    seed: int | None = None,
    budget: str = "default",
    allow_remote: bool = False,
    patience: float = PATIENCE,
) -> type:
    """Return a test class for pytest, with one test for each case.

    Bind it to a module-level name that begins with ``Test``. ``target`` and the other arguments are those of ``run``;
    the environment variable ``DAGONIZER_CONFORMANCE_SEED`` stands in for ``seed``. A case that passes, passes; one that
    fails, is inconclusive or errs, fails; one that is tolerated is xfailed; one that cannot apply is skipped with its
    reason. With ``require``, a level, a case that this level needs fails unless it passes. The class can be neither
    changed nor derived from: a case that was replaced would look like one that passed. Raises ``TargetError``, and
    ``ValueError`` for a ``require`` that is no level.
    """
    harness = resolve(target, allow_remote=allow_remote)
    if seed is None:
        seed = int(os.environ.get(SEED_VARIABLE, "0"))
    session = Session(
        harness, seed=seed, budget=budget, patience=patience, allow_remote=allow_remote, reproduce=_reproduction(seed)
    )
    required = () if require is None else levels_up_to(require)
    runners: list[asyncio.Runner] = []

    def setup_class(cls: type) -> None:  # noqa: ARG001 - pytest passes it
        runner = asyncio.Runner()
        try:
            runner.run(session.start())
        except BaseException:
            runner.close()
            raise
        runners.append(runner)

    def teardown_class(cls: type) -> None:  # noqa: ARG001
        runner = runners.pop()
        try:
            runner.run(session.stop())
        finally:
            runner.close()

    def run_case(case: Case) -> Result:
        return runners[-1].run(session.run_case(case))

    members: dict[str, object] = {
        "__doc__": harness.describe(),
        "setup_class": classmethod(setup_class),
        "teardown_class": classmethod(teardown_class),
        **{_method_name(case): _method(case, run_case, needed=case.level in required) for case in session.cases},
    }
    return _Sealed("ConformanceSuite", (), members)


class _Sealed(type):
    """A class that stays as it is."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _Sealed:
        if bases:
            raise TypeError(
                f"{name} cannot be derived from a conformance suite; for what a store does not do see Deviation"
            )
        return super().__new__(mcs, name, bases, namespace)

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError(f"{name} of a conformance suite cannot be set; for what a store does not do see Deviation")

    def __delattr__(cls, name: str) -> None:
        raise TypeError(f"{name} of a conformance suite cannot be removed; for what a store does not do see Deviation")


def _method_name(case: Case) -> str:
    return f"test_{case.id.replace('.', '_').replace('-', '_')}"


def _method(case: Case, run_case: Callable[[Case], Result], *, needed: bool) -> Callable[[object], None]:
    def test(self: object) -> None:  # noqa: ARG001 - a method
        import pytest  # noqa: PLC0415 - the kit runs without pytest; who gets here has it

        __tracebackhide__ = True
        result = run_case(case)
        match result.status:
            case Status.PASS:
                return
            case Status.XFAIL if not needed:
                pytest.xfail(result.detail)
            case Status.UNSUPPORTED | Status.UNVERIFIED if not needed:
                pytest.skip(f"{result.status}: {result.detail}")
            case _:
                lines = [f"{result.status}: {result.sentence}", result.detail, result.reproduction or ""]
                pytest.fail("\n".join(lines), pytrace=False)

    test.__name__ = _method_name(case)
    test.__doc__ = case.sentence
    return test


def _reproduction(seed: int) -> Callable[[Case], str]:
    return lambda case: f"{SEED_VARIABLE}={seed} pytest -k {_method_name(case)}"
