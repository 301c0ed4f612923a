"""The documentation is executed, and the commands it shows are the ones that run."""

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from pages import PAGES, TOLD_ELSEWHERE, NoServers, Story, blocks, needs_servers

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


def test_the_two_commands_are_one_line_each():
    assert len(COMMANDS) == 2
    assert all("\n" not in command for command in COMMANDS)


def test_the_first_command_installs_what_there_is_and_shows_the_demo():
    environment, installation, demo = COMMANDS[0].split(" && ")
    assert environment == "python3 -m venv .venv"
    assert re.findall(r"(?<=-e )\S+", installation) == ['"core[cli]"', "adapters/file"]
    assert demo == ".venv/bin/dagonizer demo"


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


@pytest.mark.parametrize(("place", "test"), TOLD_ELSEWHERE.items())
def test_what_is_told_elsewhere_is(place, test):
    page, _, section = place.partition("#")
    if f"## {section}\n" in (ROOT / page).read_text(encoding="utf-8") or not section:
        assert (section or Path(page).name) in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="the sessions are of a POSIX shell")
@pytest.mark.parametrize("page", [p for p in PAGES if p not in TOLD_ELSEWHERE and not needs_servers(p)])
def test_the_blocks_of_a_page_do_what_it_says(page, tmp_path):
    Story(page, tmp_path / "folder", NoServers()).tell()


WRONG = (
    "```python\nprint(1)\n```\n\n```text\n2\n```\n",
    "```python\nprint(1)\n```\n",
    "```python\nraise SystemExit(1)\n```\n",
    "```console\n$ echo 1\n2\n```\n",
    "```console\nfalse\n```\n",
    "```console\npip install dagonizer-nothing\n```\n",
    '```console\n$ pip install "dagonizer[nothing]"\n```\n',
    "```console\n.venv/bin/nox -s nothing\n```\n",
    "```json\n{\n```\n",
    "```toml\n=\n```\n",
    '```python title="file.py"\n=\n```\n',
    "```rust\n```\n",
    "- ```python\n  ```\n",
)


@pytest.mark.parametrize("text", WRONG)
def test_a_page_that_is_wrong_is_found(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, ValueError, SyntaxError, FileNotFoundError)):
        Story(str(page), tmp_path / "folder", NoServers()).tell()


def test_the_schema_on_the_page_of_the_wire_format_is_the_one_that_is_shipped():
    (shown,) = [block.body for block in blocks("docs/wire-format.md") if block.title == "checkpoint-1.json"]
    assert shown == (files("dagonizer") / "schema" / "checkpoint-1.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_of_the_repository(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / link).exists(), link
