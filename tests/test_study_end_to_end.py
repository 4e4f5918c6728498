"""The main job: a study on the demo by two workers, its winner exported, evaluated and asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import run_cli
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.squad.corpus import load_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS = 4
EPOCHS, MIN_DELTA = 4, 0.05  # as the demo's study file says
ROW = [
    *("number", "state", "stop_reason", "params", "best_epoch", "f1", "exact", "best_f1"),
    *("best_exact", "threshold", "crossfit_f1", "val_loss", "train_seconds", "worker"),
    *("repeat_of", "seeds", "seeds_f1", "seeds_f1_sd"),
    *("old_task_f1", "old_task_exact", "old_task_f1_no_null"),
    *("old_task_drop", "old_task_drop_no_null", "best_f1_interval", "on_front"),
]


@dataclass(frozen=True)
class Finished:
    """A folder in which the demo's study has run, and what ``qa-hpo run`` printed."""

    folder: Path
    printed: str

    @property
    def study(self) -> Path:
        return self.folder / "demo" / "study.toml"

    def board(self) -> dict[str, Any]:
        board: dict[str, Any] = run_cli("leaderboard", self.study, "--json").json()
        return board


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run the study as a user does, in a folder whose name is not plain.

    Trials train on a third of the questions; the starts are the demo's own.
    """
    folder = tmp_path_factory.mktemp("a study's folder")
    printed = ""
    for command in (
        ["demo", "demo"],
        ["run", "demo/study.toml", "--workers", "2", "--trials", str(TRIALS)],
    ):
        if command[0] == "run":
            file = folder / "demo" / "study.toml"
            text, data = file.read_text(encoding="utf-8"), "\nmax_length = 128"
            assert text.count(data) == 1
            file.write_text(text.replace(data, f"\ntrain_limit = 600{data}"), encoding="utf-8")
        ended = subprocess.run(
            [sys.executable, "-m", "qa_hpo", *command],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stderr == ""
        printed = ended.stdout
    return Finished(folder, printed)


@pytest.fixture
def finished(study: Finished, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """The folder of the study that has run, as the current folder."""
    monkeypatch.chdir(study.folder)
    monkeypatch.delenv("QA_HPO_STORAGE", raising=False)
    return study


@pytest.fixture
def exported(finished: Finished) -> Path:
    """The winner's export; what is there already is not written again."""
    ended = run_cli("export", finished.study, "winner")
    assert ended.code == 0, ended.err
    return finished.folder / "winner"


def test_all_starts_are_tried_by_both_workers_within_the_budget(finished: Finished) -> None:
    board = finished.board()
    assert list(board) == ["study", "winner", "baseline", "trials"]
    assert len(board["trials"]) == TRIALS
    assert all(list(row) == ROW for row in board["trials"])
    assert {row["params"]["start"] for row in board["trials"]} == {"base", "v1", "v2"}
    workers = {row["worker"] for row in board["trials"]}
    assert {worker.rpartition("-")[2] for worker in workers} == {"1", "2"}
    assert len(workers) == 2
    assert {row["state"] for row in board["trials"]} <= {"COMPLETE", "PRUNED"}
    scores = [row["best_f1"] for row in board["trials"]]
    assert scores == sorted(scores, reverse=True)
    assert board["winner"] == board["trials"][0]
    assert board["baseline"]["number"] == 0
    assert "Winner: trial" in finished.printed


def test_the_winner_is_far_above_always_answering_nothing(finished: Finished) -> None:
    corpus = load_corpus("demo/validation-v2.json", "validation")
    nothing = 100 * sum(not answers for answers in corpus.answers) / len(corpus)
    winner = finished.board()["winner"]
    assert winner["best_f1"] > 75
    assert winner["best_f1"] > nothing + 15
    assert winner["best_f1"] < 97


def test_overfitting_trials_are_pruned_after_their_loss_rose_and_no_others(
    finished: Finished,
) -> None:
    pruned = [row for row in finished.board()["trials"] if row["state"] == "PRUNED"]
    assert any(row["stop_reason"] == "overfitting" for row in pruned)
    for row in pruned:
        losses = row["val_loss"]
        assert len(losses) < EPOCHS
        if row["stop_reason"] == "overfitting":
            assert losses[-1] > min(losses) + MIN_DELTA
            within = (min(losses[: i + 1]) + MIN_DELTA for i in range(len(losses)))
            assert all(loss <= most for loss, most in zip(losses[:-1], within, strict=False))


def test_running_it_again_says_that_the_budget_is_spent_and_changes_nothing(
    finished: Finished,
) -> None:
    before = finished.board()
    ended = run_cli("run", finished.study, "--workers", "2", "--trials", str(TRIALS))
    assert ended.code == 0
    assert "The budget is spent: nothing to do." in ended.out
    assert finished.board() == before


def test_a_changed_study_file_is_refused(finished: Finished) -> None:
    changed = finished.folder / "changed.toml"
    text = finished.study.read_text(encoding="utf-8")
    changed.write_text(text.replace("patience = 1", "patience = 2"), encoding="utf-8")
    ended = run_cli("run", changed, "--trials", str(TRIALS))
    assert ended.code == 2
    assert "pruning.patience: 1 in the study, 2 in the file" in ended.err


def test_status_tells_what_is_spent(finished: Finished) -> None:
    status = run_cli("status", finished.study, "--json").json()
    assert status["finished"] == TRIALS
    assert status["share_of_budget"] == 1.0
    assert status["running"] == []
    assert status["best"]["best_f1"] == finished.board()["winner"]["best_f1"]


def test_evaluating_the_export_gives_the_leaderboards_figures(
    finished: Finished, exported: Path
) -> None:
    winner = finished.board()["winner"]
    metrics = run_cli("evaluate", exported, "demo/validation-v2.json", "--json").json()
    for key in ("best_f1", "f1", "threshold"):
        assert metrics[key] == pytest.approx(winner[key], abs=1e-6), key
    assert metrics["exported_f1"] == pytest.approx(winner["best_f1"], abs=1e-6)


def test_the_export_is_an_ordinary_checkpoint_too(exported: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    model, loading = AutoModelForQuestionAnswering.from_pretrained(
        exported, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert model.config.model_type == "bert"
    assert not list(exported.glob("*.bin"))
    assert "threshold" in (exported / "README.md").read_text(encoding="utf-8")


def test_training_the_exported_configuration_gives_the_same_epoch_records(
    finished: Finished,
) -> None:
    shortest = min(finished.board()["trials"], key=lambda row: len(row["val_loss"]))
    exported = Path("shortest")
    ended = run_cli("export", finished.study, exported, "--trial", str(shortest["number"]))
    assert ended.code == 0, ended.err
    ended = subprocess.run(
        [sys.executable, "-m", "qa_hpo", "train", str(exported / "qa_hpo.toml"), "again"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    records = [
        [
            {key: value for key, value in epoch.items() if "seconds" not in key}
            for epoch in json.loads((folder / "metrics.json").read_text("utf-8"))["epochs"]
        ]
        for folder in (exported, Path("again"))
    ]
    assert records[0] == records[1]
    assert not list(Path().glob(".again*"))


def test_it_answers_and_says_when_there_is_no_answer(exported: Path) -> None:
    corpus = load_corpus("demo/validation-v2.json", "validation")
    answerer = QuestionAnswerer.from_pretrained(str(exported))
    right: dict[bool, list[int]] = {True: [], False: []}
    asked: dict[bool, int] = {True: 0, False: 0}
    for index in range(60):
        golds = {text for text, _ in corpus.answers[index]}
        answer = answerer.answer(corpus.questions[index], corpus.context_of(index))
        asked[bool(golds)] += 1
        if answer.text in golds or (answer.text is None and not golds):
            right[bool(golds)].append(index)
    assert all(len(right[kind]) >= 0.5 * asked[kind] for kind in right)
    # The same by the command line, threshold and all.
    for kind, words in ((True, None), (False, "no answer")):
        index = right[kind][0]
        Path("context.txt").write_text(corpus.context_of(index), encoding="utf-8")
        ended = run_cli(
            "answer", exported, "--context", "context.txt", "--question", corpus.questions[index]
        )
        assert ended.code == 0
        assert ended.out.startswith(words or corpus.answers[index][0][0])


def test_export_takes_any_kept_trial_and_names_the_others(
    finished: Finished, exported: Path
) -> None:
    kept = finished.board()["trials"][1]["number"]
    assert run_cli("export", finished.study, "second", "--trial", kept).code == 0
    metrics = json.loads(Path("second/metrics.json").read_text("utf-8"))
    assert metrics["trial"] == kept
    ended = run_cli("export", finished.study, exported, "--trial", kept)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    ended = run_cli("export", finished.study, "none", "--trial", 99)
    assert ended.code == 2
    assert "--trial: 99 is not a finished trial; valid: " in ended.err
    # Exporting the same again is no mistake, and writes nothing.
    before = (exported / "metrics.json").stat().st_mtime_ns
    assert run_cli("export", finished.study, exported).code == 0
    assert (exported / "metrics.json").stat().st_mtime_ns == before


def test_a_run_that_is_told_to_end_hands_its_trials_back_and_leaves_no_worker(
    finished: Finished,
) -> None:
    environment = {**os.environ, "QA_HPO_STORAGE": "sqlite:///ended.db"}
    command = [sys.executable, "-m", "qa_hpo", "run", str(finished.study), "--workers", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 1 of" in line:
                break
        process.terminate()
        printed = process.stdout.read()
        assert process.wait(60) == 130
    assert "Interrupted: the running trials are handed back" in printed
    status = run_cli("status", "demo", "--storage", "sqlite:///ended.db", "--json").json()
    assert status["trials"]["RUNNING"] == 0
    assert status["trials"]["WAITING"] >= 2
