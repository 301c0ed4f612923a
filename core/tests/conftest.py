import pytest

from dagonizer import memory


@pytest.fixture(autouse=True)
def fresh_named_memory(monkeypatch):
    monkeypatch.setattr(memory, "_entries_by_name", {})
