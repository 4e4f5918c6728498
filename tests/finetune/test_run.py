import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qa_hpo.errors import CheckpointError, StudyFileError, WindowError
from qa_hpo.finetune.batching import LengthGroupedBatches, WindowCollator
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.records import EpochRecord, FineTuned, best_record
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths, RunPaths, read_json
from tiny import run_config, squad

OFFICIAL = [
    *("exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total", "NoAns_exact"),
    *("NoAns_f1", "NoAns_total", "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"),
]


def measured(records: tuple[EpochRecord, ...] | list[EpochRecord]) -> list[dict[str, Any]]:
    """The records without what a clock says."""
    flat = [record.as_dict() for record in records]
    return [
        {name: value for name, value in record.items() if "seconds" not in name} for record in flat
    ]


@pytest.fixture(scope="module")
def whole(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """The run that others are compared with."""
    return fine_tune(run_config(tiny), tmp_path_factory.mktemp("whole") / "run", inputs=inputs)


def test_records_are_complete_and_the_loss_falls(whole: FineTuned) -> None:
    assert [record.epoch for record in whole.records] == [1, 2, 3]
    for record in whole.records:
        assert set(OFFICIAL) | {"crossfit_f1", "HasAns_f1_no_null"} == set(record.metrics)
        assert record.seconds > record.eval_seconds > 0
        metrics = record.metrics
        assert metrics["total"] == 60 == metrics["HasAns_total"] + metrics["NoAns_total"]
        shares = [metrics["HasAns_total"] / 60, metrics["NoAns_total"] / 60]
        for name in ("exact", "f1"):
            parts = metrics[f"HasAns_{name}"], metrics[f"NoAns_{name}"]
            together = sum(share * part for share, part in zip(shares, parts, strict=True))
            assert metrics[name] == pytest.approx(together)
            assert metrics[f"best_{name}"] >= metrics[name]
        assert EpochRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record
    train, validation = (
        [getattr(record, name) for record in whole.records] for name in ("train_loss", "val_loss")
    )
    assert train == sorted(train, reverse=True)
    assert train[-1] < train[0] / 2
    assert validation[-1] < validation[0] - 0.2
    last = whole.records[-1].metrics
    assert 100 * last["NoAns_total"] / 60 == 30.0  # what always saying nothing would give
    assert last["f1"] > 40
    assert whole.stop_reason is None


def test_the_same_again_and_another_seed(
    whole: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # whatever the process did before
    again = fine_tune(run_config(tiny), tmp_path / "again", inputs=inputs)
    assert measured(again.records) == measured(whole.records)
    same = [load_file(run.checkpoint / "model.safetensors") for run in (whole, again)]
    assert same[0].keys() == same[1].keys()
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    other = fine_tune(run_config(tiny, run={"seed": 6}), tmp_path / "other", inputs=inputs)
    for mine, theirs in zip(whole.records, other.records, strict=True):
        assert mine.train_loss != theirs.train_loss
        assert mine.val_loss != theirs.val_loss


def test_the_batches_of_each_epoch(
    tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    call = WindowCollator.__call__

    def spying(self: WindowCollator, indices: list[int]) -> dict[str, torch.Tensor]:
        seen.append(list(indices))
        return call(self, indices)

    monkeypatch.setattr(WindowCollator, "__call__", spying)
    config = run_config(tiny)
    fine_tune(config, tmp_path / "run", inputs=inputs)
    corpus = inputs.train_corpus(config.data.train, None)
    windows = inputs.windows(corpus, str(tiny / "base"), max_length=40, doc_stride=8)
    batches = LengthGroupedBatches(windows.lengths, 16, seed=5)
    expected = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        expected += list(batches)
    assert seen == expected


def left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())


@pytest.mark.parametrize("best", [1, 2, 3])
def test_the_best_epochs_checkpoint_is_kept_and_it_alone(
    tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    from qa_hpo.finetune import trainer

    measure = trainer.corpus_metrics
    weights: list[torch.Tensor] = []
    epochs = iter([1, 2, 3])

    def rigged(*arguments: Any) -> dict[str, float]:
        return {**measure(*arguments), "best_f1": 99.0 if next(epochs) == best else 50.0}

    def remember(record: EpochRecord) -> None:
        (state,) = RunPaths(tmp_path / "run").resume_states()
        weights.append(load_file(state / "model.safetensors")["qa_outputs.weight"])

    monkeypatch.setattr(trainer, "corpus_metrics", rigged)
    tuned = fine_tune(run_config(tiny), tmp_path / "run", inputs=inputs, on_epoch=remember)
    assert tuned.best == tuned.records[best - 1]
    assert tuned.checkpoint == RunPaths(tmp_path / "run").checkpoint(best)
    assert left_over(tmp_path / "run") == ["answers", "checkpoint", f"checkpoint/epoch-{best:04d}"]
    assert [path.name for path in (tmp_path / "run/answers").iterdir()] == [f"epoch-{best:04d}.npz"]
    kept = load_file(tuned.checkpoint / "model.safetensors")["qa_outputs.weight"]
    assert [torch.equal(kept, weight) for weight in weights] == [n == best for n in (1, 2, 3)]
    names = {path.name for path in tuned.checkpoint.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_earliest_of_equals_is_the_best() -> None:
    records = [
        EpochRecord(epoch, 1.0, 1.0, 1.0, 1.0, {"best_f1": f1})
        for epoch, f1 in enumerate([40.0, 60.0, 60.0, 50.0], start=1)
    ]
    assert best_record(records) is records[1]
    assert best_record([]) is None


def test_a_reason_ends_the_run(
    whole: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    told: list[EpochRecord] = []

    def tell(record: EpochRecord) -> str | None:
        told.append(record)
        return "enough" if record.epoch == 2 else None

    tuned = fine_tune(run_config(tiny), tmp_path / "run", inputs=inputs, on_epoch=tell)
    assert tuned.stop_reason == "enough"
    assert told == list(tuned.records)
    assert measured(tuned.records) == measured(whole.records[:2])
    assert not (tmp_path / "run" / "resume").exists()


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopping_after_epochs_keeps_the_schedule(
    whole: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path, epochs: int
) -> None:
    config = run_config(tiny, run={"stop_after_epochs": epochs})
    tuned = fine_tune(config, tmp_path / "run", inputs=inputs)
    assert measured(tuned.records) == measured(whole.records[:epochs])
    assert tuned.stop_reason is None
    # A schedule of so many epochs alone is another one.
    shorter = run_config(tiny, parameters={"epochs": epochs})
    short = fine_tune(shorter, tmp_path / "short", inputs=inputs)
    assert short.records[-1].val_loss != tuned.records[-1].val_loss


def test_divergence_keeps_the_epochs_before(
    whole: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qa_hpo.finetune.trainer import QuestionAnsweringTrainer

    own = QuestionAnsweringTrainer.compute_loss

    def poisoned(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.epoch > 2.5:
            with torch.no_grad():
                self.network.qa_outputs.weight.fill_(math.nan)
        return own(self, *arguments, **options)

    monkeypatch.setattr(QuestionAnsweringTrainer, "compute_loss", poisoned)
    tuned = fine_tune(run_config(tiny), tmp_path / "run", inputs=inputs)
    assert tuned.stop_reason == "diverged"
    assert measured(tuned.records) == measured(whole.records[: len(tuned.records)])
    assert len(tuned.records) == 2
    assert tuned.checkpoint is not None
    assert load_file(tuned.checkpoint / "model.safetensors")["qa_outputs.weight"].isfinite().all()
    kept = tuned.checkpoint.name
    assert left_over(tmp_path / "run") == ["answers", "checkpoint", f"checkpoint/{kept}"]


def test_divergence_in_the_first_epoch(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    from qa_hpo.finetune import trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "span_loss", lambda start, *_, **__: start.sum(1) * math.nan)
        tuned = fine_tune(run_config(tiny), tmp_path / "run", inputs=inputs)
    assert tuned == FineTuned((), None, None, "diverged", 16, tuned.peak_memory_mib)
    assert left_over(tmp_path / "run") == []


@pytest.mark.parametrize(
    "sections",
    [
        {"parameters": {"learning_rate": 2e-3}},
        {"run": {"seed": 6}},
        {"data": {"train_limit": 100}},
        {"training": {"precision": "bf16"}},
        {"training": {"attention": "eager"}},
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    tiny: Path, inputs: Inputs, tmp_path: Path, sections: dict[str, Any]
) -> None:
    config = run_config(tiny, run={"stop_after_epochs": 1}, data={"train_limit": 20})
    fine_tune(config, tmp_path / "run", inputs=inputs)
    before = (tmp_path / "run" / "config.json").read_bytes()
    sections = {"data": {"train_limit": 20}, **sections}
    with pytest.raises(StudyFileError, match="holds the run of another configuration"):
        fine_tune(run_config(tiny, **sections), tmp_path / "run", inputs=inputs)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    # Where to stop, and on how many threads, is no part of it.
    more = {"run": {"stop_after_epochs": 2}, "training": {"eval_batch_size": 8}}
    same = run_config(tiny, data={"train_limit": 20}, **more)
    assert len(fine_tune(same, tmp_path / "run", inputs=inputs).records) == 2


def test_other_data_of_the_same_name_are_refused(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.json"
    config = run_config(
        tiny, data={"train": str(data)}, run={"stop_after_epochs": 1}, parameters={"epochs": 2}
    )
    data.write_text(json.dumps(squad(20, seed=1)))
    fine_tune(config, tmp_path / "run", inputs=Inputs(CachePaths(tmp_path / "cache")))
    data.write_text(json.dumps(squad(20, seed=8)))
    with pytest.raises(StudyFileError, match="holds the run of another configuration"):
        fine_tune(config, tmp_path / "run", inputs=Inputs(CachePaths(tmp_path / "cache")))


def dropout_in(checkpoint: Path) -> set[float]:
    config = read_json(checkpoint / "config.json")
    return {config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]}


def test_dropout_is_set_or_left_as_it_is(
    whole: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    assert whole.checkpoint is not None
    assert dropout_in(whole.checkpoint) == {0.1}
    losses = {whole.records[0].train_loss}
    for dropout in (0.0, 0.4):
        config = run_config(tiny, parameters={"dropout": dropout}, run={"stop_after_epochs": 1})
        tuned = fine_tune(config, tmp_path / f"{dropout}", inputs=inputs)
        assert tuned.checkpoint is not None
        assert dropout_in(tuned.checkpoint) == {dropout}
        losses.add(tuned.records[0].train_loss)
    assert len(losses) == 3


def test_a_start_that_is_not_there_leaves_nothing(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    config = run_config(tiny, starts={"base": str(tmp_path / "no such")})
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        fine_tune(config, tmp_path / "run", inputs=inputs)
    assert list(tmp_path.iterdir()) == []


def test_windows_longer_than_the_models_positions(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    from tiny import bert_tokenizer, write_base

    short = write_base(tmp_path / "short", max_position_embeddings=32)
    bert_tokenizer(model_max_length=512).save_pretrained(short)
    config = run_config(tiny, starts={"base": str(short)})
    with pytest.raises(WindowError, match="a window has 40 tokens and the model 32 positions"):
        fine_tune(config, tmp_path / "run", inputs=inputs)


def test_few_sets_of_windows_are_held(tiny: Path, tmp_path: Path) -> None:
    inputs = Inputs(CachePaths(tmp_path))
    corpus = inputs.train_corpus(str(tiny / "train.json"), 20)
    base = str(tiny / "base")

    def windows(stride: int) -> Any:
        return inputs.windows(corpus, base, max_length=40, doc_stride=stride)

    first = windows(0)
    for stride in range(1, 9):
        assert windows(0) is first  # in use, so kept
        windows(stride)
    assert len(inputs._windows) == 6
