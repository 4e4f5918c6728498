"""Runs and builds that their caller ends between two batches."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from qa_hpo.errors import DivergedError
from qa_hpo.finetune import evaluation
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.records import FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.starts import Starts
from qa_hpo.finetune.trainer import QuestionAnsweringTrainer
from qa_hpo.paths import CachePaths, RunPaths
from tiny import run_config

SECTIONS: dict[str, Any] = {
    "data": {"train_limit": 64, "validation_limit": 30},
    "training": {"cpu_threads": 1, "eval_batch_size": 16},
}


class EnoughError(Exception):
    pass


class SignalError(BaseException):
    """Like KeyboardInterrupt: no ordinary error."""


def measured(tuned: FineTuned) -> list[dict[str, Any]]:
    flat = [record.as_dict() for record in tuned.records]
    return [{k: value for k, value in record.items() if "seconds" not in k} for record in flat]


class At:
    """A check that raises at one of its calls, from 1."""

    def __init__(self, call: int, error: BaseException) -> None:
        self.left = call
        self.error = error

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.fixture(scope="module")
def whole(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return fine_tune(run_config(tiny, **SECTIONS), folder, inputs=inputs)


def spied(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Callable[[], None]]:
    """What a run does, in order: checks, steps, evaluated batches and writes."""
    did: list[str] = []

    def spy(owner: Any, name: str, word: str) -> None:
        own = getattr(owner, name)

        def spying(*arguments: Any, **options: Any) -> Any:
            did.append(word)
            result = own(*arguments, **options)
            did.append(f"/{word}")
            return result

        monkeypatch.setattr(owner, name, spying)

    spy(QuestionAnsweringTrainer, "_in_passes", "step")
    spy(evaluation, "_through", "batch")
    spy(QuestionAnsweringTrainer, "_save_best", "write")
    spy(QuestionAnsweringTrainer, "_save_checkpoint", "write")
    return did, lambda: did.append("check")


def test_a_check_before_every_batch_and_none_while_files_are_written(
    whole: FineTuned,
    tiny: Path,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    did, check = spied(monkeypatch)
    config = run_config(tiny, **SECTIONS)
    tuned = fine_tune(config, tmp_path / "run", inputs=inputs, check=check)
    assert measured(tuned) == measured(whole)
    assert did.count("step") > 3 * 4
    assert did.count("batch") > 3 * 2
    assert did.count("write") > 3
    assert did.count("check") == did.count("step") + did.count("batch")
    for before, word in itertools.pairwise(did):
        assert (before == "check") == (word in {"step", "batch"})


def calls_of_an_epoch(whole: FineTuned, tiny: Path, inputs: Inputs, folder: Path) -> int:
    """How many checks one epoch has, training and evaluation."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    config = run_config(tiny, run={"stop_after_epochs": 1}, **SECTIONS)
    fine_tune(config, folder, inputs=inputs, check=count)
    return calls


@pytest.mark.parametrize("error", [EnoughError("enough"), SignalError()])
@pytest.mark.parametrize("place", ["first step", "second epoch", "second evaluation", "last"])
def test_a_run_that_was_ended_goes_on(
    whole: FineTuned,
    tiny: Path,
    inputs: Inputs,
    tmp_path: Path,
    place: str,
    error: BaseException,
) -> None:
    epoch = calls_of_an_epoch(whole, tiny, inputs, tmp_path / "one")
    call, kept = {
        "first step": (1, 0),
        "second epoch": (epoch + 2, 1),
        "second evaluation": (2 * epoch, 1),
        "last": (3 * epoch, 2),
    }[place]
    config, run = run_config(tiny, **SECTIONS), tmp_path / "run"
    with pytest.raises(type(error)) as caught:
        fine_tune(config, run, inputs=inputs, check=At(call, error))
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    states = RunPaths(run).resume_states()
    assert [state.name for state in states] == [f"epoch-{kept:04d}"] * (kept > 0)
    told = []
    tuned = fine_tune(config, run, inputs=inputs, on_epoch=told.append)
    assert measured(tuned) == measured(whole)
    assert told == list(tuned.records)
    assert not RunPaths(run).resume.exists()


@pytest.mark.parametrize(
    "error", [DivergedError("not ours"), MemoryError(), OSError(28, "No space left on device")]
)
def test_what_looks_like_an_error_of_the_run_comes_out_unchanged(
    tiny: Path, inputs: Inputs, tmp_path: Path, error: Exception
) -> None:
    for call in (2, 6):  # in a step, and in evaluation
        with pytest.raises(type(error)) as caught:
            fine_tune(
                run_config(tiny, **SECTIONS),
                tmp_path / "run",
                inputs=inputs,
                check=At(call, error),
            )
        assert caught.value is error


def starts(tiny: Path, cache: Path) -> Starts:
    recipe = {"from": "base", "train": str(tiny / "train.json"), "epochs": 3, "doc_stride": 8}
    config = run_config(
        tiny,
        starts={"v1": {**recipe, "train_limit": 32, "learning_rate": 3e-3}},
        parameters={"start": "v1", "epochs": 1},
    )
    return Starts(config, config.runtime, Inputs(CachePaths(cache)))


def test_a_build_that_was_ended_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did, check = spied(monkeypatch)
    alone = Path(starts(tiny, tmp_path / "alone").checkpoint("v1", check=check))
    steps = did.count("step")
    did.clear()
    some, error = starts(tiny, tmp_path / "cache"), EnoughError()
    with pytest.raises(EnoughError) as caught:
        some.checkpoint("v1", check=At(1 + steps, error))  # the last step; one was for the lock
    assert caught.value is error
    assert not some.built("v1")
    (lock,) = (tmp_path / "cache" / "starts").glob("*.lock")
    with FileLock(lock, timeout=0):  # it is free
        pass
    done = did.count("step")
    assert done == steps - 1
    checkpoint = Path(some.checkpoint("v1"))
    assert did.count("step") - done == steps // 3
    weights = [load_file(folder / "model.safetensors") for folder in (checkpoint, alone)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert {path.name for path in checkpoint.parent.iterdir()} == {checkpoint.name, lock.name}


def test_a_run_hands_its_check_to_the_build_of_its_start(tiny: Path, tmp_path: Path) -> None:
    some = starts(tiny, tmp_path / "cache")
    assert not isinstance(some.job, str)
    error = EnoughError()
    with pytest.raises(EnoughError):
        fine_tune(some.job, tmp_path / "run", inputs=some.inputs, check=At(3, error))
    assert not some.built("v1")
    assert not (tmp_path / "run").exists()


def test_the_wait_for_another_build_can_be_ended(tiny: Path, tmp_path: Path) -> None:
    some = starts(tiny, tmp_path)
    final = some.inputs.cache.start("v1", some.fingerprint("v1"))
    final.parent.mkdir(parents=True)
    error = EnoughError()
    with FileLock(f"{final}.lock"), pytest.raises(EnoughError):
        some.checkpoint("v1", check=At(2, error))
