"""Checkpoints in Acme."""

from dagonizer_acme._config import AcmeConfig
from dagonizer_acme._store import AcmeCheckpointStore

__all__ = ["AcmeCheckpointStore", "AcmeConfig"]
