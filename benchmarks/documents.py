"""Checkpoints as the demo makes them, of a given size."""

from __future__ import annotations

import hashlib
import random
import sysconfig
from pathlib import Path

from dagonizer import Checkpoint, CheckpointData
from dagonizer.cli.survey import NODES, Measure, Module, SurveyState, Syntax, find_modules

# Of the modules, how many have been parsed and measured when it stops.
_PARSED = 0.8
_MEASURED = 0.5
_SAMPLE = 500


def checkpoint(size: int) -> CheckpointData:
    """Return the checkpoint of a survey that was stopped half-way, of about ``size`` bytes as JSON.

    The modules are those of the standard library, again and again under other packages, with invented figures.
    """
    empty, sample = _surveyed(0), _surveyed(_SAMPLE)
    each = (len(Checkpoint.to_json(sample)) - len(Checkpoint.to_json(empty))) / _SAMPLE
    return _surveyed(max(1, int((size - len(Checkpoint.to_json(empty))) / each)))


def _surveyed(modules: int) -> CheckpointData:
    state = SurveyState()
    number = random.Random(1)  # noqa: S311 - repeatable, no secret
    paths = find_modules(Path(sysconfig.get_path("stdlib")))
    for index in range(modules):
        package, module = divmod(index, len(paths))
        path = f"{f'package{package}/' if package else ''}{paths[module]}"
        lines = number.randint(1, 3000)
        digest = hashlib.sha256(path.encode()).hexdigest()
        state.modules.append(Module(path, lines * number.randint(20, 45), lines, digest))
        if number.random() < _PARSED:
            functions = number.randint(0, 120)
            state.syntax[path] = Syntax(functions, functions // 7, lines // 9, f"test_{number.random()}", lines // 5)
        if number.random() < _MEASURED:
            code = int(lines * number.uniform(0.5, 0.9))
            density = round(number.uniform(1, 40), 1)
            state.measures[path] = Measure(code, lines // 20, lines // 8, lines // 9 + 1, density)
    return CheckpointData(
        dag_name="survey", cursor=NODES[2], state=state.snapshot(), executed_nodes=NODES[:2], skipped_nodes=()
    )
