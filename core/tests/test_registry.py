import asyncio
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

import dagonizer
from dagonizer import (
    ClosableStore,
    DagonizerError,
    DuplicateSchemeError,
    MemoryCheckpointStore,
    StoreClosedError,
    StoreError,
    StoreURL,
    StoreURLError,
    SupportsCompareAndSwap,
    SupportsListing,
    UnknownSchemeError,
    errors,
    open_store,
    registry,
)

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
PUBLIC_NAMES = {
    "Checkpoint",
    "CheckpointData",
    "CheckpointStore",
    "ClosableStore",
    "Dagonizer",
    "Execution",
    "ExecutionResult",
    "FunctionNode",
    "Lifecycle",
    "MemoryCheckpointStore",
    "Node",
    "NodeContext",
    "NodeError",
    "NodeStateBase",
    "NodeWarning",
    "RecalledCheckpoint",
    "StoreURL",
    "SupportsClose",
    "SupportsCompareAndSwap",
    "SupportsListing",
    "ValidationIssue",
    "VersionedJson",
    "durable",
    "node",
    "open_store",
}

PLUGIN = """
from dagonizer.hookspecs import StoreDescription, hookimpl

class {name}Store:
    def __init__(self): self.texts = {{}}
    async def save(self, key, json): self.texts[key] = json
    async def load(self, key): return self.texts.get(key)
    async def delete(self, key): self.texts.pop(key, None)
    async def list_keys(self, prefix=""):
        for key in self.texts: yield key

@hookimpl
def dagonizer_describe_store(): return StoreDescription(schemes=("{name}",), summary="a test's")

@hookimpl
def dagonizer_open_store(url): return {opened}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay out a distribution as an installer does, so that importlib.metadata finds its entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(distribution, module, source, *schemes):
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        points = "".join(f"{scheme} = {module}\n" for scheme in schemes)
        (info / "entry_points.txt").write_text(f"[dagonizer.stores]\n{points}")
        importlib.invalidate_caches()

    yield make
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


def test_a_scheme_is_opened_by_its_plugin_alone(install):
    install("acme-dist", "acme_one", PLUGIN.format(name="acme", opened="acmeStore()"), "acme", "acmes")
    install("other-dist", "acme_other", "raise SystemError('imported')", "other")

    async def scenario():
        for url in ("acme://h/p", "acmes://h/p"):
            async with open_store(url) as store:
                await store.save("k", "v")
                assert await store.load("k") == "v"
                assert isinstance(store, ClosableStore)
                assert isinstance(store, SupportsListing)
                assert not isinstance(store, SupportsCompareAndSwap)
                assert [key async for key in store.list_keys()] == ["k"]

    asyncio.run(scenario())
    assert "acme_other" not in sys.modules


def test_a_store_of_three_methods_ends_when_it_is_closed(install):
    install("acme-dist", "acme_one", PLUGIN.format(name="acme", opened="acmeStore()"), "acme")

    async def scenario():
        async with open_store("acme://h") as store:
            await store.save("k", "v")
        await store.aclose()
        for call in (lambda: store.save("k", "v"), lambda: store.load("k"), lambda: store.delete("k"), store.list_keys):
            with pytest.raises(StoreClosedError, match="acmeStore is closed"):
                await call()

    asyncio.run(scenario())


def test_what_is_installed_is_looked_up_once_and_again_when_a_scheme_is_missing(install, monkeypatch):
    scans = []
    entry_points = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **group: scans.append(group) or entry_points(**group)
    )
    with pytest.raises(UnknownSchemeError):
        open_store("acme://h")
    del scans[:]
    install("acme-dist", "acme_one", PLUGIN.format(name="acme", opened="acmeStore()"), "acme")
    for _ in range(3):
        open_store("acme://h")
    assert len(scans) == 1


def test_a_plugin_says_which_hosts_its_store_connects_to(install):
    source = PLUGIN.format(name="acme", opened="acmeStore()")
    install("plain-dist", "acme_plain", source, "plain")
    source += "\n@hookimpl\ndef dagonizer_store_endpoints(url): return [(url.path, 7)]"
    install("other-dist", "acme_other", source, "other")
    assert registry.store_endpoints("plain://a:1,b/p") == (("a", 1), ("b", None))
    assert registry.store_endpoints("other://a:1/p") == (("/p", 7),)
    assert registry.store_endpoints("memory://name") == ()
    assert registry.installed_schemes() >= {"plain", "other", "memory"}


def test_two_distributions_that_claim_a_scheme_are_both_named(install):
    install("dist-a", "acme_a", PLUGIN.format(name="acme", opened="acmeStore()"), "acme")
    install("dist-b", "acme_b", PLUGIN.format(name="acme", opened="acmeStore()"), "acme")
    with pytest.raises(DuplicateSchemeError, match=r"dist-[ab].*dist-[ab]") as caught:
        open_store("acme://h")
    assert "dist-a" in str(caught.value)
    assert "dist-b" in str(caught.value)
    assert "dist-a" in next(listing.error for listing in registry.list_stores() if listing.scheme == "acme")


@pytest.mark.parametrize(
    "source",
    [
        "import no_such_module",
        "1 / 0",
        "from dagonizer.hookspecs import hookimpl\n@hookimpl\ndef dagonizer_open_store(u): ...",
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_and_others_work(install, source):
    install("broken-dist", "acme_broken", source, "broken")
    with pytest.raises(StoreError, match="'acme_broken' of broken-dist"):
        open_store("broken://h")
    listed = {listing.scheme: listing for listing in registry.list_stores()}
    assert "acme_broken" in listed["broken"].error
    assert listed["memory"].description.schemes == ("memory",)
    assert isinstance(open_store("memory://x"), MemoryCheckpointStore)


def test_a_plugin_that_opens_nothing_is_named(install):
    install("lazy-dist", "acme_lazy", PLUGIN.format(name="lazy", opened="None"), "lazy")
    with pytest.raises(StoreError, match="'acme_lazy' of lazy-dist opened no store for lazy://h"):
        open_store("lazy://h")


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", tuple)
    with pytest.raises(UnknownSchemeError, match=r'pip install "dagonizer\[s3\]"'):
        open_store("s3://bucket/prefix")


def test_an_unknown_scheme_lists_what_is_there():
    with pytest.raises(UnknownSchemeError, match=r"unknown scheme 'nope'; installed: .*memory"):
        open_store("nope://h")


def test_every_scheme_of_an_extra_names_an_extra_that_exists():
    metadata = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert set(registry._EXTRA_BY_SCHEME.values()) < set(metadata["project"]["optional-dependencies"])


@pytest.mark.parametrize("url", ["memory://a?x=1", "memory://a/b", "memory://u@a", "memory://a,b", "memory://a:1"])
def test_a_memory_url_has_a_name_only(url):
    with pytest.raises(StoreURLError):
        open_store(url)


def test_a_parsed_url_opens_the_same_store():
    async def scenario():
        async with open_store("memory://n") as one, open_store(StoreURL.parse("memory://n")) as two:
            await one.save("k", "v")
            assert await two.load("k") == "v"

    asyncio.run(scenario())


def test_the_public_names_are_pinned():
    assert set(dagonizer.__all__) == PUBLIC_NAMES | {cls.__name__ for cls in ERRORS}
    assert all(hasattr(dagonizer, name) for name in dagonizer.__all__)


def test_every_error_is_in_the_tree_and_public():
    for cls in ERRORS:
        assert issubclass(cls, DagonizerError)
        assert getattr(dagonizer, cls.__name__) is cls
        assert cls.__name__ in errors.__doc__
