"""All cases, in the order in which they run. Each module is a group."""

from __future__ import annotations

import importlib
from collections import Counter
from functools import cache

from dagonizer_conformance.case import Case
from dagonizer_conformance.hookspecs import installed_hooks
from dagonizer_conformance.outcomes import TargetError

GROUPS = (
    "basic",
    "value",
    "key",
    "namespace",
    "lifecycle",
    "errors",
    "atomicity",
    "linearizability",
    "cancellation",
    "durability",
    "listing",
    "compare_and_swap",
)

LAST = "namespace.bystander-untouched"
"""The case that looks at what all others may have done."""


@cache
def all_cases() -> tuple[Case, ...]:
    """Return the kit's cases, and those that installed distributions add."""
    modules = [importlib.import_module(f"{__name__}.{group}") for group in GROUPS]
    own = [value for module in modules for value in vars(module).values() if isinstance(value, Case)]
    added = [case for cases in installed_hooks().dagonizer_conformance_cases() for case in cases]
    ids = Counter(case.id for case in (*own, *added))
    if twice := [case_id for case_id, times in ids.items() if times > 1]:
        raise TargetError(f"two cases are called {twice[0]!r}")
    return tuple(sorted((*own, *added), key=lambda case: case.id == LAST))
