"""Checkpoints in a directory: one file a key, written atomically and durably."""

from dagonizer_file._config import FileConfig
from dagonizer_file._store import FileCheckpointStore

__all__ = ["FileCheckpointStore", "FileConfig"]
