"""Checkpoints in S3 and what speaks its protocol: one object a key."""

from dagonizer_s3._config import S3Config
from dagonizer_s3._store import S3CheckpointStore

__all__ = ["S3CheckpointStore", "S3Config"]
