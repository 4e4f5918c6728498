"""What a run goes on seeing of the old task: which questions, how often, and to what end."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForQuestionAnswering, PreTrainedModel

from qa_hpo.config import Runtime
from qa_hpo.finetune.batching import LengthGroupedBatches, WindowCollator
from qa_hpo.finetune.evaluation import span_loss
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.retention.base import OldData
from qa_hpo.finetune.retention.distill import Distill
from qa_hpo.finetune.retention.memory import remembered, stratified
from qa_hpo.finetune.retention.replay import Replay
from qa_hpo.squad.windows import Windows
from tiny import bert_config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def windows_of(question_of_each: list[int], *, seed: int) -> Windows:
    """Windows of random tokens."""
    rng = np.random.default_rng(seed)
    count = len(question_of_each)
    lengths = rng.integers(4, 20, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(offsets[-1])
    start = rng.integers(0, lengths)
    return Windows(
        input_ids=rng.integers(4, 60, tokens).astype(np.int32),
        token_type_ids=rng.integers(0, 2, tokens).astype(np.uint8),
        char_start=np.full(tokens, -1, np.int32),
        char_end=np.full(tokens, -1, np.int32),
        offsets=offsets,
        question_index=np.array(question_of_each, dtype=np.int32),
        cls_index=np.zeros(count, np.int16),
        start_positions=start.astype(np.int16),
        end_positions=rng.integers(start, lengths).astype(np.int16),
        questions=max(question_of_each) + 1,
    )


def old_data(windows: Windows, groups: list[int], *, left: bool = False, **more: Any) -> OldData:
    return OldData(
        checkpoint="the start",
        windows=windows,
        groups=np.array(groups, dtype=np.int64),
        key="made up",
        padded=lambda part: WindowCollator(part, 0, left=left, multiple=4),
        cache=Path("nowhere"),
        **{"runtime": Runtime(eval_batch_size=3), **more},
    )


# --- which questions -------------------------------------------------------------------------

# 20 questions: 10 of article 7, 6 of article 2, 3 of article 9, 1 of article 4, out of order.
ARTICLES = np.array([7, 2, 7, 9, 7, 2, 4, 7, 7, 2, 9, 7, 2, 7, 9, 7, 2, 7, 2, 7], dtype=np.int64)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # 6 of 20: exactly 3, 1.8, 0.9 and 0.3; the two that are missing go to 0.9 and 0.8.
        (0.3, {7: 3, 2: 2, 9: 1}),
        # 10 of 20: 5, 3, 1.5 and 0.5, where chance has to decide between two halves.
        (0.5, None),
        # 1 of 20: 0.5, 0.3, 0.15 and 0.05.
        (0.05, {7: 1}),
        # 0.02 * 20 would be no question at all.
        (0.02, {7: 1}),
        # 14 of 20: 7, 4.2, 2.1 and 0.7.
        (0.7, {7: 7, 2: 4, 9: 2, 4: 1}),
        (1.0, {7: 10, 2: 6, 9: 3, 4: 1}),
        (0.0, {}),
    ],
)
def test_every_article_gives_its_part(share: float, expected: dict[int, int] | None) -> None:
    drawn = stratified(ARTICLES, share, seed=4)
    assert drawn.dtype == np.int64
    assert sorted(set(drawn.tolist())) == drawn.tolist()
    found = {article: (ARTICLES[drawn] == article).sum() for article in set(ARTICLES[drawn])}
    if expected is None:
        assert found in ({7: 5, 2: 3, 9: 2}, {7: 5, 2: 3, 9: 1, 4: 1})
    else:
        assert found == expected


def test_equal_remainders_are_decided_by_chance_and_questions_too() -> None:
    # Ten articles of two questions each, and one question of every other article.
    groups = np.repeat(np.arange(10), 2)
    taken = np.zeros(20)
    for seed in range(400):
        drawn = stratified(groups, 0.25, seed)
        assert len(drawn) == 5
        assert len(set(groups[drawn].tolist())) == 5
        taken[drawn] += 1
    # Each question is drawn a quarter of the times: 100 +- 8.7, so that 60 are five deviations.
    assert taken.min() > 55
    assert taken.max() < 145


def test_a_draw_depends_on_its_seed_alone() -> None:
    same = [stratified(ARTICLES, 0.3, seed=4).tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert len({tuple(stratified(ARTICLES, 0.3, seed).tolist()) for seed in range(10)}) > 5


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        stratified(ARTICLES, share, seed=0)


# --- how often -------------------------------------------------------------------------------

NEW = [0, 1, 1, 2, 3, 4, 4, 4, 5]
# 4 questions in 2 articles; half of them are one question of each.
OLD = [0, 0, 1, 2, 2, 2, 3]
OLD_ARTICLES = [0, 0, 1, 1]


@pytest.mark.parametrize("method", [Replay, Distill])
def test_the_memory_holds_all_windows_of_its_questions(method: type[Replay]) -> None:
    old = old_data(windows_of(OLD, seed=2), OLD_ARTICLES)
    memory = method(0.5, old, 3).memory
    questions = sorted(set(memory.question_index.tolist()))
    assert len(questions) == 2
    assert questions[0] in (0, 1)
    assert questions[1] in (2, 3)
    numbers = [window for window, question in enumerate(OLD) if question in questions]
    np.testing.assert_array_equal(memory.input_ids, old.windows.take(np.array(numbers)).input_ids)
    assert remembered(old, 0.5, 3).input_ids.tolist() == memory.input_ids.tolist()


@pytest.mark.parametrize("left", [False, True])
def test_every_epoch_holds_every_new_window_and_every_remembered_one_once(left: bool) -> None:
    new, old = windows_of(NEW, seed=1), old_data(windows_of(OLD, seed=2), OLD_ARTICLES)
    method = Replay(0.5, old, seed=3)
    mixed = method.batches(WindowCollator(new, 9, left=left, multiple=4))
    assert (mixed.pad_id, mixed.left, mixed.multiple) == (9, left, 4)

    def texts(windows: Windows) -> list[list[int]]:
        return [part.tolist() for part in np.split(windows.input_ids, windows.offsets[1:-1])]

    expected = sorted(texts(new) + texts(method.memory))
    assert len(expected) == len(NEW) + len(method.memory)
    orders = []
    for epoch in range(3):
        batches = LengthGroupedBatches(mixed.windows.lengths, 4, seed=5)
        batches.set_epoch(epoch)
        seen = []
        for indices in batches:
            batch = mixed(indices)
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                assert set(ids[mask == 0].tolist()) <= {9}
                seen.append(ids[mask == 1].tolist())
        orders.append(seen)
        assert sorted(seen) == expected
    assert orders[0] != orders[1]


def test_labels_of_remembered_windows_are_their_own() -> None:
    new, old = windows_of(NEW, seed=1), old_data(windows_of(OLD, seed=2), OLD_ARTICLES)
    method = Replay(1.0, old, seed=3)
    mixed = method.batches(WindowCollator(new, 9, left=False))
    batch = mixed([len(NEW) + window for window in range(len(OLD))])
    assert batch["start_positions"].tolist() == old.windows.start_positions.tolist()
    assert batch["end_positions"].tolist() == old.windows.end_positions.tolist()
    assert mixed.windows.questions == 10


# --- to what end -----------------------------------------------------------------------------


@pytest.fixture
def model() -> BertForQuestionAnswering:
    torch.manual_seed(11)
    return BertForQuestionAnswering(bert_config())


def split(
    batch: dict[str, torch.Tensor], keys: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A batch's inputs, labels and extras, as a run takes it apart."""
    labels = {name: batch.pop(name) for name in ("start_positions", "end_positions")}
    extras = {name: batch.pop(name) for name in keys}
    return batch, labels, extras


def losses_of(
    method: Distill, model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """What each window costs by its labels, what it costs with the method, and the outputs."""
    inputs, labels, extras = split(dict(batch), method.batch_keys)
    outputs = model(**inputs)
    plain = span_loss(outputs.start_logits, outputs.end_logits, inputs["attention_mask"], **labels)
    return plain, method.window_losses(plain, outputs, inputs, extras), outputs


def distillation(
    model: PreTrainedModel, *, left: bool = False, temperature: float = 2.0
) -> tuple[Distill, WindowCollator]:
    old = old_data(windows_of(OLD, seed=2), OLD_ARTICLES, left=left)
    method = Distill(1.0, old, 3, temperature)
    mixed = method.batches(WindowCollator(windows_of(NEW, seed=1), 0, left=left, multiple=4))
    method.prepare(model, steps=10)
    return method, mixed


def kl_by_hand(start: list[float], now: list[float], temperature: float) -> float:
    """T^2 times the divergence of one softened distribution from another, token by token."""

    def softened(logits: list[float]) -> list[float]:
        powers = [np.exp(np.float64(logit) / temperature) for logit in logits]
        return [power / sum(powers) for power in powers]

    p, q = softened(start), softened(now)
    return temperature**2 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def alone(model: PreTrainedModel, windows: Windows, window: int) -> tuple[list[float], list[float]]:
    """The logits of one window that goes through the model by itself, without padding."""
    tokens = slice(int(windows.offsets[window]), int(windows.offsets[window + 1]))
    assert windows.token_type_ids is not None
    ids, types = (
        torch.from_numpy(flat[tokens].astype(np.int64))[None]
        for flat in (windows.input_ids, windows.token_type_ids)
    )
    model.train(False)
    with torch.no_grad():
        outputs = model(input_ids=ids, token_type_ids=types, attention_mask=torch.ones_like(ids))
    return outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_old_windows_loss_against_a_slow_reference(
    model: BertForQuestionAnswering, temperature: float
) -> None:
    start = copy.deepcopy(model)
    method, mixed = distillation(model, temperature=temperature)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    # Old and new ones of unlike length, so that there is padding.
    chosen = [0, len(NEW) + 2, 5, len(NEW), len(NEW) + 6, len(NEW) + 3]
    batch = mixed(chosen)
    assert (batch["attention_mask"] == 0).any()
    model.train(False)
    plain, found, _ = losses_of(method, model, batch)
    for place, window in enumerate(chosen):
        if window < len(NEW):
            assert found[place] == plain[place]
            continue
        before = alone(start, mixed.windows, window)
        now = alone(model, mixed.windows, window)
        expected = [kl_by_hand(a, b, temperature) for a, b in zip(before, now, strict=True)]
        assert min(expected) > 1e-3
        assert found[place].item() == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-5)


class ByToken(torch.nn.Module):
    """Logits that depend on the token alone, wherever it stands."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(start_logits=input_ids / 10, end_logits=5 - input_ids / 20)


@pytest.mark.parametrize("left", [False, True])
def test_the_starts_logits_stand_at_their_tokens(left: bool) -> None:
    _, mixed = distillation(ByToken(), left=left)  # type: ignore[arg-type]
    for window in range(len(mixed.windows)):
        # Beside a longer window, so that there is padding.
        longest = int(mixed.windows.lengths.argmax())
        batch = mixed([longest, window])
        row = {name: rows[1] for name, rows in batch.items()}
        inside = row["attention_mask"] == 1
        assert bool(inside[0]) == (not left or bool(inside.all()))
        is_old = window >= len(NEW)
        assert bool(row["is_old"]) == is_old
        for name, of_token in (("start", lambda i: i / 10), ("end", lambda i: 5 - i / 20)):
            expected = of_token(row["input_ids"]) * inside * is_old
            assert torch.equal(row[f"soft_{name}"], expected)


def test_nothing_is_lost_by_the_start_itself(model: BertForQuestionAnswering) -> None:
    method, mixed = distillation(model)
    model.train(False)
    old = [len(NEW) + window for window in range(len(OLD))]
    plain, found, _ = losses_of(method, model, mixed(old))
    assert found.abs().max().item() < 1e-6
    norms = []
    for losses in (found, plain):
        model.zero_grad()
        losses.sum().backward(retain_graph=True)
        norms.append(float(torch.nn.utils.get_total_norm([w.grad for w in model.parameters()])))
    assert norms[1] > 1
    assert norms[0] < 1e-5 * norms[1]


@pytest.mark.parametrize("left", [False, True])
def test_padding_has_no_part(model: BertForQuestionAnswering, left: bool) -> None:
    method, mixed = distillation(model, left=left)
    chosen = [len(NEW) + window for window in range(len(OLD))]
    inputs, _, extras = split(mixed(chosen), method.batch_keys)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    shape = padding.shape
    torch.manual_seed(0)
    logits = [torch.randn(shape, requires_grad=True) for _ in range(2)]

    class Outputs:
        start_logits, end_logits = logits

    found = method.window_losses(torch.zeros(shape[0]), Outputs, inputs, extras)
    assert found.isfinite().all()
    found.sum().backward()
    for values in logits:
        assert values.grad is not None
        assert values.grad.isfinite().all()
        assert (values.grad[padding] == 0).all()
        assert (values.grad[~padding] != 0).all()

    class Others:
        start_logits, end_logits = (values.detach().masked_fill(padding, 50) for values in logits)

    again = method.window_losses(torch.zeros(shape[0]), Others, inputs, extras)
    torch.testing.assert_close(again, found.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_the_start_answers_without_dropout_and_goes_on_as_it_was(
    model: BertForQuestionAnswering, training: bool
) -> None:
    checked = []
    old = old_data(windows_of(OLD, seed=2), OLD_ARTICLES, check=lambda: checked.append(1))
    mixed = []
    state = torch.get_rng_state()
    for _ in range(2):
        method = Distill(1.0, old, 3)
        mixed.append(method.batches(WindowCollator(windows_of(NEW, seed=1), 0, left=False)))
        model.train(training)
        method.prepare(model, steps=10)
        assert model.training is training
    # Three windows at a time at most.
    assert len(checked) >= 2 * 3
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (collator([0, len(NEW) + 1]) for collator in mixed)
    for key in method.batch_keys:
        assert torch.equal(one[key], other[key])
    assert one["is_old"].tolist() == [False, True]
    assert (one["soft_start"][0] == 0).all()


def test_distillation_in_bfloat16(model: BertForQuestionAnswering) -> None:
    old = old_data(windows_of(OLD, seed=2), OLD_ARTICLES, runtime=Runtime(precision="bf16"))
    method = Distill(1.0, old, 3)
    mixed = method.batches(WindowCollator(windows_of(NEW, seed=1), 0, left=False))
    method.prepare(model, steps=10)
    soft = mixed([len(NEW)])["soft_start"]
    assert soft.dtype == torch.float32
    exact, _ = alone(model, mixed.windows, len(NEW))
    assert soft[0].tolist() == pytest.approx(exact, abs=0.05)
    assert soft[0].tolist() != pytest.approx(exact, abs=1e-4)


def test_a_real_old_task(tiny: Path, inputs: Inputs) -> None:
    corpus = inputs.train_corpus(str(tiny / "train.json"), None)
    windows = inputs.windows(corpus, str(tiny / "base"), max_length=40, doc_stride=8)
    old = old_data(windows, corpus.groups().tolist())
    memory = Replay(0.2, old, seed=1).memory
    # 240 questions in articles of five: one of each.
    questions = np.unique(memory.question_index)
    assert len(questions) == 48
    assert sorted((questions // 5).tolist()) == list(range(48))
