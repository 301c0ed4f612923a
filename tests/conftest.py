import os
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def vectors():
    """The folder of the documents with an independent verdict; it lies beside the project, not in it."""
    folder = ROOT.parent / "shared" / "vectors"
    if not folder.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"{folder} is not here; set CI=true to make this a failure")
    return folder


DISTRIBUTIONS = (
    "core",
    "adapters/etcd",
    "adapters/file",
    "adapters/postgres",
    "adapters/redis",
    "adapters/s3",
    "conformance",
)


def run(*command, **options):
    ran = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A folder with a wheel and an sdist of every distribution."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--outdir", str(folder)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda project: run(*build, str(ROOT / project)), DISTRIBUTIONS))
    return folder


class Environment:
    """A virtual environment of its own, with nothing but what is installed by its methods."""

    def __init__(self, folder):
        venv.create(folder, with_pip=True)
        self.commands = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = str(self.commands / "python")

    def install(self, *arguments):
        run(self.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments)

    def __call__(self, code):
        return run(self.python, "-I", "-c", code).strip()


@pytest.fixture
def new_environment(tmp_path):
    return lambda: Environment(tmp_path / "environment")


@pytest.fixture(scope="session")
def store_urls(tmp_path_factory, postgres_server, redis_server, s3_server, etcd_server):
    """The URL of a store of every scheme that another process can share, on its server."""
    return {
        "file": f"file://{tmp_path_factory.mktemp('store')}",
        "postgresql": postgres_server.url,
        "redis": redis_server.url,
        "s3": s3_server.url,
        "etcd": etcd_server.url,
        "etcd+http": f"{etcd_server.url.replace('etcd://', 'etcd+http://')}/gateway",
    }
