"""Steps and runs that do not fit into the memory."""

import errno
import logging
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shortage import allocate_too_much, room_for
from transformers import PreTrainedModel, Trainer

from qa_hpo.errors import DivergedError, OutOfMemoryError
from qa_hpo.finetune import training as training_module
from qa_hpo.finetune.evaluation import forward_pass, span_loss
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.memory import PassSize, PeakMemory, is_out_of_memory, telling_of_memory
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.trainer import QuestionAnsweringTrainer
from qa_hpo.finetune.training import Training, collator, make_trainer
from qa_hpo.parameters import Parameters
from qa_hpo.paths import CachePaths, RunPaths
from tiny import run_config

WINDOWS = 10
SHORT: dict[str, Any] = {"parameters": {"epochs": 2}, "data": {"train_limit": 64}}


def fresh(tiny: Path) -> Inputs:
    """Inputs that remember nothing, with the windows of the others."""
    return Inputs(CachePaths(tiny / "cache"))


def measured(tuned: Any) -> list[dict[str, Any]]:
    flat = [record.as_dict() for record in tuned.records]
    return [{k: value for k, value in record.items() if "seconds" not in k} for record in flat]


def trainer(
    tiny: Path, inputs: Inputs, folder: Path, size: int, *, dropout: float = 0.0
) -> QuestionAnsweringTrainer:
    """A trainer on the training windows, with passes of at most ``size``."""
    corpus = inputs.train_corpus(str(tiny / "train.json"), None)
    base = str(tiny / "base")
    training = Training(
        checkpoint=base,
        tokenizer=inputs.tokenizer(base),
        windows=inputs.windows(corpus, base, max_length=40, doc_stride=8),
        validation=None,
        parameters=Parameters(batch_size=WINDOWS, dropout=dropout),
        seed=3,
    )
    some = make_trainer(training, RunPaths(folder), size)
    some.current_gradient_accumulation_steps = 1  # as the training loop sets it
    return some


def batch(some: QuestionAnsweringTrainer) -> dict[str, torch.Tensor]:
    """Ten windows, of unlike length so that some are padded."""
    inputs = some.train_collator(list(range(WINDOWS)))
    assert len(set(inputs["attention_mask"].sum(1).tolist())) > 1
    return inputs


def gradients(some: QuestionAnsweringTrainer) -> dict[str, torch.Tensor]:
    found = {name: value.grad for name, value in some.network.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


def reference(some: QuestionAnsweringTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the batch, a window at a time and added up in float64."""
    losses: list[float] = []
    total: dict[str, torch.Tensor] = {}
    for window in range(WINDOWS):
        inputs = some.train_collator([window])
        labels = {name: inputs.pop(name) for name in ("start_positions", "end_positions")}
        some.network.zero_grad()
        outputs = some.network(**inputs)
        (loss,) = span_loss(
            outputs.start_logits, outputs.end_logits, inputs["attention_mask"], **labels
        )
        loss.backward()
        losses.append(loss.item())
        for name, grad in gradients(some).items():
            total[name] = total.get(name, 0) + grad.double() / WINDOWS
    some.network.zero_grad()
    return sum(losses) / WINDOWS, total


def test_any_size_of_the_passes_gives_the_gradient_of_the_whole_batch(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    some = trainer(tiny, inputs, tmp_path, WINDOWS)
    loss, expected = reference(some)
    assert len(expected) > 30
    for size in range(1, WINDOWS + 3):
        some.passes.size = size
        some.network.zero_grad()
        with room_for(99) as seen:
            step = some.training_step(some.network, batch(some))
        whole, rest = divmod(WINDOWS, size)
        assert seen == [size] * whole + [rest] * (rest > 0)
        assert not step.requires_grad
        assert step.item() == pytest.approx(loss, rel=1e-6)
        for name, grad in gradients(some).items():
            torch.testing.assert_close(grad.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_a_batch_that_fits_is_the_trainers_own_step(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    some = trainer(tiny, inputs, tmp_path, WINDOWS, dropout=0.1)
    found = []
    for step in (some.training_step, lambda *given: Trainer.training_step(some, *given)):
        torch.manual_seed(1)
        some.network.zero_grad()
        found.append((step(some.network, batch(some)), gradients(some), torch.get_rng_state()))
    (loss, grads, state), (own_loss, own_grads, own_state) = found
    assert torch.equal(loss, own_loss)
    assert torch.equal(state, own_state)
    assert all(torch.equal(grads[name], own_grads[name]) for name in grads)


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_done_again_is_one_that_began_with_smaller_passes(
    tiny: Path, inputs: Inputs, tmp_path: Path, backward: bool
) -> None:
    found = []
    for size in (4, 2):
        some = trainer(tiny, inputs, tmp_path, size, dropout=0.2)
        torch.manual_seed(1)
        # The second pass of four fails: there are gradients and a random state to take back.
        with room_for(3, forward=2, backward=backward) as seen:
            loss = some.training_step(some.network, batch(some))
        assert seen == ([4, 4] if size == 4 else []) + [2] * 5
        assert some.passes.size == 2
        found.append((loss, gradients(some), torch.get_rng_state()))
    (loss, grads, state), (other_loss, other_grads, other_state) = found
    assert torch.equal(loss, other_loss)
    assert torch.equal(state, other_state)
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


def test_partial_gradients_are_dropped(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    some = trainer(tiny, inputs, tmp_path, 4)
    _, expected = reference(some)
    with room_for(3, forward=2) as seen:  # the second pass of four does not fit
        some.training_step(some.network, batch(some))
    assert seen == [4, 4, 2, 2, 2, 2, 2]
    for name, grad in gradients(some).items():
        torch.testing.assert_close(grad.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_with_smaller_passes_and_the_next_begins_with_them(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, base = fresh(tiny), str(tiny / "base")
    config = run_config(tiny, **SHORT)
    with room_for(5) as seen, caplog.at_level(logging.WARNING, "qa_hpo"):
        first = fine_tune(config, tmp_path / "first", inputs=inputs)
        assert seen[:3] == [16, 8, 4]
        told = [record.getMessage() for record in caplog.records]
        assert told[:2] == [
            f"{base}: out of memory with {size} windows per pass; {size // 2} per pass from here "
            "on, and the effective batch stays 16"
            for size in (16, 8)
        ]
        # Evaluation comes down too, once and not in every epoch.
        assert all("evaluation's results stay the same" in line for line in told[2:])
        assert len(told) > 2
        assert inputs.device_batches == {base: 4}
        caplog.clear()
        seen.clear()
        second = fine_tune(config, tmp_path / "second", inputs=inputs)
        assert seen[0] == 4
        assert not any("effective batch" in record.getMessage() for record in caplog.records)
    assert first.device_batch == second.device_batch == 4
    # A step that was done again leaves no trace.
    assert measured(first) == measured(second)


def test_without_dropout_the_records_are_those_of_whole_batches(tiny: Path, tmp_path: Path) -> None:
    sections = {**SHORT, "parameters": {"epochs": 2, "dropout": 0.0}}
    config = run_config(tiny, **sections)
    whole = fine_tune(config, tmp_path / "whole", inputs=fresh(tiny))
    assert whole.device_batch == 16
    with room_for(3):
        split = fine_tune(config, tmp_path / "split", inputs=fresh(tiny))
    assert split.device_batch == 2
    for mine, theirs in zip(split.records, whole.records, strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert mine.val_loss == pytest.approx(theirs.val_loss, rel=1e-3)


class StopError(Exception):
    pass


def test_a_resumed_run_keeps_its_passes(tiny: Path, tmp_path: Path) -> None:
    config = run_config(tiny, **SHORT)
    with room_for(5):
        whole = fine_tune(config, tmp_path / "whole", inputs=fresh(tiny))

        def stop(record: Any) -> None:
            raise StopError

        with pytest.raises(StopError):
            fine_tune(config, tmp_path / "run", inputs=fresh(tiny), on_epoch=stop)
    # As by a process that knows nothing, and in which a whole batch would fit now.
    again = fine_tune(config, tmp_path / "run", inputs=fresh(tiny))
    assert again.device_batch == 4
    losses = [[record.train_loss for record in tuned.records] for tuned in (whole, again)]
    assert losses[0] == losses[1]


def test_evaluation_in_smaller_batches(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    base = str(tiny / "base")
    validation = inputs.validation(run_config(tiny).data, base, 8)
    some = trainer(tiny, inputs, tmp_path, WINDOWS)
    padded = collator(validation.windows, inputs.tokenizer(base))
    options = {"n_best": 5, "max_answer_length": 4}
    whole = forward_pass(some.network, padded, batch_size=16, **options)
    windows = len(validation.windows)
    with room_for(5) as seen:
        size = PassSize(16, checkpoint="x", unchanged="all is well")
        tight = forward_pass(some.network, padded, batch_size=size, **options)
    assert seen[:4] == [16, 8, 4, 4]
    assert sum(seen) == 16 + 8 + windows
    assert size.size == 4
    assert tight.loss == pytest.approx(whole.loss, rel=1e-6)
    for name in ("char_start", "char_end"):
        pair = [getattr(given.predictions, name).tolist() for given in (whole, tight)]
        assert pair[0] == pair[1]
    for name in ("span_score", "null_score"):
        pair = [getattr(given.predictions, name).tolist() for given in (whole, tight)]
        assert pair[0] == pytest.approx(pair[1], abs=1e-4)


@pytest.mark.parametrize("evaluation", [False, True])
def test_one_window_that_does_not_fit_is_one_line(
    tiny: Path, tmp_path: Path, evaluation: bool
) -> None:
    inputs, base = fresh(tiny), str(tiny / "base")
    config = run_config(tiny, **SHORT)
    own = QuestionAnsweringTrainer._measure

    def measure(self: Any) -> Any:
        with room_for(0):
            return own(self)

    with pytest.MonkeyPatch.context() as patch:
        if evaluation:
            patch.setattr(QuestionAnsweringTrainer, "_measure", measure)
        with (
            room_for(99 if evaluation else 0),
            pytest.raises(OutOfMemoryError, match="not even one window at a time fits") as caught,
        ):
            fine_tune(config, tmp_path / "run", inputs=inputs)
    assert str(caught.value).startswith(f"{base}: ")
    assert "data.max_length" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert inputs.device_batches == ({} if evaluation else {base: 1})


@pytest.mark.parametrize("what", ["load_model", "optimizer"])
def test_a_model_or_optimizer_without_room_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        allocate_too_much()

    if what == "optimizer":
        monkeypatch.setattr(torch.optim.AdamW, "step", full)
    else:
        monkeypatch.setattr("transformers.AutoModelForQuestionAnswering.from_pretrained", full)
    with pytest.raises(OutOfMemoryError, match="no memory is left for the model") as caught:
        fine_tune(run_config(tiny, **SHORT), tmp_path / "run", inputs=fresh(tiny))
    assert str(caught.value).startswith(f"{tiny / 'base'}: ")
    assert "\n" not in str(caught.value)


ERRORS: dict[str, tuple[Exception, bool]] = {
    "host": (MemoryError(), True),
    "device": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
    "driver": (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
    "library": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), True),
    "kernel": (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), False),
    "shapes": (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    "no message": (RuntimeError(), False),
    "no text": (RuntimeError(3), False),
    "another kind": (ValueError("CUDA out of memory."), False),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_out_of_memory(name: str) -> None:
    error, expected = ERRORS[name]
    assert is_out_of_memory(error) is expected
    with (
        pytest.raises(OutOfMemoryError if expected else type(error)),
        telling_of_memory("there", "the model"),
    ):
        raise error


def test_what_torch_raises_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"can't allocate memory|not enough memory") as caught:
        allocate_too_much()
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def work(size: int) -> None:
        calls.append(size)
        raise DivergedError("so it goes")

    with pytest.raises(DivergedError):
        PassSize(8, checkpoint="x", unchanged="y").fit(8, work)
    assert calls == [8]


def test_sizes_are_halved_rounding_up() -> None:
    told: list[int] = []
    tried: list[int] = []

    def work(size: int) -> int:
        tried.append(size)
        raise MemoryError

    size = PassSize(64, checkpoint="x", unchanged="y", on_smaller=told.append)
    with pytest.raises(OutOfMemoryError):
        size.fit(13, work)  # a smaller batch than a pass may be
    assert tried == [13, 7, 4, 2, 1]
    assert told == [7, 4, 2, 1]


def test_a_run_gives_back_its_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = watched_models(monkeypatch)
    fine_tune(run_config(tiny, **SHORT), tmp_path / "run", inputs=fresh(tiny))
    assert [model() for model in models] == [None]


@pytest.mark.parametrize("error", [DivergedError, OutOfMemoryError, KeyboardInterrupt])
def test_a_run_that_fails_gives_back_its_memory_at_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    models = watched_models(monkeypatch)

    def failing(*_: Any, **__: Any) -> None:
        # As errors come up that are turned into others.
        try:
            int("no number")
        except ValueError:
            raise error("x") from None

    monkeypatch.setattr(QuestionAnsweringTrainer, "evaluate", failing)
    try:
        fine_tune(run_config(tiny, **SHORT), tmp_path / "run", inputs=fresh(tiny))
    except error:
        # Within the handler, where the traceback still is: the next run may begin here.
        assert [model() for model in models] == [None]
    else:
        assert error is DivergedError
        assert [model() for model in models] == [None]


def watched_models(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.nn.Module]]:
    """References to the models that are loaded, which do not keep them."""
    models: list[weakref.ref[torch.nn.Module]] = []

    def load(*arguments: Any, **options: Any) -> PreTrainedModel:
        model = load_model(*arguments, **options)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(training_module, "load_model", load)
    return models


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts anew")
def test_peak_memory_is_counted_anew() -> None:
    size = 300
    first = PeakMemory()
    before = first.mib()
    held = np.ones(size * 2**20, dtype=np.uint8)
    del held
    grown = first.mib()
    assert before + size * 0.9 < grown < before + size * 1.5
    assert PeakMemory().mib() < grown - size * 0.5


def test_peak_memory_of_a_run(tiny: Path, tmp_path: Path) -> None:
    tuned = fine_tune(run_config(tiny, **SHORT), tmp_path / "run", inputs=fresh(tiny))
    assert 50 < tuned.peak_memory_mib < 100_000
