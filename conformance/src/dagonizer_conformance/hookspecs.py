"""What a distribution implements to add its own cases and mutants.

Entry-point group ``dagonizer.conformance``; the value is the module that holds the hooks, marked with ``hookimpl``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagonizer_conformance.case import Case
    from dagonizer_conformance.mutants.mutant import Mutant

PROJECT = "dagonizer-conformance"
ENTRY_POINT_GROUP = "dagonizer.conformance"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def dagonizer_conformance_cases() -> Sequence[Case] | None:
    """Return cases to be run after the kit's own."""


@hookspec
def dagonizer_conformance_mutants() -> Sequence[Mutant] | None:
    """Return the mutants that these cases catch."""


def installed_hooks() -> Any:  # noqa: ANN401 - pluggy's hook relay has no static type
    """Return the hooks of all installed distributions."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(sys.modules[__name__])
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    manager.check_pending()
    return manager.hook
