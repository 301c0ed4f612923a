"""What only the administrator of a PostgreSQL server does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from dagonizer_test_servers.postgres import Postgres


async def administer(server: Postgres, *statements: str) -> None:
    """Execute ``statements`` as the superuser."""
    connection = await asyncpg.connect(server.url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
