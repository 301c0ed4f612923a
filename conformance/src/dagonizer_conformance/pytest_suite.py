"""The door for pytest: ``TestAcme = suite("acme://localhost:7000")``."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, ClassVar

from dagonizer_conformance.harness import resolve
from dagonizer_conformance.outcomes import TargetError
from dagonizer_conformance.results import Result, Status
from dagonizer_conformance.runner import PATIENCE, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagonizer_conformance.case import Case

SEED_VARIABLE = "DAGONIZER_CONFORMANCE_SEED"


def suite(
    target: object,
    *,
    seed: int | None = None,
    budget: str = "default",
    allow_remote: bool = False,
    patience: float = PATIENCE,
) -> type:
    """Return a test class for pytest, with one test for each case.

    Bind it to a module-level name that begins with ``Test``. ``target`` and the other arguments are those of ``run``;
    the environment variable ``DAGONIZER_CONFORMANCE_SEED`` stands in for ``seed``. A case that passes, passes; one that
    fails, is inconclusive or errs, fails; one that is tolerated is xfailed; one that cannot apply is skipped with its
    reason. No test of the class can be replaced. Raises ``TargetError``.
    """
    harness = resolve(target, allow_remote=allow_remote)
    if seed is None:
        seed = int(os.environ.get(SEED_VARIABLE, "0"))
    session = Session(harness, seed=seed, budget=budget, patience=patience, reproduce=_reproduction(seed))
    tests = {_method_name(case): _method(case) for case in session.cases}
    if not tests:
        raise TargetError("there are no cases")
    return _Sealed("ConformanceSuite", (_Suite,), {"session": session, "__doc__": harness.describe(), **tests})


class _Sealed(type):
    """Refuses to replace or hide what a suite consists of: a replaced case would look like a passed one."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _Sealed:
        for base in bases:
            if issubclass(base, _Suite) and base is not _Suite:
                for attribute in namespace.keys() & _sealed(base):
                    raise TypeError(
                        f"{name} replaces {attribute}: a case of the suite cannot be replaced; see Deviation"
                    )
        return super().__new__(mcs, name, bases, namespace)

    def __setattr__(cls, name: str, value: object) -> None:
        if name in _sealed(cls):
            raise TypeError(f"{cls.__name__}.{name} cannot be replaced; see Deviation")
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        if name in _sealed(cls):
            raise TypeError(f"{cls.__name__}.{name} cannot be removed; see Deviation")
        super().__delattr__(name)


class _Suite:
    session: ClassVar[Session]
    _runner: ClassVar[list[asyncio.Runner]] = []

    @classmethod
    def setup_class(cls) -> None:
        """Start the session, in an event loop that lasts as long as the class."""
        runner = asyncio.Runner()
        try:
            runner.run(cls.session.start())
        except BaseException:
            runner.close()
            raise
        cls._runner.append(runner)

    @classmethod
    def teardown_class(cls) -> None:
        """Stop the session."""
        runner = cls._runner.pop()
        try:
            runner.run(cls.session.stop())
        finally:
            runner.close()

    @classmethod
    def run_case(cls, case: Case) -> Result:
        """Run one case."""
        return cls._runner[-1].run(cls.session.run_case(case))


def _sealed(cls: type) -> set[str]:
    own = {name for base in cls.__mro__ if issubclass(base, _Suite) for name in vars(base)}
    return {name for name in own if not name.startswith("__")} | {"__test__"}


def _method_name(case: Case) -> str:
    return f"test_{case.id.replace('.', '_').replace('-', '_')}"


def _method(case: Case) -> Callable[[_Suite], None]:
    def test(self: _Suite) -> None:
        import pytest  # noqa: PLC0415 - the kit runs without pytest; who gets here has it

        __tracebackhide__ = True
        result = self.run_case(case)
        match result.status:
            case Status.PASS:
                return
            case Status.XFAIL:
                pytest.xfail(result.detail)
            case Status.UNSUPPORTED | Status.UNVERIFIED:
                pytest.skip(f"{result.status}: {result.detail}")
            case _:
                pytest.fail(
                    f"{result.status}: {result.sentence}\n{result.detail}\n{result.reproduction}", pytrace=False
                )

    test.__name__ = _method_name(case)
    test.__doc__ = case.sentence
    return test


def _reproduction(seed: int) -> Callable[[Case], str]:
    return lambda case: f"{SEED_VARIABLE}={seed} pytest -k {_method_name(case)}"
