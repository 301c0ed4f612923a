"""Checkpoints in etcd, over gRPC or the JSON gateway, of any size."""

from dagonizer_etcd._config import EtcdConfig
from dagonizer_etcd._store import EtcdCheckpointStore

__all__ = ["EtcdCheckpointStore", "EtcdConfig"]
