"""The pages that people read, and their blocks, each of which is executed as a step of its page's story.

In the order of the page, in a folder of its own and in one shell:

- a block with a title is written as a file of that name;
- `python` runs, warnings are errors, and prints what the `text` block after it says, or nothing;
- `console` is typed in where lines begin with `$ `; the others are what is printed, and `…` stands for anything;
- `sh` is commands only, which must succeed;
- `json` and `toml` are parsed, `sql` goes to the PostgreSQL server;
- `ini`, `yaml` and `markdown` are only shown, unless a title makes them files that a test starts servers with.

URLs of servers are replaced by those of the tests' own, and each page has a prefix or table of its own there. Where a
page makes no environment, what it installs by pip is only checked to exist, and the sessions that it gives nox as well.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "core/README.md", "conformance/README.md", "adapters/*/README.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern))
# Pages, and sections of pages, that other tests follow: in an environment that has what an outsider has, or in a clone.
TOLD_ELSEWHERE = {
    "CONTRIBUTING.md#Add an adapter": "test_template.py",
    "README.md": "test_documentation.py",
    "docs/test-your-own-store.md": "test_conformance_guide.py",
}

_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_URL = re.compile(
    r"(?P<scheme>redis\+cluster|redis\+sentinel|redis|postgresql|etcd\+http|etcd|s3)://(?P<hosts>[\w.:@,*-]*)"
    r"(?P<path>/[^\s\"'`?)]*)?(?P<query>\?[^\s\"'`)]*)?"
)
_SERVER = re.compile(f"CHECKPOINTS_URL|-m venv|{_URL.pattern}")
_ILLUSTRATIONS = {"text", "markdown", "ini", "yaml"}
# Ends the output of a step, and leaves its exit code to the next.
_MARK = "code=$?; printf '\\001%s\\002' $code; (exit $code)"


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    title: str | None
    body: str

    def __str__(self):
        return f"{self.page}, line {self.line}, ```{self.language}"


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(page, text.count("\n", 0, match.start()) + 1, *match.groups()) for match in _BLOCK.finditer(text)]
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), (
        f"{page} has a block that is not at the margin"
    )
    return found


def blocks_told_here(page):
    """Return the blocks that no other test executes."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()

    def section(block):
        return next((line[3:] for line in reversed(lines[: block.line]) if line.startswith("## ")), "")

    return [block for block in blocks(page) if f"{page}#{section(block)}" not in TOLD_ELSEWHERE]


def needs_servers(page):
    """Whether it takes real servers, or an environment that is made for it."""
    for block in blocks_told_here(page):
        lines = block.body.splitlines() if block.language in {"python", "console", "sh"} else []
        if block.language != "python":
            lines = [line for line in lines if nox_arguments(line) is None]
        if block.language == "sql" or any(_SERVER.search(line) for line in lines):
            return True
    return False


@dataclass
class Step:
    """A line or two of the shell, what they print (None: anything), and whether they must succeed."""

    source: str
    script: str
    output: str | None
    must_succeed: bool


class Story:
    """A page, told in ``folder``; ``servers`` gives URLs, ``wheels()`` the folder of this project's wheels."""

    def __init__(self, page, folder, servers, wheels=None):
        self.page = page
        self.folder = folder
        self.servers = servers
        self.wheels = wheels
        self.steps = []
        self.files = folder.parent / f"{folder.name}-steps"
        for path in (folder, self.files):
            path.mkdir()
        self.makes_an_environment = False

    def tell(self):
        rest = blocks_told_here(self.page)
        while rest:
            block = rest.pop(0)
            follows = rest[0].body if rest and rest[0].language == "text" and not rest[0].title else ""
            self.add(block, follows)
        if self.steps:
            self.run()

    def add(self, block, follows):
        match block.language:
            case _ if block.title:
                self.check(block)
                body = self.on_servers(block.body)
                self.step(str(block), f"cp {self.file(body)} {shlex.quote(block.title)}", "")
            case "python":
                self.step(str(block), f"PYTHONPATH=. python -W error {self.file(self.on_servers(block.body))}", follows)
            case "console" | "sh":
                self.add_commands(block)
            case "json" | "toml":
                self.check(block)
            case "sql":
                self.servers.execute(block.body)
            case language:
                assert language in _ILLUSTRATIONS, f"{block}: nobody executes this"

    def check(self, block):
        match block.language:
            case "python":
                compile(block.body, block.title, "exec")
            case "json":
                json.loads(block.body)
            case "toml":
                tomllib.loads(block.body)

    def add_commands(self, block):
        prompted = block.language == "console"
        if prompted:
            session = _COMMAND.findall(block.body)
            assert session, f"{block}: nothing is typed; without prompts it is ```sh"
        else:
            session = [(line, None) for line in block.body.replace("\\\n", "").splitlines() if line.strip()]
        for command, output in session:
            if nox_arguments(command) is not None:
                check_sessions(block, command)
            elif command.startswith("pip install") and not self.makes_an_environment:
                check_requirements(block, command)
            else:
                self.makes_an_environment |= "-m venv" in command
                self.step(
                    f"{block}\n$ {command}",
                    self.on_servers(command, ampersand="\\&"),
                    output,
                    must_succeed=not prompted,
                )

    def file(self, text):
        path = self.files / str(len(self.steps))
        path.write_text(text, encoding="utf-8")
        return shlex.quote(str(path))

    def step(self, source, script, output, *, must_succeed=True):
        self.steps.append(Step(source, script, output, must_succeed))

    def on_servers(self, text, *, ampersand="&"):
        def served(match):
            url = self.servers.url(self.page, **match.groupdict())
            return url if text[match.start() - 1] in "\"'" else url.replace("&", ampersand)

        return _URL.sub(served, text)

    def run(self):
        script = "exec 2>&1\n" + "".join(f"{step.script}\n{_MARK}\n" for step in self.steps)
        ran = subprocess.run(
            ["bash"],
            input=script,
            cwd=self.folder,
            env=self.variables(),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        outcomes = re.findall("(.*?)\1([0-9]+)\2", ran.stdout, re.DOTALL)
        assert len(outcomes) == len(self.steps), f"{self.page} ended early:\n{ran.stdout}"
        for step, (printed, code) in zip(self.steps, outcomes, strict=True):
            shown = f"{step.source}\nexit code {code}\n{printed}"
            assert not step.must_succeed or code == "0", shown
            if step.output is not None:
                pattern = ".*?".join(map(re.escape, step.output.split("…")))
                assert re.fullmatch(pattern, printed, re.DOTALL), shown

    def variables(self):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "COVERAGE", "DAGONIZER")) and name != "VIRTUAL_ENV"
        }
        adapter = re.match(r"adapters/(\w+)/", self.page)
        if adapter and adapter[1] != "file":
            kept["CHECKPOINTS_URL"] = self.on_servers(EXAMPLES[adapter[1]])
        return {
            **kept,
            **self.servers.variables(self.page),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "90",
            "PYTHONIOENCODING": "utf-8",
            "PYTHONUNBUFFERED": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_FIND_LINKS": str(self.wheels() if self.makes_an_environment else ""),
            "PIP_QUIET": "3",
        }


EXAMPLES = {
    "postgres": "postgresql://localhost/checkpoints",
    "redis": "redis://localhost",
    "s3": "s3://my-checkpoints",
    "etcd": "etcd://localhost",
}


class NoServers:
    """For pages that need none."""

    def variables(self, page):
        return {}


def nox_arguments(command):
    """Return what a command gives to nox, or None if it does not end in nox."""
    program, *arguments = shlex.split(command.split("&&")[-1], comments=True) or [""]
    return arguments if program.rpartition("/")[2] == "nox" else None


def check_sessions(block, command):
    """Check that the sessions of nox that it names exist."""
    sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name.partition("-")[0] for name in takewhile("--".__ne__, nox_arguments(command)) if name[0] != "-"]
    assert set(named) <= set(sessions), f"{block}: {command}"


def check_requirements(block, command):
    """Check that it installs distributions and extras that exist, or what is not this project's."""
    for requirement in shlex.split(command, comments=True)[2:]:
        name, _, extras = requirement.removesuffix("]").partition("[")
        assert re.fullmatch(r"[a-z-]+", name), f"{block}: {command}"
        if not name.startswith("dagonizer"):
            continue
        short = name.removeprefix("dagonizer").removeprefix("-")
        folder = {"": "core", "conformance": "conformance"}.get(short, f"adapters/{short}")
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        known = project.get("optional-dependencies", {})
        assert set(filter(None, extras.split(","))) <= set(known), f"{block}: {command}"
