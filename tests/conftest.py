import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def vectors():
    """The folder of the documents with an independent verdict; it lies beside the project, not in it."""
    folder = ROOT.parent / "shared" / "vectors"
    if not folder.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"{folder} is not here; set CI=true to make this a failure")
    return folder
