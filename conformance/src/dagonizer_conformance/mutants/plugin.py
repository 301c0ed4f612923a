"""The plugin by which another process opens the reference or a mutant, at the backend that this process started."""

from __future__ import annotations

# msgspec reads the annotations at run time, so Annotated cannot move under TYPE_CHECKING.
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from dagonizer.errors import StoreURLError
from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer.url import parameter, parameters_of
from dagonizer_conformance.mutants.reference import SCHEME, ReferenceStore, registered_stores

if TYPE_CHECKING:
    from dagonizer.url import StoreURL


@dataclass(frozen=True, kw_only=True)
class _Config:
    store: str = parameter("", "the class of the catalogue, instead of the reference")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(2.0, "seconds to wait for the backend")


_PARAMETERS = parameters_of(_Config)


@hookimpl
def dagonizer_describe_store() -> StoreDescription:
    """Describe the URLs."""
    summary = "the conformance kit's own backend, for its tests"
    return StoreDescription(schemes=(SCHEME,), summary=summary, parameters=_PARAMETERS)


@hookimpl
def dagonizer_open_store(url: StoreURL) -> ReferenceStore:
    """Open ``dgzconf-reference://127.0.0.1:port/namespace``."""
    config = _Config(**url.read_parameters(_PARAMETERS))
    host, port = url.hosts[0] if len(url.hosts) == 1 else ("", None)
    if port is None or not url.path.strip("/") or url.username is not None:
        raise StoreURLError(f"{url}: a reference URL is {SCHEME}://host:port/namespace")
    store = registered_stores().get(config.store) if config.store else ReferenceStore
    if store is None:
        raise StoreURLError(f"{url}: the catalogue has no store {config.store!r}")
    return store(host, port, url.path.removeprefix("/"), timeout=config.timeout)
