"""Everything that is checked, by name: `nox` runs what a change must pass, `nox -l` lists the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "docs", "tests", "conformance"]

SUPPORTED = ("3.11", "3.12", "3.13")
ADAPTERS = ("etcd", "file", "postgres", "redis", "s3")
PACKAGES = ("core", *(f"adapters/{adapter}" for adapter in ADAPTERS), "conformance")
SOURCES = tuple(f"{package}/src" for package in PACKAGES)

# What `conformance` tests, by the name in its table.
HARNESSES = {
    "file": "adapters/file/tests/test_conformance.py:FileHarness",
    "postgres": "adapters/postgres/tests/test_conformance.py:PostgresHarness",
    "redis": "adapters/redis/tests/test_conformance.py:RedisHarness",
    "s3": "adapters/s3/tests/test_conformance.py:S3Harness",
    "etcd": "adapters/etcd/tests/test_conformance.py:EtcdHarness",
    "etcd-gateway": "adapters/etcd/tests/test_conformance.py:EtcdGatewayHarness",
}


def _interpreter(version: str) -> str | None:
    """Return an interpreter of this version that really runs; the shims of pyenv exist for versions that do not."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


INTERPRETERS = {version: found for version in SUPPORTED if (found := _interpreter(version))}
# A later one is better than none.
INTERPRETERS = INTERPRETERS or {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
OLDEST, NEWEST = next(iter(INTERPRETERS)), next(reversed(INTERPRETERS))
# nox looks interpreters up by name.
os.environ["PATH"] = os.pathsep.join([*(str(Path(p).parent) for p in INTERPRETERS.values()), os.environ["PATH"]])


def _install(session: nox.Session, *groups: str) -> None:
    folders = (*PACKAGES, "adapters/etcd[gateway]", "tests/servers")
    editables = [argument for folder in folders for argument in ("-e", f"./{folder}")]
    session.install(*editables, *(argument for group in groups for argument in ("--group", group)))


@nox.session(python=list(INTERPRETERS))
def tests(session: nox.Session) -> None:
    """Run the tests on every supported interpreter that is installed here, and measure coverage on the newest."""
    _install(session, "test")
    command = ["coverage", "run", "-m", "pytest"]
    # The session `conformance` runs them, on the oldest interpreter.
    left_out = [f"adapters/{adapter}/tests/test_conformance.py" for adapter in ADAPTERS]
    if session.python != NEWEST:
        # What the others find is the servers', the networks' or the installer's, whatever the interpreter is. The tests
        # of all stores together, the kit among them, stay.
        command = ["pytest", "--override-ini=testpaths=core/tests adapters/file/tests conformance/tests tests"]
        names = ("conformance_guide", "documentation_on_servers", "packaging", "template")
        left_out += ["tests/faults", *(f"tests/test_{name}.py" for name in names)]
    session.run(*command, *(f"--ignore={path}" for path in left_out), *session.posargs)
    if session.python == NEWEST:
        session.run("coverage", "report", "--skip-covered")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and which module imports which."""
    _install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, twice."""
    _install(session, "types", "test")
    session.run("mypy", *SOURCES, "template/dagonizer-acme/src")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, where every link must lead somewhere; `-- serve` shows it at once."""
    session.install("--group", "docs")
    # Of the theme: it says at every start that MkDocs 2 will do without it.
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session(python=OLDEST)
def conformance(session: nox.Session) -> None:
    """Test the kit against its mutants, then every adapter on a real server; the table is in conformance-report/."""
    _install(session, "test")
    session.run("dagonizer-conformance", "mutants")
    folder = Path("conformance-report")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, harness in HARNESSES.items():
        reports = [f"--report={kind}={folder / name}.{kind}" for kind in ("json", "html")]
        # The table tells what failed, and every store is to be in it.
        session.run("dagonizer-conformance", harness, *reports, *session.posargs, success_codes=range(4))
    reports = [str(folder / f"{name}.json") for name in HARNESSES]
    page = f"--html={folder / 'index.html'}"
    session.run("dagonizer-conformance", "compare", *reports, page, "--require=CRASH-SAFE")
    # What a cluster and a primary behind a sentinel earn, where not every case can be tried.
    session.run("pytest", "adapters/redis/tests/test_conformance.py", "-k", "not TestRedis")


@nox.session
def faults(session: nox.Session) -> None:
    """Kill servers and clients, break networks, fill disks, and count what is lost; the table is in faults-report/.

    `tests` does the same a few times only. A run is repeated by `nox -s faults -- --faults-seed=N`.
    """
    _install(session, "test")
    left_out = "--ignore=tests/faults/test_copy_killed.py"
    session.run("pytest", "tests/faults", left_out, "--faults=whole", "--faults-report=faults-report", *session.posargs)


@nox.session
def copies(session: nox.Session) -> None:
    """Kill `dagonizer copy` of 5,000 checkpoints half-way, to each server and back, and let it go on.

    `tests` does the same with a few hundred.
    """
    _install(session, "test")
    session.run("pytest", "tests/faults/test_copy_killed.py", "--faults=whole", *session.posargs)


@nox.session
def containers(session: nox.Session) -> None:
    """Run the adapters' tests on servers in containers; DAGONIZER_TEST_POSTGRES_IMAGE and so on name other images."""
    _install(session, "test", "containers")
    session.env["DAGONIZER_TEST_SERVERS"] = "containers"
    session.run("pytest", *(session.posargs or [f"adapters/{adapter}/tests" for adapter in ADAPTERS]))


@nox.session
def demo(session: nox.Session) -> None:
    """Kill a run half-way and resume it."""
    session.install("-e", "./core[cli]", *(f"-e./adapters/{adapter}" for adapter in ADAPTERS))
    session.run("dagonizer", "demo", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build a wheel and an sdist of every distribution into dist/."""
    session.install("build")
    for package in PACKAGES:
        session.run("python", "-m", "build", "--outdir", "dist", package)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory, and write what docs/performance.md shows into bench-report/; takes an hour."""
    _install(session, "test", "bench")
    for script in ("codec", "compare", "growth"):
        session.run("python", f"benchmarks/{script}.py", "--report", f"bench-report/{script}.json")
    session.run("python", "benchmarks/report.py", *session.posargs)
