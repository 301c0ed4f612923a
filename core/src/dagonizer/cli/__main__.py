"""``python -m dagonizer.cli``: the command line without its script."""

from dagonizer.cli import main

main()
