"""The documentation is executed, and the commands it shows are the ones that run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
DISTRIBUTIONS = ["core", "conformance", *(path.parent.relative_to(ROOT) for path in ROOT.glob("adapters/*/README.md"))]
COMMANDS = re.findall(r"```console\n(.*?)\n```", README, re.DOTALL)


def test_every_python_block_of_the_readme_has_its_output_beside_it():
    assert len(EXAMPLES) == README.count("```python") == 4


@pytest.mark.parametrize(("source", "output"), EXAMPLES)
def test_an_example_prints_what_the_readme_says(source, output):
    ran = subprocess.run([sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == (output, "")


def test_the_example_of_the_file_adapter_runs(tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "adapters/file/README.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-W", "error", "-c", source], cwd=tmp_path, check=True)
    assert (tmp_path / "checkpoints").is_dir()


def test_the_two_commands_are_one_line_each():
    assert len(COMMANDS) == 2
    assert all("\n" not in command for command in COMMANDS)


def test_ci_runs_the_test_command_as_it_stands():
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_a_distribution_has_a_readme_and_a_license(folder):
    assert (ROOT / folder / "README.md").read_text(encoding="utf-8").startswith("# dagonizer")
    assert (ROOT / folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_python_of_the_contributing_guide_is_a_plugin():
    source = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    namespace = {}
    exec(source, namespace)
    assert namespace["dagonizer_describe_store"]().schemes == ("acme",)


# Ends the output of a command, and leaves its exit code to the next.
MARK = "code=$?; printf '\\001'; (exit $code)"


@pytest.mark.skipif(os.name == "nt", reason="the sessions are of a POSIX shell")
def test_the_commands_of_the_page_on_the_command_line_print_what_it_says(tmp_path):
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name, source in re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.DOTALL):
        (tmp_path / name).write_text(source)
    console = "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL))
    session = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    script = "exec 2>&1\n" + "".join(f"{command}\n{MARK}\n" for command, _ in session)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "90", "PYTHONIOENCODING": "utf-8"}
    environment.pop("DAGONIZER_STORE", None)
    ran = subprocess.run(
        ["bash"], input=script, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert len(session) == 23
    *outputs, rest = ran.stdout.split("\1")
    assert (len(outputs), rest) == (len(session), "")
    for (command, expected), printed in zip(session, outputs, strict=True):
        pattern = ".*?".join(map(re.escape, expected.split("…")))
        assert re.fullmatch(pattern, printed, re.DOTALL), f"$ {command}\n{printed}"
