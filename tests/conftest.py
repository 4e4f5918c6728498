"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real SQuAD files (QA_HPO_REAL_DATA, or beside the project)."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("QA_HPO_REAL_DATA", beside))
    if not (folder / "squad").is_dir():
        pytest.skip(f"no real data: {folder / 'squad'} is not there (see QA_HPO_REAL_DATA)")
    return folder
