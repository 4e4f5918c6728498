import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import dies_in, finished, start
from qa_hpo.config import RunConfig
from qa_hpo.errors import WorkError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.starts import Starts
from qa_hpo.paths import CachePaths
from tiny import run_config, squad

RECIPE = {"epochs": 2, "learning_rate": 3e-3, "doc_stride": 8, "train_limit": 64}


def job(tiny: Path, **values: Any) -> RunConfig:
    """``v1`` is ``base`` trained on train.json, ``v2`` is ``v1`` trained on it again."""
    recipe = {"from": "base", "train": str(tiny / "train.json"), **RECIPE, **values}
    again = {**recipe, "from": "v1", "epochs": 1}
    return run_config(
        tiny,
        starts={"v1": recipe, "v2": again},
        parameters={"start": "v2", "epochs": 1},
        data={"train_limit": 32},
    )


def starts(config: RunConfig, cache: Path) -> Starts:
    return Starts(config, config.runtime, Inputs(CachePaths(cache)))


def test_a_start_that_is_no_recipe_is_what_it_says(tiny: Path, tmp_path: Path) -> None:
    some = starts(run_config(tiny), tmp_path / "cache")
    built: list[str] = []
    assert some.checkpoint("base", built.append) == str(tiny / "base")
    assert some.built("base")
    assert built == []
    assert not (tmp_path / "cache").exists()


def test_a_recipe_of_a_recipe_is_built_once(tiny: Path, tmp_path: Path) -> None:
    some = starts(job(tiny), tmp_path)
    assert not some.built("v2")
    built: list[str] = []
    checkpoint = Path(some.checkpoint("v2", built.append))
    assert built == ["v1", "v2"]
    assert some.built("v1")
    assert some.built("v2")
    assert some.checkpoint("v2", built.append) == str(checkpoint)
    assert starts(job(tiny), tmp_path).checkpoint("v2", built.append) == str(checkpoint)
    assert built == ["v1", "v2"]
    assert checkpoint.parent == tmp_path / "starts"
    assert sorted(path.name.split("-")[0] for path in checkpoint.parent.glob("*[!k]")) == [
        "v1",
        "v2",
    ]  # fmt: skip  (no folder of an unfinished build is left)
    weights = [
        load_file(Path(some.checkpoint(name)) / "model.safetensors")
        for name in ("base", "v1", "v2")
    ]
    name = "bert.encoder.layer.0.output.dense.weight"
    body = [found.get(name, found.get(name.removeprefix("bert."))) for found in weights]
    assert not torch.equal(body[0], body[1])
    assert not torch.equal(body[1], body[2])
    assert "qa_outputs.weight" in weights[1]


def test_a_run_says_what_it_builds_and_starts_from_it(tiny: Path, tmp_path: Path) -> None:
    built: list[str] = []
    inputs = Inputs(CachePaths(tmp_path / "cache"))
    config = job(tiny)
    first = fine_tune(config, tmp_path / "run", inputs=inputs, on_build=built.append)
    assert built == ["v1", "v2"]
    base = fine_tune(
        run_config(tiny, parameters={"epochs": 1}, data={"train_limit": 32}),
        tmp_path / "base run",
        inputs=inputs,
    )
    assert first.records[0].train_loss < base.records[0].train_loss - 0.3


OTHERS: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "learning_rate": {"learning_rate": 1e-3},
    "weight_decay": {"weight_decay": 0.1},
    "doc_stride": {"doc_stride": 4},
    "batch_size": {"batch_size": 4},
    "warmup": {"warmup": 0.5},
    "scheduler": {"scheduler": "constant"},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "dropout": {"dropout": 0.0},
    "seed": {"seed": 1},
    "train_limit": {"train_limit": 63},
}


def test_the_fingerprint_changes_with_every_value(tiny: Path, tmp_path: Path) -> None:
    def prints(config: RunConfig) -> tuple[str, str]:
        some = starts(config, tmp_path / "cache")
        return some.fingerprint("v1"), some.fingerprint("v2")

    first = prints(job(tiny))
    assert prints(job(tiny)) == first
    seen = [first]
    for value in OTHERS.values():
        seen.append(prints(job(tiny, **value)))
    # Other data under the same name, other source weights, another length.
    data = Path(shutil.copy(tiny / "train.json", tmp_path / "train.json"))
    assert prints(job(tiny, train=str(data))) == first  # the content counts, not the path
    data.write_text(json.dumps(squad(240, seed=9)))
    seen.append(prints(job(tiny, train=str(data))))
    source = shutil.copytree(tiny / "base", tmp_path / "base")
    moved = job(tiny).model_copy(update={"starts": {**job(tiny).starts, "base": str(source)}})
    assert prints(moved) == first
    configuration = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**configuration, "layer_norm_eps": 1e-9}))
    seen.append(prints(moved))
    wide = job(tiny)
    seen.append(prints(wide.model_copy(update={"data": wide.data.model_copy(
        update={"max_length": 48})})))  # fmt: skip
    assert len({pair[0] for pair in seen}) == len(seen)
    # A recipe on top is another start wherever the one below is.
    assert len({pair[1] for pair in seen}) == len(seen)


def build(tiny: Path, cache: Path, answer: Path, dies: bool = False) -> None:
    if dies:
        from qa_hpo.paths import RunPaths

        dies_in(RunPaths, "checkpoints", 2, after=True)  # in the second epoch of v1
    built: list[str] = []
    checkpoint = starts(job(tiny), cache).checkpoint("v2", built.append)
    answer.write_text(json.dumps([checkpoint, built, os.getpid()]))


@pytest.mark.slow
def test_processes_that_want_the_same_start_at_once(tiny: Path, tmp_path: Path) -> None:
    answers = [tmp_path / f"answer-{number}" for number in range(4)]
    finished(*[start(build, tiny, tmp_path / "cache", answer) for answer in answers])
    told = [json.loads(answer.read_text()) for answer in answers]
    assert len({pid for _, _, pid in told}) == 4
    assert len({checkpoint for checkpoint, _, _ in told}) == 1
    # Each start by one process, though not necessarily both by the same one.
    assert sorted(name for _, built, _ in told for name in built) == ["v1", "v2"]
    alone = Path(starts(job(tiny), tmp_path / "alone").checkpoint("v2"))
    weights = [load_file(Path(c) / "model.safetensors") for c in (told[0][0], alone)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_an_interrupted_build_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(start(build, tiny, tmp_path / "cache", tmp_path / "answer", True), code=-9)
    some = starts(job(tiny), tmp_path / "cache")
    assert not some.built("v1")
    from qa_hpo.finetune.trainer import QuestionAnsweringTrainer

    resumed: list[Any] = []
    own = QuestionAnsweringTrainer.train

    def spying(self: Any, resume_from_checkpoint: Any = None) -> Any:
        resumed.append(resume_from_checkpoint)
        return own(self, resume_from_checkpoint=resume_from_checkpoint)

    monkeypatch.setattr(QuestionAnsweringTrainer, "train", spying)
    checkpoint = Path(some.checkpoint("v1"))
    # Both epochs had ended: nothing but the last step was missing.
    assert resumed == []
    alone = Path(starts(job(tiny), tmp_path / "alone").checkpoint("v1"))
    weights = [load_file(c / "model.safetensors") for c in (checkpoint, alone)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    names = {path.name for path in checkpoint.parent.iterdir()}
    assert names == {checkpoint.name, f"{checkpoint.name}.lock"}


def test_a_recipe_that_diverges(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qa_hpo.finetune import trainer

    monkeypatch.setattr(trainer, "span_loss", lambda start, *_, **__: start.sum(1) * float("nan"))
    with pytest.raises(
        WorkError, match=r"starts\.v1: its training diverged; a lower learning_rate"
    ):
        starts(job(tiny), tmp_path).checkpoint("v2")
    assert not any(path.is_dir() for path in (tmp_path / "starts").iterdir())
