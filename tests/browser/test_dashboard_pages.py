"""The dashboard as people see it: its pages in a real browser, on a study that is over."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browser_helpers import (
    click,
    console,
    downloaded,
    element,
    wait_for,
    wait_until,
    wait_until_gone,
)
from plotly import graph_objects
from selenium.webdriver import Chrome

from dashboard_process import FILES, DashboardProcess, write_study
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import load_study

NOTE = """# What was found

Start **v1** is [the best](https://example.org/) <script>document.title = "run"</script>

| start | best F1 |
|-------|---------|
| v1    | 52      |
"""


@dataclass(frozen=True)
class Shown:
    """A dashboard, and the database that it shows."""

    dashboard: DashboardProcess
    database: str
    artifacts: dict[str, str]

    def name(self) -> str:
        storage = open_storage(self.database, create=False)
        try:
            return str(storage.rdb.get_study_name_from_id(1))
        finally:
            storage.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The dashboard on a finished study with a note, plots and artifacts."""
    folder = tmp_path_factory.mktemp("shown")
    database = f"sqlite:///{folder}/study.db"
    artifacts = dict(zip(FILES, write_study(database, folder / "artifacts"), strict=True))
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard
    storage = open_storage(database, create=False)
    study = load_study("demo", storage).optuna_study
    optuna_dashboard.save_note(study, NOTE)
    # NumPy's arrays are stored as base64.
    line = graph_objects.Figure(
        graph_objects.Scatter(x=np.arange(5), y=np.array([1.0, 3, 2, 5, 4]))
    )
    line.update_layout(title="A line of arrays")
    optuna_dashboard.save_plotly_graph_object(study, line, graph_object_id="line")
    map_ = graph_objects.Figure(graph_objects.Heatmap(z=np.arange(6.0).reshape(2, 3)))
    map_.update_layout(title="A map of arrays")
    optuna_dashboard.save_plotly_graph_object(study, map_, graph_object_id="map")
    storage.close()
    with DashboardProcess(database, folder / "log") as dashboard:
        yield Shown(dashboard, database, artifacts)
        assert dashboard.end(signal.SIGTERM) == (0, "", "")


@pytest.fixture(autouse=True)
def calm(browser: Chrome) -> Iterator[None]:
    """No script of a page complains, and none is kept from what it needs."""
    console(browser)
    yield
    assert console(browser) == []


def test_the_studys_page_shows_its_plots(browser: Chrome, shown: Shown):
    browser.get(shown.dashboard.page)
    wait_for(browser, "demo (id=1)", "Best Trial (number=2)", "A line of arrays", "A map of arrays")
    # What plotly has drawn, as numbers.
    drawn = browser.execute_script(
        "const drawn = (name) => document.getElementById('user-defined-plot:' + name).calcdata;"
        "const line = drawn('line')[0].map(point => [point.x, point.y]);"
        "const map = Array.from(drawn('map')[0][0].z).map(row => Array.from(row));"
        "return {line, map}"
    )
    assert drawn["line"] == [[0, 1], [1, 3], [2, 2], [3, 5], [4, 4]]
    assert drawn["map"] == [[0, 1, 2], [3, 4, 5]]


def test_the_note_is_shown_without_its_scripts(browser: Chrome, shown: Shown):
    browser.get(f"{shown.dashboard.page}/note")
    wait_for(browser, "What was found", "Start v1 is the best")
    assert element(browser, "table td", text="52")
    assert element(browser, "a[href='https://example.org/']").text == "the best"
    assert browser.title == "Optuna Dashboard"


def test_a_trials_artifacts(browser: Chrome, shown: Shown, downloads: Path):
    browser.get(f"{shown.dashboard.page}/trials?numbers=0")
    wait_for(browser, "Trial 0 (trial_id=1)", *FILES)
    for name, (_, content) in FILES.items():
        click(browser, f"a[download='{name}']")
        assert downloaded(downloads, name) == content
    image = element(browser, "img[src^='/artifacts/']")
    wait_until(lambda: image.get_property("complete"), "the image is not loaded")
    assert (image.get_property("naturalWidth"), image.get_property("naturalHeight")) == (7, 5)
    click(browser, "[aria-label='show artifact table']")
    wait_for(browser, "question", "Which town?", "Port7")


def test_an_artifact_that_is_a_page_runs_no_script(browser: Chrome, shown: Shown):
    browser.get(shown.dashboard.url(shown.artifacts["page.html"]))
    wait_for(browser, "A page.")
    assert browser.title == "calm"
    [complaint] = console(browser)
    assert "Blocked script execution" in complaint


def test_its_buttons_cannot_delete_or_rename_the_study(browser: Chrome, shown: Shown):
    browser.get(shown.dashboard.url("/dashboard"))
    click(browser, "[aria-label='delete study']")
    click(browser, "[role=dialog] label", text="Remove associated")  # artifacts
    click(browser, "[role=dialog] button", text="YES")
    wait_for(browser, "Failed to delete study (id=1)", "1. demo")
    wait_until_gone(browser, "[role=dialog]")
    click(browser, "[aria-label='rename study']")
    element(browser, "[role=dialog] input").send_keys("another name")
    click(browser, "[role=dialog] button", text="RENAME")
    wait_for(browser, "Failed to rename study (id=1)", "1. demo")
    for line, path in zip(console(browser), ("studies/1", "studies/1/rename"), strict=True):
        assert f"/api/{path} " in line
        assert "405 (Method Not Allowed)" in line
    assert shown.name() == "demo"
    for name, path in shown.artifacts.items():
        assert shown.dashboard.ask(path).body == FILES[name][1]
