"""Weights that get no updates: which, how many, and that they stay as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from old_data import old_data, write_start

from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.retention.base import OldData
from qa_hpo.finetune.retention.fisher import diagonal_fisher
from qa_hpo.finetune.retention.mask import Mask, highest


@pytest.fixture(scope="module")
def old(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> OldData:
    folder = tmp_path_factory.mktemp("mask")
    return old_data(tiny, inputs, write_start(folder / "start"), folder / "cache", questions=24)


def adamw(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1)


def sgd(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=1e-2, weight_decay=0.1, momentum=0.9)


def steps(model: Any, old: OldData, make: Callable[..., Any], method: Any) -> list[float]:
    """Train three batches, and return the gradients' norms before clipping."""
    optimizer = make(model.parameters())
    collator = old.padded(old.windows)
    norms = []
    for first in (0, 8, 16):
        batch = collator(range(first, first + 8))
        model(**batch).loss.backward()
        method.after_backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        method.after_step()
        optimizer.zero_grad()
    return norms


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_frozen_weights_stay_and_the_others_move(
    old: OldData, make: Callable[..., Any], share: float
) -> None:
    model = load_model(old.checkpoint)
    method = Mask(share, old)
    assert method.needs_old_data
    assert method.needs_head
    method.prepare(model, 3)
    before = flat(model.parameters()).clone()
    steps(model, old, make, method)
    after = flat(model.parameters())
    # By a sort, the plain way; what has no information at all is far from being among the highest.
    found = diagonal_fisher(old)
    values = flat(found[name] for name, _ in model.named_parameters())
    count = round(share * len(values))
    order = values.argsort(descending=True)
    assert values[order[count - 1]] > values[order[count]]
    frozen, free = order[:count], order[count:]
    assert torch.equal(after[frozen].view(torch.int32), before[frozen].view(torch.int32))
    free = free[before[free] != 0]  # 0 without a gradient stays 0
    assert (after[free] != before[free]).float().mean() > 0.999


def test_without_the_mask_all_of_them_would_move(old: OldData) -> None:
    model = load_model(old.checkpoint)
    method = Mask(0.0, old)
    method.prepare(model, 3)
    before = flat(model.parameters()).clone()
    steps(model, old, adamw, method)
    moved = flat(model.parameters()) != before
    assert moved[before != 0].float().mean() > 0.999


def test_clipping_does_not_count_frozen_weights(old: OldData) -> None:
    model = load_model(old.checkpoint)
    method = Mask(0.5, old)
    method.prepare(model, 3)
    weights = list(model.named_parameters())
    fisher = diagonal_fisher(old)
    mask = highest({name: fisher[name] for name, _ in weights}, 0.5)
    batch = old.padded(old.windows)(range(8))
    model.eval()
    model(**batch).loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in weights}
    method.after_backward()
    for name, weight in weights:
        assert torch.equal(weight.grad, gradients[name] * ~mask[name])


def test_all_weights(old: OldData) -> None:
    model = load_model(old.checkpoint)
    method = Mask(1.0, old)
    method.prepare(model, 3)
    before = flat(model.parameters()).clone()
    assert steps(model, old, adamw, method) == [0.0, 0.0, 0.0]
    assert torch.equal(flat(model.parameters()), before)


def test_weights_that_are_not_trained_do_not_count(old: OldData) -> None:
    model = load_model(old.checkpoint)
    model.get_input_embeddings().requires_grad_(False)
    method = Mask(0.25, old)
    method.prepare(model, 3)
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    for weight in trained.values():
        weight.grad = torch.ones_like(weight)
    method.after_backward()
    zeros = sum(int((weight.grad == 0).sum()) for weight in trained.values())
    assert zeros == round(0.25 * sum(weight.numel() for weight in trained.values()))
    assert model.get_input_embeddings().weight.grad is None


def test_the_highest_by_hand() -> None:
    values = {"a": torch.tensor([[3.0, 0.0], [1.0, 2.0]]), "b": torch.tensor([1.0, 1.0, 5.0, 0.0])}

    def chosen(share: float) -> tuple[Any, Any]:
        masks = highest(values, share)
        return masks["a"].int().tolist(), masks["b"].int().tolist()

    assert chosen(0.0) == ([[0, 0], [0, 0]], [0, 0, 0, 0])
    assert chosen(1 / 8) == ([[0, 0], [0, 0]], [0, 0, 1, 0])
    assert chosen(3 / 8) == ([[1, 0], [0, 1]], [0, 0, 1, 0])
    # Three are equal: those further ahead come first.
    assert chosen(4 / 8) == ([[1, 0], [1, 1]], [0, 0, 1, 0])
    assert chosen(5 / 8) == ([[1, 0], [1, 1]], [1, 0, 1, 0])
    assert chosen(6 / 8) == ([[1, 0], [1, 1]], [1, 1, 1, 0])
    assert chosen(7 / 8) == ([[1, 1], [1, 1]], [1, 1, 1, 0])
    assert chosen(1.0) == ([[1, 1], [1, 1]], [1, 1, 1, 1])
    # 0.4 of 8 is 3.2, 0.45 is 3.6.
    assert chosen(0.4) == chosen(3 / 8)
    assert chosen(0.45) == chosen(4 / 8)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.77])
def test_the_highest_are_as_many_as_asked_for_with_ties_everywhere(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    values = {
        name: torch.randint(0, 7, shape, generator=generator).float()
        for name, shape in {"a": (50, 7), "b": (1000,), "c": (3, 4, 5)}.items()
    }
    masks = highest(values, share)
    together = flat(values.values())
    mask = flat(masks.values())
    expected = torch.zeros(len(together), dtype=torch.bool)
    order = together.argsort(descending=True, stable=True)
    expected[order[: round(share * len(together))]] = True
    assert torch.equal(mask, expected)
