import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import date, timedelta

import pytest

from dagonizer import MemoryCheckpointStore
from dagonizer.keys import key_bytes, value_bytes
from dagonizer_conformance import (
    Capability,
    Case,
    Deviation,
    Harness,
    Inconclusive,
    Level,
    Status,
    TargetError,
    Unverified,
    Violation,
    run,
    suite,
)
from dagonizer_conformance.cli import main
from dagonizer_conformance.context import all_of
from dagonizer_conformance.mutants.reference import ReferenceHarness
from dagonizer_conformance.report import FORMATS, render

TODAY = date(2026, 11, 30)


@pytest.fixture(autouse=True)
def today(monkeypatch):
    # A run of the tests may last beyond midnight.
    monkeypatch.setattr("dagonizer_conformance.harness._today", lambda: TODAY)


class DictStore:
    """Three methods that never give way to the event loop."""

    def __init__(self, entries):
        self.entries = entries

    async def save(self, key, json):
        key_bytes(key), value_bytes(json)
        self.entries[key] = json

    async def load(self, key):
        key_bytes(key)
        return self.entries.get(key)

    async def delete(self, key):
        key_bytes(key)
        self.entries.pop(key, None)


class DictHarness(Harness):
    store = DictStore

    def __init__(self):
        self.namespaces = {}

    async def open(self, namespace):
        return self.store(self.namespaces.setdefault(namespace, {}))


def run_now(target, **arguments):
    return asyncio.run(run(target, **{"budget": "smoke", "patience": 3.0, **arguments}))


def status_of(target, case_id, **arguments):
    report = run_now(target, only=case_id, **arguments)
    (result,) = [result for result in report.results if result.id == case_id]
    return result


def test_a_store_in_memory_earns_what_needs_no_second_process_and_keeps_nothing():
    store = MemoryCheckpointStore("earns")
    report = run_now("memory://earns")
    assert report.levels == (Level.CORE, Level.CONCURRENT), [r for r in report.results if r.status == Status.FAIL]
    assert report.chips == (Capability.CLOSE, Capability.LISTING, Capability.COMPARE_AND_SWAP)
    assert report.conforms
    assert report.exit_code == 0
    assert store.size == 0


def test_three_methods_are_enough():
    harness = DictHarness()
    report = run_now(harness)
    assert report.levels == (Level.CORE, Level.CONCURRENT), [r for r in report.results if r.status == Status.FAIL]
    assert report.chips == ()
    unsupported = {result.capability for result in report.results if result.status == Status.UNSUPPORTED}
    assert unsupported >= {Capability.CLOSE, Capability.LISTING, Capability.COMPARE_AND_SWAP}
    assert not any(harness.namespaces.values())


def test_a_selection_earns_no_level():
    report = run_now("memory://", only="basic.round-trip")
    assert [result.status for result in report.results] == [Status.PASS]
    assert report.levels == ()


async def test_what_a_case_does_at_once_has_ended_before_its_failure_is_told():
    begun, ended = asyncio.Event(), []

    async def fail(error):
        await begun.wait()
        raise error

    async def slow():
        begun.set()
        for _ in range(3):
            await asyncio.sleep(0)
        ended.append("slow")

    with pytest.raises(Violation):
        await all_of(fail(Unverified("no hook")), fail(TimeoutError()), fail(Violation("lost")), slow())
    assert ended == ["slow"]
    assert await all_of(asyncio.sleep(0, 1), asyncio.sleep(0, None)) == [1, None]


# Ways around it.


def test_no_case_is_an_error():
    with pytest.raises(TargetError, match="no case matches 'no-such-case'"):
        run_now("memory://", only="no-such-case")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda cls: type("TestMine", (cls,), {"test_basic_round_trip": lambda self: None}),
        lambda cls: type("TestMine", (cls,), {}),
        lambda cls: setattr(cls, "test_basic_round_trip", lambda self: None),
        lambda cls: setattr(cls, "setup_method", lambda self: pytest.skip("not now")),
        lambda cls: setattr(cls, "__test__", False),
        lambda cls: delattr(cls, "test_basic_round_trip"),
        pytest.mark.skip(reason="not now"),
        pytest.mark.xfail,
    ],
)
def test_a_suite_cannot_be_changed(attempt):
    with pytest.raises(TypeError, match="conformance suite"):
        attempt(suite("memory://"))


def test_a_required_level_makes_what_is_not_verified_fail(tmp_path):
    (tmp_path / "test_store.py").write_text(
        "from dagonizer_conformance import suite\n"
        "TestOne = suite('memory://', budget='smoke', require='CRASH-SAFE')\n"
        "TestTwo = suite('memory://', budget='smoke', require='CONCURRENT')\n"
    )
    ran = run_pytest(tmp_path, "-k", "errors_corrupt")
    assert "1 failed, 1 skipped" in ran.stdout, ran.stdout
    assert "UNVERIFIED" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reason": "", "until": TODAY}, "needs a reason"),
        ({"reason": "  ", "until": TODAY}, "needs a reason"),
        ({"reason": "known", "until": "2030-01-01"}, "needs the date"),
        ({"reason": "known", "until": TODAY + timedelta(days=367)}, "a year at most"),
    ],
)
def test_a_deviation_needs_a_reason_and_a_date(arguments, message):
    with pytest.raises(TargetError, match=message):
        Deviation(**arguments)


def test_a_deviation_may_last_a_year():
    assert not Deviation(reason="known", until=TODAY + timedelta(days=366)).expired


class ForgetfulStore(DictStore):
    async def load(self, key):
        return None


class Forgetful(DictHarness):
    store = ForgetfulStore


def deviating(base, case_id, until):
    harness = base()
    harness.deviations = {case_id: Deviation(reason="a ticket is open", until=until)}
    return harness


def test_a_deviation_is_tolerated_until_its_date_and_earns_nothing():
    harness = deviating(Forgetful, "basic.round-trip", TODAY)
    report = run_now(harness, only="basic.round-trip")
    assert report.results[0].status == Status.XFAIL
    assert "a ticket is open" in report.results[0].detail
    assert report.exit_code == 2  # nothing passed
    assert not report.conforms


def test_a_deviation_past_its_date_fails():
    result = status_of(deviating(Forgetful, "basic.round-trip", TODAY - timedelta(days=1)), "basic.round-trip")
    assert result.status == Status.FAIL
    assert "its deviation ended on" in result.detail


def test_a_deviation_that_is_not_needed_fails():
    result = status_of(deviating(DictHarness, "basic.round-trip", TODAY), "basic.round-trip")
    assert result.status == Status.FAIL
    assert "remove the deviation" in result.detail


def test_a_deviation_cannot_be_made_weaker():
    class Weaker(Deviation):
        expired = False

    harness = Forgetful()
    harness.deviations = {"basic.round-trip": Weaker(reason="known", until=TODAY - timedelta(days=9))}
    with pytest.raises(TargetError, match="must be Deviation"):
        run_now(harness)


def test_unknown_capabilities_are_refused():
    with pytest.raises(TargetError, match="declares 'flying'"):
        run_now(declaring("flying"))


def test_a_deviation_from_no_case_is_refused():
    with pytest.raises(TargetError, match=r"'basic\.trip', which is no case"):
        run_now(deviating(DictHarness, "basic.trip", TODAY))


class QueueingHarness(DictHarness):
    """Its stores give way to the loop, but one lock makes everyone wait for everyone."""

    lock = None

    async def open(self, namespace):
        store = await super().open(namespace)
        lock = self.lock = self.lock or asyncio.Lock()

        class Queueing:
            async def save(self, key, json):
                async with lock:
                    await asyncio.sleep(0)
                    await store.save(key, json)

            async def load(self, key):
                async with lock:
                    await asyncio.sleep(0)
                    return await store.load(key)

            async def delete(self, key):
                async with lock:
                    await asyncio.sleep(0)
                    await store.delete(key)

        return Queueing()


@pytest.mark.parametrize(
    "case_id", ["linearizability.clients", "linearizability.deletes", "atomicity.readers-during-overwrites"]
)
def test_operations_that_never_overlap_are_inconclusive(case_id):
    result = status_of(QueueingHarness(), case_id)
    assert result.status == Status.INCONCLUSIVE, result.detail
    assert "wait for each other" in result.detail


class SwallowingStore(DictStore):
    async def save(self, key, json):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.001)
        await super().save(key, json)


class Swallowing(DictHarness):
    store = SwallowingStore


def test_a_store_that_catches_cancelled_error_is_caught():
    result = status_of(Swallowing(), "cancellation.propagates")
    assert result.status == Status.FAIL
    assert "swallowed CancelledError" in result.detail


class WipingStore(DictStore):
    def __init__(self, entries, everything):
        super().__init__(entries)
        self.everything = everything

    async def delete(self, key):
        for entries in self.everything.values():
            entries.pop("bystander", None)
        await super().delete(key)


class Wiping(DictHarness):
    async def open(self, namespace):
        return WipingStore(self.namespaces.setdefault(namespace, {}), self.namespaces)


def test_an_entry_that_no_case_touched_must_be_there_at_the_end():
    report = run_now(Wiping(), only=["basic.delete-absent", "namespace.bystander-untouched"])
    assert [result.status for result in report.results] == [Status.PASS, Status.FAIL]


@pytest.mark.parametrize("url", ["acme://example.com/", "acme://10.0.0.7:6379/", "acme://localhost.example.com/"])
def test_a_remote_host_needs_permission(url, monkeypatch):
    monkeypatch.setattr("dagonizer_conformance.harness.store_endpoints", lambda url: url.hosts)
    with pytest.raises(TargetError, match=r"is not this machine.*--allow-remote"):
        run_now(url)


# What a store says of itself.


def declaring(*capabilities, base=DictHarness):
    class Declaring(base):
        pass

    Declaring.capabilities = frozenset(capabilities)
    return Declaring()


class HalfStore(DictStore):
    async def load_versioned(self, key):
        return None


class Half(DictHarness):
    store = HalfStore


def test_a_capability_that_is_declared_must_be_there():
    result = status_of(declaring(Capability.CLOSE), "lifecycle.double-close")
    assert result.status == Status.FAIL
    assert "has no aclose, but the harness declares close" in result.detail


def test_a_capability_that_is_not_declared_must_not_be_there():
    class Closable(DictStore):
        async def aclose(self):
            pass

    class HasMore(DictHarness):
        store = Closable

    result = status_of(declaring(base=HasMore), "lifecycle.double-close")
    assert result.status == Status.FAIL
    assert "has aclose, but the harness does not declare close" in result.detail


def test_half_a_protocol_is_none():
    result = status_of(Half(), "compare-and-swap.stale-version")
    assert result.status == Status.FAIL
    assert "has load_versioned, but not save_if" in result.detail


# What goes wrong.


def test_a_store_that_hangs_is_given_up_in_bounded_time():
    class HangingStore(DictStore):
        async def load(self, key):
            await asyncio.Event().wait()

    class Hanging(DictHarness):
        store = HangingStore

    result = status_of(Hanging(), "basic.round-trip", patience=0.2)
    assert result.status == Status.FAIL
    assert "did not return within 0.2 s" in result.detail
    assert result.seconds < 5


def test_what_a_store_raises_is_its_failure_and_says_where():
    class RaisingStore(DictStore):
        async def load(self, key):
            raise ConnectionError("no route to host")

    class Raising(DictHarness):
        store = RaisingStore

    result = status_of(Raising(), "basic.round-trip")
    assert result.status == Status.FAIL
    assert result.detail == "load('basic.round-trip/key') of client 1 raised ConnectionError: no route to host"


def test_what_a_harness_raises_is_not_the_stores_failure():
    class Broken(DictHarness):
        async def open(self, namespace):
            if "bystander" not in namespace:
                raise RuntimeError("no container engine")
            return await super().open(namespace)

    report = run_now(Broken(), only="basic.round-trip")
    assert report.results[0].status == Status.ERROR
    assert "no container engine" in report.results[0].detail
    assert report.exit_code == 3


def test_a_store_that_cannot_be_used_at_all_is_said_so_at_once():
    class UnusableStore(DictStore):
        async def save(self, key, json):
            raise PermissionError("read-only")

    class Unusable(DictHarness):
        store = UnusableStore

    with pytest.raises(TargetError, match="cannot be used at all: PermissionError: read-only"):
        run_now(Unusable())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: None, "must take one argument, the namespace"),
        (7, "cannot test int"),
        ("no-such-module-here:harness", "not a store URL|cannot find|unknown scheme|no plugin"),
        ("no_such_module_here:harness", "cannot find 'harness' in 'no_such_module_here'"),
    ],
)
def test_what_cannot_be_tested_is_refused(target, message):
    with pytest.raises((TargetError, Exception), match=message):
        run_now(target)


def test_a_foreign_text_is_detected_whoever_loads_it():
    class MisroutingStore(DictStore):
        async def load(self, key):
            others = [text for other, text in self.entries.items() if other != key]
            return others[0] if others else await super().load(key)

    class Misrouting(DictHarness):
        store = MisroutingStore

    result = status_of(Misrouting(), "basic.absent-is-none")
    assert result.status == Status.FAIL
    assert "which was saved under 'basic.absent-is-none/another'" in result.detail


@pytest.mark.parametrize("raised", [SystemExit(0), Unverified("no hook"), Inconclusive("who knows")])
def test_what_a_store_raises_never_passes_for_something_else(raised):
    class RaisingStore(DictStore):
        async def load(self, key):
            if key != "bystander":
                raise raised
            return await super().load(key)

    class Raising(DictHarness):
        store = RaisingStore

    report = run_now(Raising(), only="basic.round-trip")
    assert [result.status for result in report.results] == [Status.FAIL]
    assert report.exit_code == 1


def test_a_case_that_needs_no_hook_cannot_be_unverified():
    class Declining(DictHarness):
        async def open(self, namespace):
            if "bystander" not in namespace:
                raise Unverified("not today")
            return await super().open(namespace)

    report = run_now(Declining(), only="basic.round-trip")
    assert [result.status for result in report.results] == [Status.ERROR]


def test_the_same_store_is_not_another_client():
    class Cached(DictHarness):
        def __init__(self):
            super().__init__()
            self.stores = {}

        async def open(self, namespace):
            if namespace not in self.stores:
                self.stores[namespace] = await super().open(namespace)
            return self.stores[namespace]

    result = status_of(Cached(), "atomicity.visible-at-once")
    assert result.status == Status.ERROR
    assert "each must be another client" in result.detail


def test_a_plain_assert_in_a_case_is_a_failure(monkeypatch):
    async def check(context):
        assert context.key() == "another", "this is not what was expected"

    own = Case(id="acme.own", sentence="It is so.", oracle="none", check=check, level=Level.CORE)
    monkeypatch.setattr("dagonizer_conformance.runner.all_cases", lambda: (own,))
    report = run_now(DictHarness())
    assert [result.status for result in report.results] == [Status.FAIL]
    assert "this is not what was expected" in report.results[0].detail


def test_an_interrupted_run_leaves_no_entry():
    harness = DictHarness()

    async def main():
        async with asyncio.timeout(None) as interruption:

            class Interrupting:
                def started(self, case_id, number, total):
                    interruption.reschedule(asyncio.get_running_loop().time() + 0.01)

                def finished(self, result):
                    raise AssertionError("it was not interrupted")

            await run(harness, only="durability.many-keys", observer=Interrupting())

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert not any(harness.namespaces.values())


@pytest.mark.parametrize("hook", ["start", "stop"])
def test_a_harness_that_fails_around_the_run_loses_no_report(hook, caplog):
    class Broken(DictHarness):
        pass

    async def fail(self):
        raise RuntimeError("no container engine")

    setattr(Broken, hook, fail)
    if hook == "start":
        with pytest.raises(TargetError, match="cannot be started: RuntimeError: no container engine"):
            run_now(Broken(), only="basic.round-trip")
    else:
        assert run_now(Broken(), only="basic.round-trip").conforms
        assert "no container engine" in caplog.text


def test_an_address_on_another_machine_needs_permission(monkeypatch):
    class Remote(DictHarness):
        def address(self):
            return "acme://example.com/"

    monkeypatch.setattr("dagonizer_conformance.harness.store_endpoints", lambda url: url.hosts)
    with pytest.raises(TargetError, match=r"example\.com is not this machine"):
        run_now(Remote())


def test_a_kill_that_kills_nothing_is_the_harness_at_fault():
    class Harmless(ReferenceHarness):
        async def kill(self):
            pass

    result = status_of(Harmless(), "durability.backend-kill", patience=1.0)
    assert result.status == Status.ERROR
    assert "it killed nothing" in result.detail


def test_secrets_of_a_url_are_in_no_report(monkeypatch):
    class TellingStore(DictStore):
        async def load(self, key):
            raise ConnectionError("cannot reach acme://bob:hunter2@localhost/?token=0123456789")

    monkeypatch.setattr("dagonizer_conformance.harness.store_endpoints", lambda url: ())
    monkeypatch.setattr("dagonizer_conformance.harness.open_store", lambda url: TellingStore({}))
    report = run_now("acme://bob:hunter2@localhost/?token=0123456789", only="basic.round-trip")
    for kind in FORMATS:
        text = render(report, kind)
        assert "cannot reach" in text
        assert "hunter2" not in text
        assert "0123456789" not in text


# The doors.


def cli(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["dagonizer-conformance", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_reports_in_every_format(monkeypatch, capsys, tmp_path):
    # What another run in this process has left behind is not this one's.
    monkeypatch.setattr("dagonizer_conformance.cli.abandoned", [None])
    reports = [f"--report={kind}={tmp_path / kind}" for kind in ("json", "junit", "markdown", "html")]
    assert cli(monkeypatch, "memory://", "-k", "basic", "--budget", "smoke", "--json", *reports) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {result["status"] for result in printed["results"]} == {"PASS"}
    assert json.loads((tmp_path / "json").read_text()) == printed
    assert (tmp_path / "junit").read_text().startswith("<?xml")
    assert "<html" in (tmp_path / "html").read_text()


def test_the_command_compares_reports(monkeypatch, capsys, tmp_path):
    for name, case in (("one", "basic.round-trip"), ("two", "key.slashes")):
        reports = [f"--report={kind}={tmp_path / name}.{kind}" for kind in ("json", "html")]
        assert cli(monkeypatch, "memory://", "-k", case, "--budget", "smoke", *reports) == 0
    capsys.readouterr()
    files = [str(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert cli(monkeypatch, "compare", *files, "--html", str(tmp_path / "index.html")) == 0
    assert "one: Conforms: the only case passed." in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert 'href="one.html"' in page
    assert "key.slashes" in page
    assert cli(monkeypatch, "compare", *files, "--require", "CORE") == 1
    assert "not earned by one, two" in capsys.readouterr().out
    assert cli(monkeypatch, "compare", files[0], files[0]) == 3
    assert "files of one name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory://", "-k", "no-such-case"], "no case matches"),
        (["memory://", "--report", "pdf=x"], "FORMAT is one of"),
        (["memory://", "--report", "html=/nowhere/x.html"], "there is no directory"),
        (["explain", "key.case-is-keppt"], "did you mean"),
        (["acme"], "not a store URL"),
        (["memory://", "--budget", "huge"], "is not one of"),
        (["memory://", "--no-such-option"], "No such option"),
    ],
)
def test_a_mistake_is_answered_in_one_line(monkeypatch, capsys, arguments, message):
    assert cli(monkeypatch, *arguments) == 3
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [("memory://", "redis://:hunter2@h"), ("list", "redis://:hunter2@h")])
def test_a_mistake_is_told_without_the_secrets_of_a_url(monkeypatch, capsys, arguments):
    assert cli(monkeypatch, *arguments) == 3
    told = capsys.readouterr().err
    assert "redis://***@h" in told
    assert "hunter2" not in told


def test_the_command_lists_and_explains(monkeypatch, capsys):
    assert cli(monkeypatch, "list", "--json") == 0
    assert "basic.round-trip" in {case["id"] for case in json.loads(capsys.readouterr().out)}
    assert cli(monkeypatch, "explain", "basic.round-trip") == 0
    assert "Catches" in capsys.readouterr().out


PROJECT = """
import asyncio
from dagonizer_conformance import suite
from dagonizer.keys import key_bytes, value_bytes

ENTRIES = {}

class Store:
    def __init__(self, namespace):
        self.entries = ENTRIES.setdefault(namespace, {})

    async def save(self, key, json):
        key_bytes(key), value_bytes(json)
        self.entries[KEY] = json

    async def load(self, key):
        key_bytes(key)
        return self.entries.get(KEY)

    async def delete(self, key):
        key_bytes(key)
        self.entries.pop(KEY, None)

TestStore = suite(Store, budget="smoke")
"""


def run_pytest(tmp_path, *arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment}, check=False
    )


def test_one_line_of_pytest_tests_a_store(tmp_path):
    (tmp_path / "test_store.py").write_text(PROJECT.replace("KEY", "key"))
    ran = run_pytest(tmp_path, "-k", "basic or value or key")
    assert ran.returncode == 0, ran.stdout


def test_the_reproduction_of_a_failing_test_reproduces_it(tmp_path):
    (tmp_path / "test_store.py").write_text(PROJECT.replace("KEY", "key.lower()"))
    ran = run_pytest(tmp_path, "-k", "key")
    assert ran.returncode == 1, ran.stdout
    (reproduction,) = {line for line in ran.stdout.splitlines() if line.endswith("pytest -k test_key_case_is_kept")}
    variable, _, command = reproduction.partition(" ")
    again = run_pytest(tmp_path, *command.split()[1:], **dict([variable.split("=")]))
    assert "FAIL: Keys" in again.stdout, again.stdout
    assert "1 failed" in again.stdout


STUBBORN = """
        while True:
            try:
                await __import__("asyncio").sleep(1)
            except BaseException:
                pass
"""
COMMAND = [sys.executable, "-c", "from dagonizer_conformance.cli import main; main()"]
BLOCKING = """
class Store:
    def __init__(self, namespace):
        self.entries = {}

    async def save(self, key, json):
        self.entries[key] = json

    async def load(self, key):
        HANG

    async def delete(self, key):
        self.entries.pop(key, None)
"""


@pytest.mark.parametrize(
    ("hang", "message"),
    [
        ("__import__('threading').Event().wait()", "the event loop has stood still"),
        (
            "await __import__('asyncio').to_thread(__import__('threading').Event().wait)",
            "an operation of the store does not end",
        ),
        (
            STUBBORN,
            "nor when it was cancelled",
        ),
    ],
)
def test_nothing_that_a_store_does_holds_up_the_command_for_ever(tmp_path, hang, message):
    (tmp_path / "store.py").write_text(BLOCKING.replace("HANG", hang))
    ran = subprocess.run(
        [*COMMAND, "store.py:Store", "-k", "basic.round-trip", "--patience", "0.2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1, ran.stderr
    assert message in " ".join((ran.stdout + ran.stderr).split())


def test_what_a_store_prints_is_not_among_the_json(tmp_path):
    (tmp_path / "store.py").write_text(BLOCKING.replace("HANG", "print('loading'); return self.entries.get(key)"))
    ran = subprocess.run(
        [*COMMAND, "store.py:Store", "-k", "basic.repeated-load", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(ran.stdout)["exit_code"] == ran.returncode == 0
    assert "loading" in ran.stderr


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "message"),
    [
        (["memory://", "-k", "basic.round-trip"], ">/dev/full", 3, "cannot write to standard output: No space left"),
        (["memory://", "-k", "basic.round-trip", "--json"], ">&-", 3, "cannot write to standard output: Bad file desc"),
        (["list"], ">&-", 3, "cannot write to standard output: Bad file descriptor"),
        (["list"], "| true", 141, ""),
        (["memory://", "-k", "basic.round-trip"], "| true", 141, ""),
        (["memory://", "-k", "basic.round-trip", "--report=json=/dev/full"], "", 3, "cannot write /dev/full: No space"),
        (["memory://", "-k", "basic.round-trip"], ">&- 2>&-", 3, ""),
    ],
)
def test_what_cannot_be_written_is_no_verdict_on_the_store(arguments, redirection, code, message):
    ran = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", *COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    assert message in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr
