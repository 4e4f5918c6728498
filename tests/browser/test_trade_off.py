"""A search for two objectives with two workers: its front on every page, an export by rule."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import element, wait_for
from selenium.webdriver import Chrome

from cli_helpers import run_cli
from dashboard_process import DashboardProcess
from qa_hpo.config import to_toml
from tiny import squad, study_file

TRIALS = 4


@dataclass(frozen=True)
class Searched:
    """A study that two workers have finished, and what ``qa-hpo run`` printed."""

    folder: Path
    url: str
    printed: str
    board: dict[str, Any]

    @property
    def front(self) -> set[int]:
        """Its front, each trial compared with every other one."""
        points = {
            row["number"]: (row["best_f1"], row["old_task_f1"]) for row in self.board["trials"]
        }
        return {
            number
            for number, (f1, old) in points.items()
            if not any(a >= f1 and b >= old and (a > f1 or b > old) for a, b in points.values())
        }


@pytest.fixture(scope="module")
def searched(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("trade-off")
    for name, questions, seed in (("train-v1", 160, 31), ("old", 30, 32)):
        corpus = squad(questions, seed=seed, impossible=0.0)
        (folder / f"{name}.json").write_text(json.dumps(corpus))
    recipe = {"from": "base", "train": str(folder / "train-v1.json"), "epochs": 4}
    file = study_file(
        tiny,
        folder / "artifacts",
        study={"name": "demo", "objectives": ["best_f1", "old_task_f1"]},
        starts={"v1": {**recipe, "learning_rate": 1e-2}},
        search={
            "start": {"value": "v1"},
            "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
            "retention": {
                "method": ["none", "replay", "ewc", "lora"],
                "strength": {"replay": {"low": 0.1, "high": 1.0}, "ewc": 100.0},
            },
        },
        # pruning across trials is off where the file is silent
        pruning={"across": "none", "patience": 2},
        evaluation={"old_task": str(folder / "old.json")},
        budget={"trials": TRIALS},
        baseline=[{"name": "notebook", "learning_rate": 5e-3, "retention.method": "none"}],
    )
    (folder / "study.toml").write_text(to_toml(file), encoding="utf-8")
    url = f"sqlite:///{folder}/study.db"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "qa_hpo", "run", "study.toml"),
            *("--workers", "2", "--storage", url),
        ],
        cwd=folder,
        env={**os.environ, "QA_HPO_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    board = run_cli("leaderboard", folder / "study.toml", "--storage", url, "--json").json()
    return Searched(folder, url, done.stdout, board)


@pytest.fixture(scope="module")
def dashboard(searched: Searched) -> Iterator[DashboardProcess]:
    with DashboardProcess(searched.url, searched.folder / "log") as process:
        yield process


def test_two_workers_share_the_budget_and_mark_the_front(searched: Searched):
    rows = searched.board["trials"]
    assert len(rows) == TRIALS
    assert len({row["worker"] for row in rows}) == 2
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    assert {row["number"] for row in rows if row["on_front"]} == searched.front
    assert searched.board["winner"]["on_front"]
    assert searched.board["baseline"]["params"]["retention.method"] == "none"
    for row in rows:
        assert row["old_task_drop"] is not None
        assert ("retention.strength" in row["params"]) == (
            row["params"]["retention.method"] in {"replay", "ewc"}
        )
    assert "front" in searched.printed


def test_the_report_shows_the_front(searched: Searched):
    out = searched.folder / "report.md"
    ended = run_cli(
        *("report", searched.folder / "study.toml", "--storage", searched.url),
        *("--format", "md", "--out", out),
    )
    assert ended.code == 0, ended.err
    text = out.read_text(encoding="utf-8")
    section = text.partition("## Best F1 and old-task F1")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")][2:]
    by_number = {row["number"]: row for row in searched.board["trials"]}
    numbers = [int(re.findall(r"\d+", cells[0])[0]) for cells in rows]
    assert set(numbers) == searched.front
    for number, cells in zip(numbers, rows, strict=True):
        row = by_number[number]
        shown = {cell.strip() for cell in cells}
        assert {f"{row['best_f1']:.2f}", f"{row['old_task_f1']:.2f}"} <= shown


def test_the_dashboard_shows_the_front(
    browser: Chrome, dashboard: DashboardProcess, searched: Searched
):
    browser.get(dashboard.page)
    wait_for(browser, "demo (id=1)")
    name = "user-defined-plot:old-task-f1-by-best-f1"
    assert element(browser, f"[id='{name}'] .main-svg").size["width"] > 100
    drawn = browser.execute_script(
        f"return document.getElementById('{name}').data.filter(t => t.name === 'on the front')"
        ".flatMap(trace => Array.from(trace.customdata._inputArray || trace.customdata))"
    )
    assert set(drawn) == searched.front
    browser.get(f"{dashboard.page}/note")
    text = wait_for(browser, "front")
    assert "old-task F1" in text


def test_an_export_by_rule(searched: Searched):
    rows = searched.board["trials"]
    drops = sorted(row["old_task_drop"] for row in rows)
    most = max(0.0, drops[len(drops) // 2])
    allowed = [row for row in rows if row["old_task_drop"] <= most]
    best = max(allowed, key=lambda row: (row["best_f1"], -row["old_task_drop"]))
    command = ["export", searched.folder / "study.toml", "--storage", searched.url]
    out = searched.folder / "keeper"
    ended = run_cli(*command, out, "--prefer", f"forgetting<={most!r}")
    assert ended.code == 0, ended.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["trial"] == best["number"]
    assert metrics["rule"].startswith("forgetting<=")
    oldest = max(rows, key=lambda row: row["old_task_f1"])
    ended = run_cli(*command, searched.folder / "oldest", "--prefer", "old_task_f1")
    assert ended.code == 0, ended.err
    metrics = json.loads((searched.folder / "oldest" / "metrics.json").read_text())
    assert metrics["old_task_f1"] == pytest.approx(oldest["old_task_f1"])
