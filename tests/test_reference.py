"""The reference has every public name, and each says what it is."""

import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PACKAGES = (
    "dagonizer",
    "dagonizer.blocking",
    "dagonizer.observability",
    "dagonizer_conformance",
    "dagonizer_etcd",
    "dagonizer_file",
    "dagonizer_postgres",
    "dagonizer_redis",
    "dagonizer_s3",
)


def found(name):
    """Return the module, or what is in one, that has this dotted name."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), attribute)


def contents(thing):
    """Return what a directive shows: a module's own public names, or the thing itself."""
    if not isinstance(thing, ModuleType):
        return [thing]
    names = getattr(thing, "__all__", [name for name in vars(thing) if not name.startswith("_")])
    values = [getattr(thing, name) for name in names]
    return [value for value in values if getattr(value, "__module__", None) == thing.__name__ and callable(value)]


DIRECTIVES = sorted(
    {name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)}
)
SHOWN = {f"{thing.__module__}.{thing.__qualname__}": thing for name in DIRECTIVES for thing in contents(found(name))}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    module = importlib.import_module(package)
    values = {name: getattr(module, name) for name in module.__all__}
    missing = [
        name
        for name, value in values.items()
        if not isinstance(value, ModuleType) and callable(value) and value not in SHOWN.values() and name != "hookimpl"
    ]
    assert missing == []


def is_said(thing):
    """Whether it has a docstring of its own that begins with a sentence; dataclasses are given their signature."""
    sentence = inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0]
    return bool(re.fullmatch(r"[A-Z0-9`].*[.:]", sentence, re.DOTALL)) and "(*," not in sentence


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_reference_shows_says_what_it_is(name):
    assert is_said(SHOWN[name])


KINDS = (staticmethod, classmethod, property, FunctionType)
METHODS = {
    f"{name}.{method}": value
    for name, thing in SHOWN.items()
    if isinstance(thing, type)
    for method, value in vars(thing).items()
    if not method.startswith("_") and isinstance(value, KINDS)
}


@pytest.mark.parametrize("name", METHODS)
def test_every_public_method_says_what_it_does(name):
    assert is_said(METHODS[name])
