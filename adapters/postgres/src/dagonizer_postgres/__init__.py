"""Checkpoints in a PostgreSQL table, one row a key."""

from dagonizer_postgres._config import PostgresConfig
from dagonizer_postgres._store import PostgresCheckpointStore

__all__ = ["PostgresCheckpointStore", "PostgresConfig"]
