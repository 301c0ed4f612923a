"""The examination of a store: what it finds in good ones, in each way to be bad, and in those that do not answer."""

import asyncio
import contextlib
import re

import pytest

from dagonizer import MemoryCheckpointStore, StoreAccessError, StoreURLError, UnknownSchemeError
from dagonizer.diagnosis import Finding
from dagonizer.doctor import examine_store
from dagonizer.errors import StoreUnavailableError
from dagonizer.registry import diagnose_store

CONTRACT = ["connection", "text", "round-trip", "absence", "compare-and-swap", "listing", "clean-up"]


def examined(store, backend=None, *, limit=5.0):
    async def collect():
        return [finding async for finding in examine_store(store, backend, limit=limit)]

    findings = asyncio.run(collect())
    assert findings[-1].check == "durability"
    assert "p4ssw0rd" not in repr(findings)
    return findings


def verdicts(findings):
    return {finding.check: finding.verdict for finding in findings}


def bad(store, **options):
    """The only finding that is bad."""
    (finding,) = (finding for finding in examined(store, **options) if finding.verdict == "bad")
    return finding


class Plain:
    """A stranger's store of three methods."""

    def __init__(self):
        self.texts = {}

    async def save(self, key, json):
        self.texts[key] = json

    async def load(self, key):
        return self.texts.get(key)

    async def delete(self, key):
        self.texts.pop(key, None)


def test_a_good_store_is_good_in_every_check_and_nothing_is_left_there():
    store = MemoryCheckpointStore()
    findings = examined(store)
    assert [finding.check for finding in findings] == [*CONTRACT, "backend", "durability"]
    assert {finding.verdict for finding in findings[:-2]} == {"good"}
    assert store.size == 0
    assert store._closed


def test_what_a_store_need_not_have_is_a_note():
    store = Plain()
    found = verdicts(examined(store))
    assert found.pop("durability") == found.pop("backend") == "note"
    assert found == {**dict.fromkeys(CONTRACT, "good"), "compare-and-swap": "note", "listing": "note"}
    assert store.texts == {}


def test_a_round_trip_tells_medians_and_the_worst():
    (trip,) = (finding for finding in examined(Plain()) if finding.check == "round-trip")
    assert re.fullmatch(
        r"saves \S+.* ms, loads .* ms, deletions .* ms, in the median of 5; at worst .* ms, .* ms, .* ms", trip.message
    )


@pytest.mark.parametrize(("seconds", "verdict"), [(0.15, "note"), (1.05, "warning")])
def test_a_slow_store_is_said_to_be_slow(seconds, verdict):
    class Slow(Plain):
        async def save(self, key, json):
            if json.startswith('{"probe"'):
                await asyncio.sleep(seconds)
            await super().save(key, json)

    (trip,) = (finding for finding in examined(Slow()) if finding.check == "round-trip")
    assert trip.verdict == verdict
    assert "nearer" in trip.remedy


def test_a_text_that_comes_back_changed_is_told_by_its_code_point():
    class Normalising(Plain):
        async def save(self, key, json):
            await super().save(key, json.replace("e\u0301", "\u00e9"))

    finding = bad(Normalising())
    assert finding.check == "text"
    assert finding.message.endswith("U+0065 at index 9 came back as U+00E9")

    class Trimming(Plain):
        async def save(self, key, json):
            await super().save(key, json.rstrip(" "))

    assert "characters came back as" in bad(Trimming()).message


def test_a_store_that_forgets_is_bad():
    class Forgetful(Plain):
        async def load(self, key):
            return None

    assert (bad(Forgetful()).check, "is not there" in bad(Forgetful()).message) == ("text", True)


def test_an_entry_that_stays_when_it_is_deleted_is_bad():
    class Keeping(Plain):
        async def delete(self, key):
            self.texts.setdefault(key, "")

    assert {f.check for f in examined(Keeping()) if f.verdict == "bad"} == {"absence", "clean-up"}


@pytest.mark.parametrize(("ignored", "told"), [("outdated", "an outdated version"), ("none", "a version of no entry")])
def test_a_compare_and_swap_that_does_not_compare_is_bad(ignored, told):
    class Overwriting(MemoryCheckpointStore):
        async def save_if(self, key, json, *, expected):
            if (expected is None) == (ignored == "none"):
                await self.save(key, json)
                return (await self.load_versioned(key)).version
            return await super().save_if(key, json, expected=expected)

    finding = bad(Overwriting())
    assert (finding.check, finding.message.startswith(told)) == ("compare-and-swap", True)
    assert finding.remedy


def test_a_version_that_is_not_the_saved_one_is_bad():
    class Versionless(MemoryCheckpointStore):
        async def load_versioned(self, key):
            found = await super().load_versioned(key)
            return found and type(found)(found.json, "other")

    assert bad(Versionless()).check == "compare-and-swap"


@pytest.mark.parametrize("times", [0, 2])
def test_a_key_that_is_not_listed_once_is_bad(times):
    class Listing(Plain):
        async def list_keys(self, prefix=""):
            for key in [*self.texts] * times:
                yield key

    assert f"{times} times" in bad(Listing()).message


def test_a_listing_that_takes_long_is_no_reason_to_call_the_store_dead():
    class Huge(MemoryCheckpointStore):
        async def list_keys(self, prefix=""):
            await asyncio.Event().wait()
            yield prefix

    found = examined(Huge(), limit=0.2)
    assert verdicts(found)["listing"] == "note"
    assert verdicts(found)["clean-up"] == "good"


def test_an_error_of_the_store_ends_the_examination_and_says_what_is_not_examined():
    class ReadOnly(Plain):
        async def save(self, key, json):
            raise StoreAccessError("could not save: read-only; mount it for writing")

        async def delete(self, key):
            raise StoreAccessError("could not delete: read-only")

    findings = examined(ReadOnly())
    assert [finding.check for finding in findings] == ["connection", "text", "backend", "durability"]
    assert findings[1].message == (
        "StoreAccessError: could not save: read-only; mount it for writing "
        "(not examined: round-trip, absence, compare-and-swap, listing)"
    )


def test_a_store_that_stops_answering_in_the_middle_cannot_be_reached_and_may_have_kept_the_entry():
    class Dying(MemoryCheckpointStore):
        async def load_versioned(self, key):
            if await super().load_versioned(key):
                raise StoreUnavailableError("the server is gone")

        async def delete(self, key):
            raise StoreUnavailableError("the server is gone")

    found = {finding.check: finding for finding in examined(Dying()) if finding.verdict != "note"}
    assert found["connection"].message.startswith("in the examination of text, StoreUnavailableError: the server is")
    assert found["clean-up"].verdict == "warning"
    assert re.fullmatch(r"dagonizer rm dagonizer-doctor-[0-9a-f]{16}", found["clean-up"].remedy)


def test_an_entry_that_may_not_be_deleted_is_said_to_be_left():
    class KeepingAll(Plain):
        async def delete(self, key):
            raise StoreAccessError("could not delete: forbidden")

    store = KeepingAll()
    found = {finding.check: finding for finding in examined(store)}
    assert found["round-trip"].verdict == "bad"
    assert found["clean-up"].verdict == "warning"
    (left,) = store.texts
    assert (
        found["clean-up"].message == f"an entry may be left under {left}: StoreAccessError: could not delete: forbidden"
    )


@pytest.mark.parametrize("method", ["load", "save", "delete", "aclose"])
def test_a_store_that_never_answers_ends_in_a_finding(method):
    async def hang(self, *_):
        await asyncio.Event().wait()

    store = type("Dead", (Plain,), {method: hang})()
    if method == "aclose":
        store = type("Dead", (MemoryCheckpointStore,), {method: hang})()
    found = [finding for finding in examined(store, limit=0.1) if finding.verdict == "bad"]
    assert len(found) == 1
    assert "no answer within 0.1 s" in found[0].message
    assert found[0].check == ("clean-up" if method == "aclose" else "connection")


def test_what_is_no_error_of_ours_is_named_by_class_and_place_for_its_text_may_be_secret():
    class Buggy(Plain):
        async def save(self, key, json):
            raise RuntimeError("refused for p4ssw0rd")

    finding = bad(Buggy())
    assert re.match(r"RuntimeError was raised \(test_doctor\.py, line \d+\)", finding.message)
    assert "dagonizer-conformance" in finding.remedy


def test_a_timeout_of_the_store_is_not_mistaken_for_ours():
    class Buggy(Plain):
        async def load(self, key):
            raise TimeoutError

    assert "TimeoutError was raised" in bad(Buggy()).message

    class BuggyListing(Plain):
        async def list_keys(self, prefix=""):
            raise TimeoutError
            yield prefix

    assert "TimeoutError was raised" in bad(BuggyListing()).message


def finding(check, verdict="good"):
    return Finding(check=check, verdict=verdict, message=f"{check} is {verdict}")


def test_the_findings_of_the_plugin_follow_and_durability_is_last():
    async def backend():
        yield finding("eviction", "warning")
        yield finding("durability")
        yield finding("role")

    assert examined(Plain(), backend)[-3:] == [finding("eviction", "warning"), finding("role"), finding("durability")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreAccessError("no permission"), "StoreAccessError: no permission"),
        (KeyError("p4ssw0rd"), "KeyError was raised"),
    ],
)
def test_a_plugin_that_fails_is_a_finding_after_those_before(error, told):
    async def backend():
        yield finding("eviction")
        raise error

    *_, first, failed, _ = examined(Plain(), backend)
    assert (first.check, failed.check, failed.verdict) == ("eviction", "backend", "bad")
    assert failed.message.startswith(told)


def test_a_hook_that_fails_or_hangs_is_a_finding():
    def broken():
        raise ValueError("p4ssw0rd")

    async def hanging():
        await asyncio.Event().wait()
        yield finding("role")

    assert examined(Plain(), broken)[-2].verdict == "bad"
    assert "no answer within" in examined(Plain(), hanging, limit=0.1)[-2].message


def test_what_the_store_has_said_is_not_said_again_for_the_backend():
    error = StoreUnavailableError("cannot connect")

    class Dead(Plain):
        async def load(self, key):
            raise error

    async def backend():
        yield finding("address")
        raise error

    assert [found.check for found in examined(Dead(), backend)] == ["connection", "address", "durability"]


def test_who_ends_the_examination_early_leaves_nothing_behind():
    store = MemoryCheckpointStore()

    async def main():
        async with contextlib.aclosing(examine_store(store)) as findings:
            async for found in findings:
                if found.check == "text":
                    assert store.size == 1
                    break
        assert store.size == 0

    asyncio.run(main())


def test_a_cancelled_examination_leaves_nothing_behind():
    saved = asyncio.Event()

    class Waiting(MemoryCheckpointStore):
        async def save(self, key, json):
            await super().save(key, json)
            saved.set()
            await asyncio.Event().wait()

    store = Waiting()

    async def collect():
        return [found async for found in examine_store(store)]

    async def main():
        task = asyncio.create_task(collect())
        await saved.wait()
        assert store.size == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.size == 0

    asyncio.run(main())


def test_memory_outlives_nothing():
    async def collect():
        return [found async for found in diagnose_store("memory://a")]

    findings = asyncio.run(collect())
    assert [found.check for found in findings] == [*CONTRACT, "durability"]
    assert findings[-1].verdict == "warning"


def test_a_wrong_url_is_no_finding():
    with pytest.raises(StoreURLError):
        diagnose_store("memory://a/path")
    with pytest.raises(UnknownSchemeError):
        diagnose_store("nope://a")
