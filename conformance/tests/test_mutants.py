"""What every mutant and every case says of itself. `nox -s conformance` tries each on the others."""

import io
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from rich.console import Console

from dagonizer_conformance.cases import all_cases
from dagonizer_conformance.mutants import matrix
from dagonizer_conformance.mutants.catalogue import STORES, all_mutants
from dagonizer_conformance.mutants.matrix import judge
from dagonizer_conformance.mutants.reference import ReferenceHarness
from dagonizer_conformance.outcomes import TargetError

IDS = {case.id for case in all_cases()}


def test_the_catalogue_is_large_and_names_cases_that_exist():
    assert len(all_mutants()) >= 60
    assert {case for mutant in all_mutants() for case in mutant.caught_by} <= IDS
    assert all(mutant.caught_by and mutant.sentence.endswith(".") for mutant in all_mutants())


def test_mutants_have_names_of_their_own():
    ids = [mutant.id for mutant in all_mutants()]
    assert len(ids) == len(set(ids))
    stores = {mutant.store for mutant in all_mutants()}
    assert len(stores) == len(STORES)


def test_every_case_says_in_a_sentence_what_a_store_does_and_how_that_is_known():
    for case in all_cases():
        assert re.fullmatch(r"[A-Z].*\.", case.sentence), case.id
        assert case.oracle, case.id
        assert (case.level is None) != (case.capability is None), case.id
        assert 0 < case.seconds <= 120, case.id


def test_a_selection_of_mutants_that_is_empty_is_refused():
    with pytest.raises(TargetError, match="no mutant matches"):
        judge(only=["no-such-mutant"], console=Console(quiet=True))


@pytest.mark.parametrize(("correct", "tries", "missed"), [(0, 1, False), (2, 3, False), (5, 5, True)])
def test_a_mutant_that_was_missed_is_tried_again_and_the_console_says_so(monkeypatch, correct, tries, missed):
    broken = all_mutants()[0]
    harnesses = itertools.chain([ReferenceHarness] * correct, itertools.repeat(broken.harness))

    def next_harness():
        return next(harnesses)()

    lucky = replace(broken, id="lucky", harness=next_harness)
    monkeypatch.setattr(matrix, "all_mutants", lambda: [lucky])
    # Another process would not know it.
    monkeypatch.setattr(matrix, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    console = Console(file=io.StringIO())
    found = judge(only=["lucky"], seeds=0, console=console)
    assert [trial.tries for trial in found.mutants] == [tries]
    assert found.sound is not missed
    assert (f"lucky was tried {tries} times" in console.file.getvalue()) is (tries > 1)
