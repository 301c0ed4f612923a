"""Checkpoint persistence for DAGs, pipelines and agents."""

from dagonizer import durable
from dagonizer.checkpoint import Checkpoint, CheckpointData, RecalledCheckpoint
from dagonizer.contracts import (
    CheckpointStore,
    ClosableStore,
    SupportsClose,
    SupportsCompareAndSwap,
    SupportsListing,
    VersionedJson,
)
from dagonizer.dispatcher import Dagonizer, Execution, ExecutionResult, FunctionNode, Node, NodeContext, node
from dagonizer.errors import (
    DAGError,
    DagonizerError,
    DuplicateSchemeError,
    EncodeError,
    InvalidKeyError,
    InvalidValueError,
    StoreAccessError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
    StoreURLError,
    UnknownSchemeError,
    ValidationError,
    ValidationIssue,
)
from dagonizer.memory import MemoryCheckpointStore
from dagonizer.registry import open_store
from dagonizer.state import Lifecycle, NodeError, NodeStateBase, NodeWarning
from dagonizer.url import StoreURL

__all__ = [
    "Checkpoint",
    "CheckpointData",
    "CheckpointStore",
    "ClosableStore",
    "DAGError",
    "Dagonizer",
    "DagonizerError",
    "DuplicateSchemeError",
    "EncodeError",
    "Execution",
    "ExecutionResult",
    "FunctionNode",
    "InvalidKeyError",
    "InvalidValueError",
    "Lifecycle",
    "MemoryCheckpointStore",
    "Node",
    "NodeContext",
    "NodeError",
    "NodeStateBase",
    "NodeWarning",
    "RecalledCheckpoint",
    "StoreAccessError",
    "StoreClosedError",
    "StoreConflictError",
    "StoreCorruptedError",
    "StoreError",
    "StoreLimitError",
    "StoreURL",
    "StoreURLError",
    "StoreUnavailableError",
    "SupportsClose",
    "SupportsCompareAndSwap",
    "SupportsListing",
    "UnknownSchemeError",
    "ValidationError",
    "ValidationIssue",
    "VersionedJson",
    "durable",
    "node",
    "open_store",
]
