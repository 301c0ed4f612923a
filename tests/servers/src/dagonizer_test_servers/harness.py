"""What the conformance harnesses of all adapters have in common: a shared server, which is really killed."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from dagonizer import open_store
from dagonizer_conformance import Capability, Harness
from dagonizer_conformance.outcomes import Unverified
from dagonizer_test_servers.shared import NoServerError, Server, shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagonizer import CheckpointStore


class ServerHarness(Harness):
    """A store on the shared server of its ``kind``. A run that leaves an entry behind fails in the end."""

    kind: ClassVar[str]
    capabilities = frozenset(Capability)

    @property
    def server(self) -> Server:
        """The server."""
        return shared(self.kind)

    async def start(self) -> None:
        """Start the server."""
        await asyncio.to_thread(shared, self.kind)

    async def stop(self) -> None:
        """Look at what is left."""
        left = await self.entries()
        assert not left, f"the run has left {len(left)} entries, such as {left[0]!r}"

    @abstractmethod
    async def entries(self) -> Sequence[object]:
        """Return what is stored in the namespaces of the kit, read around the store."""

    @abstractmethod
    def address(self) -> str:
        """Return a URL with one host and port, ``{namespace}``, and a timeout below the patience of the kit."""

    async def open(self, namespace: str) -> CheckpointStore:
        """Open the store by its address."""
        return open_store(self.address().replace("{namespace}", quote(namespace, safe="")))

    async def kill(self) -> None:
        """Kill the server and start it again."""
        await self.down()
        await self.up()

    async def down(self) -> None:
        """Kill the server."""
        try:
            await asyncio.to_thread(self.server.down)
        except NoServerError as exc:
            raise Unverified(str(exc)) from exc

    async def up(self) -> None:
        """Start the server again."""
        await asyncio.to_thread(self.server.up)
