"""Everything that is checked, by name: `nox` runs what a change must pass, `nox -l` lists the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "conformance"]

SUPPORTED = ("3.11", "3.12", "3.13")
PACKAGES = ("core", "adapters/file", "conformance")
SOURCES = tuple(f"{package}/src" for package in PACKAGES)


def _interpreter(version: str) -> str | None:
    """Return an interpreter of this version that really runs; the shims of pyenv exist for versions that do not."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


INTERPRETERS = {version: found for version in SUPPORTED if (found := _interpreter(version))}
# nox looks interpreters up by name.
os.environ["PATH"] = os.pathsep.join([*(str(Path(p).parent) for p in INTERPRETERS.values()), os.environ["PATH"]])


def _install(session: nox.Session, *groups: str) -> None:
    editables = [argument for package in PACKAGES for argument in ("-e", f"./{package}")]
    session.install(*editables, *(argument for group in groups for argument in ("--group", group)))


@nox.session(python=list(INTERPRETERS))
def tests(session: nox.Session) -> None:
    """Run the tests on every supported interpreter that is installed here, and measure coverage on the newest."""
    _install(session, "test")
    if session.python != list(INTERPRETERS)[-1]:
        # The mutants are tried on the newest, and by the session `conformance`.
        session.run("pytest", "--ignore=conformance/tests/test_mutants.py", *session.posargs)
        return
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
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
    session.run("mypy", *SOURCES)
    session.run("pyright")


@nox.session
def conformance(session: nox.Session) -> None:
    """Test the kit against its mutants and the reference store."""
    _install(session)
    session.run("dagonizer-conformance", "mutants", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Kill a run half-way and resume it."""
    session.install("-e", "./core[cli]", "-e", "./adapters/file")
    session.run("dagonizer", "demo", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build a wheel and an sdist of every distribution into dist/."""
    session.install("build")
    for package in PACKAGES:
        session.run("python", "-m", "build", "--outdir", "dist", package)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory."""
    _install(session, "test")
    session.run("python", "benchmarks/codec.py", *session.posargs)
