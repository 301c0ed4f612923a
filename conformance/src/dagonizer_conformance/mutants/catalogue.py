"""All mutants, by id. Each module holds those that the group of cases of the same name catches."""

from __future__ import annotations

import importlib
from functools import cache

from dagonizer_conformance.cases import GROUPS
from dagonizer_conformance.hookspecs import installed_hooks
from dagonizer_conformance.mutants.mutant import Mutant


@cache
def all_mutants() -> tuple[Mutant, ...]:
    """Return the kit's mutants, and those that installed distributions add."""
    modules = [importlib.import_module(f"dagonizer_conformance.mutants.{group}") for group in GROUPS]
    own = [value for module in modules for value in vars(module).values() if isinstance(value, Mutant)]
    return (*own, *(mutant for mutants in installed_hooks().dagonizer_conformance_mutants() for mutant in mutants))


STORES = {mutant.store.__qualname__: mutant.store for mutant in all_mutants()}
"""The classes that the clients of mutants use, by name, for those in other processes to find."""
