"""What workers put into the dashboard as they train: notes, plots, artifacts, seen in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser_helpers import click, console, downloaded, element, wait_for
from selenium.webdriver import Chrome

from dashboard_process import DashboardProcess
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.results.leaderboard import Leaderboard, leaderboard
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.workers.worker import work
from tiny import study_file


@dataclass(frozen=True)
class Trained:
    """A finished study and its dashboard."""

    dashboard: DashboardProcess
    board: Leaderboard


@pytest.fixture(scope="module")
def trained(
    tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    database = f"sqlite:///{folder}/study.db"
    file = study_file(
        tiny,
        folder / "artifacts",
        study={"name": "demo"},
        budget={"trials": 3},
        artifacts={"keep": 2},
        baseline=[{"name": "notebook", "learning_rate": 5e-3}],
    )
    storage = open_storage(database, create=True)
    joined = create_study(file, storage, fingerprints=fingerprints(file, inputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QA_HPO_CACHE", str(inputs.cache.folder))
        work("demo", database, label="a worker", cpu_threads=1)
    board = leaderboard(joined)
    storage.close()
    with DashboardProcess(database, folder / "log") as dashboard:
        yield Trained(dashboard, board)


@pytest.fixture(autouse=True)
def calm(browser: Chrome) -> Iterator[None]:
    """No script of a page complains."""
    console(browser)
    yield
    assert console(browser) == []


def test_the_studys_note_tells_who_leads_and_leads_to_it(browser: Chrome, trained: Trained):
    winner = trained.board.winner
    assert winner is not None
    browser.get(f"{trained.dashboard.page}/note")
    text = wait_for(browser, f"{winner.best_f1:.2f}", "PRUNED", "COMPLETE")
    assert "minus the validation loss" in text
    link = element(browser, f"a[href*='numbers={winner.number}']")
    browser.get(link.get_attribute("href"))
    wait_for(browser, f"Trial {winner.number} (trial_id=", "a worker")


def test_the_studys_plots_are_drawn(browser: Chrome, trained: Trained):
    browser.get(trained.dashboard.page)
    wait_for(browser, "demo (id=1)", "alidation loss")
    for name in ("validation-loss", "f1-by-start", "f1-by-threshold"):
        drawn = element(browser, f"[id='user-defined-plot:{name}'] .main-svg")
        assert drawn.size["width"] > 100, name
    # The losses that are drawn are those of the leaderboard.
    drawn_losses = browser.execute_script(
        "return document.getElementById('user-defined-plot:validation-loss').calcdata"
        ".flatMap(trace => trace.map(point => point.y)).filter(y => typeof y === 'number')"
    )
    for row in trained.board.trials:
        for loss in row.val_loss:
            assert min(abs(loss - y) for y in drawn_losses) < 0.002 * loss


def test_a_trials_note_and_its_artifacts(browser: Chrome, trained: Trained, downloads: Path):
    winner = trained.board.winner
    assert winner is not None
    browser.get(f"{trained.dashboard.page}/trials?numbers={winner.number}")
    predictions = f"predictions-epoch-{winner.best_epoch}.json"
    checkpoint = f"checkpoint-epoch-{winner.best_epoch}.tar"
    wait_for(browser, "epochs.csv", predictions, checkpoint, f"{winner.best_f1:.2f}")
    click(browser, f"a[download='{predictions}']")
    answers = json.loads(downloaded(downloads, predictions))
    assert len(answers) == 60
    assert any(answers.values())
    click(browser, "a[download='epochs.csv']")
    table = downloaded(downloads, "epochs.csv").decode().splitlines()
    assert len(table) == 1 + len(winner.val_loss)
