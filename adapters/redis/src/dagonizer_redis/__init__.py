"""Checkpoints in Redis or Valkey: one plain string a key."""

from dagonizer_redis._config import RedisConfig
from dagonizer_redis._store import RedisCheckpointStore

__all__ = ["RedisCheckpointStore", "RedisConfig"]
