"""What is forgotten of the task that a start has learnt before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_hpo.finetune import old_task, training
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.records import FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.scoring import corpus_metrics, score_predictions
from tiny import run_config, squad

# Long enough for answers that are right.
LEARNT: dict[str, Any] = {"parameters": {"learning_rate": 1e-2, "epochs": 4}}


@pytest.fixture(scope="module")
def start(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt questions of which all have an answer."""
    folder = tmp_path_factory.mktemp("v1")
    for name, questions, seed in (("train", 240, 11), ("old", 50, 12)):
        corpus = squad(questions, seed=seed, impossible=0.0)
        (folder / f"{name}.json").write_text(json.dumps(corpus))
    data = {"train": str(folder / "train.json"), "validation": str(folder / "old.json")}
    tuned = fine_tune(run_config(tiny, **LEARNT, data=data), folder / "run", inputs=inputs)
    assert tuned.checkpoint is not None
    tuned.checkpoint.rename(folder / "checkpoint")
    return folder


def settings(start: Path, **more: Any) -> dict[str, Any]:
    return {
        **LEARNT,
        "starts": {"base": str(start / "checkpoint")},
        "evaluation": {"old_task": str(start / "old.json"), **more},
    }


@pytest.fixture(scope="module")
def tuned(
    tiny: Path, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FineTuned, Inputs]:
    own = Inputs(CachePaths(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.mktemp("run")
    return fine_tune(run_config(tiny, **settings(start)), folder, inputs=own), own


def scores(checkpoint: Path, corpus_file: Path) -> Any:
    """What a checkpoint scores on a corpus, by way of the predictor."""
    answerer = QuestionAnswerer.from_pretrained(str(checkpoint))
    answerer.max_length = 40
    answerer.evaluation = run_config(corpus_file.parent).evaluation
    corpus = load_corpus(corpus_file, "validation")
    return score_predictions(corpus, answerer.predict(corpus).predictions)


def test_the_kept_checkpoints_figures_are_its_own(
    tuned: tuple[FineTuned, Inputs], start: Path
) -> None:
    done, _ = tuned
    best = done.best
    assert best is not None
    assert done.checkpoint is not None
    own = scores(done.checkpoint, start / "old.json")
    exact, f1 = own.at(best.metrics["best_f1_thresh"])
    assert best.metrics["old_task_f1"] == pytest.approx(100 * np.mean(f1), abs=1e-9)
    assert best.metrics["old_task_exact"] == pytest.approx(100 * np.mean(exact), abs=1e-9)
    no_null = 100 * np.mean(own.span_f1)  # all of them have an answer
    assert best.metrics["old_task_f1_no_null"] == pytest.approx(no_null, abs=1e-9)
    assert best.metrics["old_task_f1"] <= no_null + 1e-9


def test_the_drop_is_from_what_the_start_scores(
    tuned: tuple[FineTuned, Inputs], start: Path
) -> None:
    done, _ = tuned
    before = scores(start / "checkpoint", start / "old.json")
    assert done.best is not None
    metrics = done.best.metrics
    f1 = corpus_metrics(before)["best_f1"]
    assert f1 > 60
    assert metrics["old_task_drop"] == pytest.approx(f1 - metrics["old_task_f1"], abs=1e-9)
    no_null = 100 * np.mean(before.span_f1)
    assert metrics["old_task_drop_no_null"] == pytest.approx(
        no_null - metrics["old_task_f1_no_null"], abs=1e-9
    )


def test_every_epoch_is_measured_where_that_is_cheap(
    tuned: tuple[FineTuned, Inputs], tiny: Path, start: Path, tmp_path: Path
) -> None:
    done, own = tuned
    assert all("old_task_f1" in record.metrics for record in done.records)
    # More questions than the validation has: only epochs whose weights are kept.
    large = tmp_path / "large.json"
    large.write_text(json.dumps(squad(90, seed=13, impossible=0.0)))
    sections = settings(start, old_task=str(large))
    again = fine_tune(run_config(tiny, **sections), tmp_path / "run", inputs=own)
    best = -1.0
    for record in again.records:
        assert ("old_task_f1" in record.metrics) == (record.metrics["best_f1"] > best)
        best = max(best, record.metrics["best_f1"])
    # The same training, whatever is measured.
    assert [r.train_loss for r in again.records] == [r.train_loss for r in done.records]
    assert [r.val_loss for r in again.records] == [r.val_loss for r in done.records]


def test_a_start_is_measured_once(
    tuned: tuple[FineTuned, Inputs],
    tiny: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, own = tuned

    def again(*_: Any, **__: Any) -> Any:
        raise AssertionError("the start is measured again")

    monkeypatch.setattr(old_task, "load_model", again)
    assert training.start_scores is old_task.start_scores
    once_more = fine_tune(run_config(tiny, **settings(start)), tmp_path / "run", inputs=own)
    assert once_more.best is not None
    assert done.best is not None
    assert once_more.best.metrics["old_task_drop"] == done.best.metrics["old_task_drop"]


def test_a_start_that_has_learnt_nothing_has_nothing_to_forget(
    tiny: Path, start: Path, inputs: Inputs, tmp_path: Path
) -> None:
    sections = {"parameters": {"epochs": 1}, "evaluation": {"old_task": str(start / "old.json")}}
    done = fine_tune(run_config(tiny, **sections), tmp_path / "run", inputs=inputs)
    assert done.best is not None
    assert "old_task_f1" in done.best.metrics
    assert "old_task_drop" not in done.best.metrics
