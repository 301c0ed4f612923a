"""An outsider's store, as the guide tells it: every file is written, every command run, in an environment of its own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[1] / "docs" / "test-your-own-store.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', GUIDE, re.DOTALL)
BROKEN = "SET json = substr(excluded.json, 1, 100000)"


class Outsider:
    """Somebody else's folder, with an environment in which only what the guide says is installed."""

    def __init__(self, folder, environment, dist):
        self.folder = folder
        self.environment = environment
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))},
            "PATH": f"{environment.commands}{os.pathsep}{os.environ['PATH']}",
            "PIP_FIND_LINKS": str(dist),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, command):
        ran = subprocess.run(
            shlex.split(command), cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False
        )
        return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def outsider(tmp_path, new_environment, dist):
    folder = tmp_path / "acme"
    folder.mkdir()
    return Outsider(folder, new_environment(), dist)


def words(text):
    return " ".join(text.split())


def follow(outsider):
    """Do what the guide says, and check that it comes out as it says."""
    for language, title, body in BLOCKS:
        if title:
            (outsider.folder / title).write_text(body, encoding="utf-8")
        elif language == "console":
            for command in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                line, *expected = command.strip().splitlines()
                code, output = outsider.run(line)
                for text in expected:
                    assert words(text) in words(output), f"$ {line}\n{output}"
                assert code == (1 if "FAIL" in output else 0), f"$ {line}\n{output}"


def test_the_guide_is_true_and_a_planted_fault_is_found_and_reproduced(outsider):
    follow(outsider)

    store = outsider.folder / "acme_store.py"
    store.write_text(store.read_text().replace("SET json = excluded.json", BROKEN))
    code, output = outsider.run("pip install --force-reinstall --no-deps .")
    assert code == 0, output
    code, output = outsider.run("dagonizer-conformance acme:checkpoints.db --budget smoke -k value")
    assert code == 1, output
    (reproduction,) = [
        line.strip()
        for line in output.splitlines()
        if line.strip().startswith("dagonizer-conformance") and "shrink" in line
    ]
    code, again = outsider.run(reproduction)
    assert code == 1, again
    assert "value.shrink-and-grow" in again
    assert "cut off" in again or "differs from what was saved" in again

    code, output = outsider.run("pytest -q -k value_shrink_and_grow")
    assert code == 1, output
    assert "1 failed" in output


def test_the_python_of_the_guide_that_has_no_file_runs():
    sources = [body for language, title, body in BLOCKS if language == "python" and not title]
    assert len(sources) == 1
    exec(sources[0], {})


def test_cases_of_another_distribution_are_run(tmp_path, monkeypatch):
    (source,) = [body for _, title, body in BLOCKS if title == "acme_cases.py"]
    (tmp_path / "acme_cases.py").write_text(source)
    information = tmp_path / "dagonizer_acme_cases-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: dagonizer-acme-cases\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[dagonizer.conformance]\nacme = acme_cases\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [
            Path(sys.executable).with_name("dagonizer-conformance"),
            "memory://",
            "-k",
            "acme",
            "--budget",
            "smoke",
            "--json",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"id": "acme.long-names"' in ran.stdout
