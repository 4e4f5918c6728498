"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis  # noqa: F401  (before the hook below: it looks through its own objects)
import pytest

if TYPE_CHECKING:
    from qa_hpo.finetune.inputs import Inputs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests take long: none is left for one worker alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Leave what the test files have imported out of all garbage collections: it is no garbage."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how much hostile input was tried, by kind."""
    passed = terminalreporter.stats.get("passed", [])
    tried = {
        name.removeprefix("hostile "): count
        for report in passed
        for name, count in report.user_properties
        if name.startswith("hostile ")
    }
    if tried:
        kinds = ", ".join(f"{count} {kind}" for kind, count in tried.items())
        terminalreporter.write_line(f"hostile inputs: {sum(tried.values())} ({kinds})")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real SQuAD files (QA_HPO_REAL_DATA, or beside the project)."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("QA_HPO_REAL_DATA", beside))
    if not (folder / "squad").is_dir():
        pytest.skip(f"no real data: {folder / 'squad'} is not there (see QA_HPO_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint ``base`` and the corpora of ``tiny.write_corpora``."""
    from qa_hpo.finetune.models import quiet
    from tiny import write_base, write_corpora

    quiet()
    folder = tmp_path_factory.mktemp("tiny, it's ünusual")
    write_base(folder / "base")
    write_corpora(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(tiny: Path) -> Inputs:
    """What runs on the tiny corpora share, with a cache of its own."""
    from qa_hpo.finetune.inputs import Inputs
    from qa_hpo.paths import CachePaths

    return Inputs(CachePaths(tiny / "cache"))
