from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertForQuestionAnswering

from qa_hpo.errors import DivergedError
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.evaluation import forward_pass, span_loss
from qa_hpo.finetune.inputs import Inputs, ValidationSet
from qa_hpo.finetune.models import load_model
from qa_hpo.squad.windows import Windows
from tiny import bert_config, run_config

MAX_ANSWER = 4
N_BEST = 5


@pytest.fixture(scope="module")
def validation(tiny: Path, inputs: Inputs) -> ValidationSet:
    return inputs.validation(run_config(tiny).data, str(tiny / "base"), 8)


@pytest.fixture
def model() -> BertForQuestionAnswering:
    torch.manual_seed(11)
    return BertForQuestionAnswering(bert_config()).eval()


def alone(windows: Windows, window: int) -> dict[str, torch.Tensor]:
    """The inputs of one window without padding."""
    tokens = slice(int(windows.offsets[window]), int(windows.offsets[window + 1]))
    ids = torch.from_numpy(windows.input_ids[tokens].astype(np.int64))[None]
    types = torch.from_numpy(windows.token_type_ids[tokens].astype(np.int64))[None]
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": torch.ones_like(ids)}


def labels(windows: Windows, window: int) -> dict[str, torch.Tensor]:
    return {
        "start_positions": torch.tensor([int(windows.start_positions[window])]),
        "end_positions": torch.tensor([int(windows.end_positions[window])]),
    }


def own_losses(model, windows: Windows, chosen: Iterator[int]) -> list[float]:
    """What transformers says is the loss of each window by itself."""
    with torch.no_grad():
        return [
            model(**alone(windows, window), **labels(windows, window)).loss.item()
            for window in chosen
        ]


def test_the_loss_is_the_models_own_whatever_the_padding(model, validation: ValidationSet) -> None:
    windows = validation.windows
    collator = WindowCollator(windows, 0, left=False, multiple=8)
    chosen = [0, 7, 3, len(windows) - 1]
    assert len({int(windows.lengths[w]) for w in chosen}) > 1  # so that some are padded
    assert any(windows.start_positions[w] for w in chosen)
    expected = own_losses(model, windows, chosen)
    for batch in ([w] for w in chosen):
        inputs = collator(batch)
        given = {name: inputs.pop(name) for name in ("start_positions", "end_positions")}
        with torch.no_grad():
            outputs = model(**inputs)
        (loss,) = span_loss(
            outputs.start_logits, outputs.end_logits, inputs["attention_mask"], **given
        )
        assert loss.item() == pytest.approx(expected[chosen.index(batch[0])], abs=1e-5)
    inputs = collator(chosen)
    given = {name: inputs.pop(name) for name in ("start_positions", "end_positions")}
    with torch.no_grad():
        outputs = model(**inputs)
    start, end, mask = outputs.start_logits, outputs.end_logits, inputs["attention_mask"]
    together = span_loss(start, end, mask, **given)
    assert together.tolist() == pytest.approx(expected, abs=1e-5)
    # Whatever the model says of padding, however likely it finds it.
    start, end = (torch.where(mask == 0, 1e4, logits) for logits in (start, end))
    assert torch.equal(span_loss(start, end, mask, **given), together)


def slow_predictions(model, validation: ValidationSet) -> dict[str, list]:
    """One window at a time, one span at a time."""
    windows = validation.windows
    best: list[tuple[float, int, int]] = [(-np.inf, 0, 0)] * windows.questions
    null = [np.inf] * windows.questions
    for window in range(len(windows)):
        with torch.no_grad():
            outputs = model(**alone(windows, window))
        start, end = (
            logits[0].double().tolist() for logits in (outputs.start_logits, outputs.end_logits)
        )
        question, first = int(windows.question_index[window]), int(windows.offsets[window])
        cls = int(windows.cls_index[window])
        null[question] = min(null[question], start[cls] + end[cls])
        inside = [t for t in range(len(start)) if windows.char_start[first + t] >= 0]
        starts, ends = (
            sorted(inside, key=lambda t, scores=scores: -scores[t])[:N_BEST]
            for scores in (start, end)
        )
        for s in starts:
            for e in ends:
                if s <= e < s + MAX_ANSWER and start[s] + end[e] > best[question][0]:
                    where = windows.char_start[first + s], windows.char_end[first + e]
                    best[question] = (start[s] + end[e], *map(int, where))
    return {
        "char_start": [b[1] for b in best],
        "char_end": [b[2] for b in best],
        "span_score": [b[0] for b in best],
        "null_score": null,
    }


def test_a_pass_is_that_of_one_window_at_a_time(model, validation: ValidationSet) -> None:
    windows = validation.windows
    assert len(windows) > windows.questions  # some questions have several windows
    expected = slow_predictions(model, validation)
    loss = float(np.mean(own_losses(model, windows, range(len(windows)))))
    for batch_size in (1, 7, 1000):
        forward = forward_pass(
            model.train(),  # its dropout must not show
            WindowCollator(windows, 0, left=False),
            n_best=N_BEST,
            max_answer_length=MAX_ANSWER,
            batch_size=batch_size,
        )
        assert forward.loss == pytest.approx(loss, abs=1e-5)
        predictions = forward.predictions
        for name in ("char_start", "char_end"):
            assert getattr(predictions, name).tolist() == expected[name]
        for name in ("span_score", "null_score"):
            assert getattr(predictions, name).tolist() == pytest.approx(expected[name], abs=1e-4)


class Scorer(torch.nn.Module):
    """Logits that depend on nothing but the token: padding on the left changes none."""

    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask, **_):
        start, end = (
            torch.where(attention_mask == 0, 99.0, wave(input_ids * 12.9898) * 5)
            for wave in (torch.sin, torch.cos)
        )
        return SimpleNamespace(start_logits=start, end_logits=end)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_padding_on_the_left_moves_labels_and_cls_along(
    validation: ValidationSet, batch_size: int
) -> None:
    passes = [
        forward_pass(
            Scorer(),
            WindowCollator(validation.windows, 0, left=left),
            n_best=N_BEST,
            max_answer_length=MAX_ANSWER,
            batch_size=size,
        )
        for left, size in ((False, 1), (True, batch_size))
    ]
    assert passes[0].loss == pytest.approx(passes[1].loss, abs=1e-6)
    for name in ("char_start", "char_end", "span_score", "null_score"):
        first, second = (getattr(given.predictions, name).tolist() for given in passes)
        assert first == second


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_told(model, validation: ValidationSet, bad: float) -> None:
    with torch.no_grad():
        model.qa_outputs.bias[0] = bad
    with pytest.raises(DivergedError, match="the model's logits cannot be used"):
        forward_pass(
            model,
            WindowCollator(validation.windows, 0, left=False),
            n_best=N_BEST,
            max_answer_length=MAX_ANSWER,
            batch_size=16,
        )


def test_a_model_loaded_with_a_fresh_head_is_measured_too(
    tiny: Path, validation: ValidationSet
) -> None:
    torch.manual_seed(0)
    fresh = load_model(str(tiny / "base"))
    forward = forward_pass(
        fresh,
        WindowCollator(validation.windows, 0, left=False),
        n_best=N_BEST,
        max_answer_length=MAX_ANSWER,
        batch_size=16,
    )
    assert 1 < forward.loss < np.log(40) + 1  # about what guessing costs
