"""Start an adapter from the template beside this file: ``python new_adapter.py NAME FOLDER``.

NAME is the scheme of its URLs and a part of the names of its package and classes. FOLDER is made.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parent / "dagonizer-acme"
NAME = re.compile(r"[a-z][a-z0-9]*")
LEFT_OUT = re.compile(r"\..*|__pycache__|.*\.(egg-info|pyc)")


def main(arguments: list[str]) -> int:
    """Copy the template, with NAME for acme in all files and their names."""
    if len(arguments) != 2:  # noqa: PLR2004 - NAME and FOLDER
        return refuse("usage: python new_adapter.py NAME FOLDER")
    name, folder = arguments[0], Path(arguments[1])
    if not NAME.fullmatch(name):
        return refuse(f"{name!r} is no name for an adapter: lower-case letters and digits, a letter first")
    if folder.exists():
        return refuse(f"{folder} exists; name a folder that does not")
    copy(TEMPLATE, folder, name)
    print(f"{folder} is yours; three methods in src/dagonizer_{name}/_store.py are to be written")
    return 0


def copy(source: Path, target: Path, name: str) -> None:
    """Copy a file or a folder."""
    if source.is_file():
        target.write_text(renamed(source.read_text(encoding="utf-8"), name), encoding="utf-8")
        return
    target.mkdir(parents=True)
    for path in source.iterdir():
        if not LEFT_OUT.fullmatch(path.name):
            copy(path, target / renamed(path.name, name), name)


def renamed(text: str, name: str) -> str:
    """Return ``text`` about ``name``."""
    return text.replace("acme", name).replace("Acme", name.capitalize()).replace("ACME", name.upper())


def refuse(why: str) -> int:
    """Say what is wrong with the command."""
    print(why, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
