"""Whole runs with each retention method: resumed, and exported as an ordinary checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering

from qa_hpo.config import RunConfig
from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.records import EpochRecord, FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.starts import Starts
from qa_hpo.parameters import METHODS
from qa_hpo.paths import CachePaths, RunPaths
from tiny import run_config, squad

STRENGTHS = {"l2sp": 0.1, "ewc": 10.0, "si": 1.0, "replay": 0.5, "distill": 0.5, "mask": 0.5}
EPOCHS = 2


class Killed(BaseException):
    """Ends a run between two batches."""


@pytest.fixture(scope="module")
def learnt(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inputs]:
    """Where the old task's questions lie, and a cache in which its start is built once."""
    folder = tmp_path_factory.mktemp("old task")
    for name, questions, seed in (("train", 80, 21), ("old", 30, 22)):
        corpus = squad(questions, seed=seed, impossible=0.0)
        (folder / f"{name}.json").write_text(json.dumps(corpus))
    return folder, Inputs(CachePaths(folder / "cache"))


def config(tiny: Path, learnt: tuple[Path, Inputs], method: str, **more: Any) -> RunConfig:
    folder, _ = learnt
    recipe = {"from": "base", "train": str(folder / "train.json"), "epochs": 2}
    retention = {"method": method, **more}
    if method in STRENGTHS:
        retention.setdefault("strength", STRENGTHS[method])
    return run_config(
        tiny,
        data={"train_limit": 80, "validation_limit": 30},
        starts={"v1": {**recipe, "learning_rate": 5e-3, "doc_stride": 8, "path_integral": True}},
        parameters={"start": "v1", "epochs": EPOCHS, "retention": retention},
        evaluation={"old_task": str(folder / "old.json")},
    )


def measured(records: tuple[EpochRecord, ...]) -> list[dict[str, Any]]:
    flat = [record.as_dict() for record in records]
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in flat]


@pytest.fixture(scope="module", params=METHODS)
def run(
    request: pytest.FixtureRequest,
    tiny: Path,
    learnt: tuple[Path, Inputs],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunConfig, FineTuned]:
    """A run with each method that nobody interrupts."""
    chosen = config(tiny, learnt, request.param)
    folder = tmp_path_factory.mktemp("whole") / "run"
    return chosen, fine_tune(chosen, folder, inputs=learnt[1])


def test_a_resumed_run_is_the_same(
    run: tuple[RunConfig, FineTuned], learnt: tuple[Path, Inputs], tmp_path: Path
) -> None:
    chosen, whole = run
    batches = 0

    def kill() -> None:
        nonlocal batches
        batches += bool(list(RunPaths(tmp_path).resume_states()))
        if batches == 4:  # in the second epoch, and not at its first batch
            raise Killed

    with pytest.raises(Killed):
        fine_tune(chosen, tmp_path, inputs=learnt[1], check=kill)
    assert [path.name for path in RunPaths(tmp_path).resume_states()] == ["epoch-0001"]
    again = fine_tune(chosen, tmp_path, inputs=learnt[1])
    assert len(again.records) == EPOCHS
    assert measured(again.records) == measured(whole.records)
    assert whole.checkpoint is not None
    assert again.checkpoint is not None
    theirs, own = (load_file(c / "model.safetensors") for c in (whole.checkpoint, again.checkpoint))
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[name], own[name]) for name in theirs)


def test_the_checkpoint_is_an_ordinary_one(
    run: tuple[RunConfig, FineTuned], learnt: tuple[Path, Inputs]
) -> None:
    chosen, done = run
    assert done.checkpoint is not None
    assert done.best is not None
    model, loading = AutoModelForQuestionAnswering.from_pretrained(
        done.checkpoint, output_loading_info=True
    )
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    # It scores what was measured while it was trained.
    answerer = QuestionAnswerer.from_pretrained(str(done.checkpoint))
    answerer.max_length, answerer.evaluation = 40, chosen.evaluation
    corpus = learnt[1].validation_corpus(chosen.data)
    from qa_hpo.squad.scoring import corpus_metrics, score_predictions

    metrics = corpus_metrics(score_predictions(corpus, answerer.predict(corpus).predictions))
    assert metrics["best_f1"] == pytest.approx(done.best.metrics["best_f1"], abs=1e-6)
    assert done.best.metrics["old_task_drop"] is not None


@pytest.fixture(scope="module")
def plain(
    tiny: Path, learnt: tuple[Path, Inputs], tmp_path_factory: pytest.TempPathFactory
) -> FineTuned:
    folder = tmp_path_factory.mktemp("plain") / "run"
    return fine_tune(config(tiny, learnt, "none"), folder, inputs=learnt[1])


def test_every_method_changes_the_run(run: tuple[RunConfig, FineTuned], plain: FineTuned) -> None:
    chosen, done = run
    same = plain.records[-1].train_loss == done.records[-1].train_loss
    assert same == (chosen.parameters.retention.method == "none")


def test_the_start_has_its_path_integral(tiny: Path, learnt: tuple[Path, Inputs]) -> None:
    chosen = config(tiny, learnt, "si")
    start = Path(Starts(chosen, chosen.runtime, learnt[1]).checkpoint("v1"))
    importance = load_file(start / "path_integral.safetensors")
    weights = load_file(start / "model.safetensors")
    assert importance.keys() <= weights.keys()
    assert all(importance[name].shape == weights[name].shape for name in importance)
    assert all((importance[name] >= 0).all() for name in importance)
    assert sum(float(importance[name].sum()) for name in importance) > 0


def test_without_one_si_is_refused(tiny: Path, learnt: tuple[Path, Inputs]) -> None:
    from qa_hpo.finetune.retention import make_method

    chosen = config(tiny, learnt, "si").parameters.retention
    method = make_method(chosen, checkpoint=str(tiny / "base"), old=None, seed=0)
    with pytest.raises(CheckpointError, match=r"path_integral"):
        method.prepare(torch.nn.Linear(1, 1), 10)  # type: ignore[arg-type]
