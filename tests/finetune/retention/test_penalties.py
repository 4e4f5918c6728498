"""Penalties that pull weights back: their values by hand, their gradients by differences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from old_data import old_data, write_start
from safetensors.torch import save_file

from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.retention import anchors
from qa_hpo.finetune.retention.anchors import QuadraticPenalty
from qa_hpo.finetune.retention.ewc import ElasticWeightConsolidation
from qa_hpo.finetune.retention.fisher import diagonal_fisher
from qa_hpo.finetune.retention.l2sp import L2SP
from qa_hpo.finetune.retention.si import IMPORTANCE_FILE, SynapticIntelligence


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start") / "checkpoint")


class Pair(torch.nn.Module):
    """Two weights, from 1 and -2, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([1.0]))
        self.b = torch.nn.Parameter(torch.tensor([-2.0]))
        self.c = torch.nn.Parameter(torch.tensor([5.0]), requires_grad=False)

    def move(self) -> None:
        with torch.no_grad():
            self.a.fill_(1.5)
            self.b.fill_(-1.0)
            self.c.fill_(9.0)
        self.a.grad, self.b.grad = torch.tensor([10.0]), torch.tensor([20.0])


def test_l2sp_by_hand() -> None:
    pair: Any = Pair()
    method = L2SP(3.0)
    method.prepare(pair, 10)
    assert method.penalty().item() == 0.0
    pair.move()
    # 3 / 2 * (0.5 ** 2 + 1 ** 2)
    assert method.penalty().item() == 1.875
    assert method.penalty().dtype is torch.float32
    method.after_backward()
    # 3 * 0.5 and 3 * 1, on top of what is there
    assert [pair.a.grad.item(), pair.b.grad.item(), pair.c.grad] == [11.5, 23.0, None]


def test_si_by_hand(tmp_path: Path) -> None:
    pair: Any = Pair()
    importance = {"a": torch.tensor([2.0]), "b": torch.tensor([0.5])}
    save_file(importance, tmp_path / IMPORTANCE_FILE)
    method = SynapticIntelligence(3.0, str(tmp_path))
    method.prepare(pair, 10)
    pair.move()
    # 3 * (2 * 0.5 ** 2 + 0.5 * 1 ** 2)
    assert method.penalty().item() == 3.0
    method.after_backward()
    # 2 * 3 * 2 * 0.5 and 2 * 3 * 0.5 * 1
    assert [pair.a.grad.item(), pair.b.grad.item(), pair.c.grad] == [16.0, 23.0, None]


def test_ewc_by_hand(tiny: Path, inputs: Inputs, start: Path, tmp_path: Path) -> None:
    old = old_data(tiny, inputs, start, tmp_path)
    model = load_model(str(start))
    method = ElasticWeightConsolidation(6.0, old)
    assert method.needs_old_data
    assert method.needs_head
    method.prepare(model, 10)
    name, weight = "qa_outputs.weight", model.get_parameter("qa_outputs.weight")
    with torch.no_grad():
        weight += 0.5
    weight.grad = torch.zeros_like(weight)
    fisher = diagonal_fisher(old)[name]
    assert fisher.min() > 0
    # 6 / 2 * F * 0.5 ** 2 and 6 * F * 0.5
    assert method.penalty().item() == pytest.approx(0.75 * fisher.sum().item(), rel=1e-6)
    method.after_backward()
    torch.testing.assert_close(weight.grad, 3.0 * fisher)


def test_a_scaled_gradient_gets_a_scaled_penalty() -> None:
    pair: Any = Pair()
    method = L2SP(3.0)
    method.prepare(pair, 10)
    pair.move()
    method.after_backward(1024.0)
    assert [pair.a.grad.item(), pair.b.grad.item()] == [10 + 1024 * 1.5, 20 + 1024 * 3.0]


def test_a_weight_without_a_gradient_stays_without() -> None:
    pair: Any = Pair()
    method = L2SP(3.0)
    method.prepare(pair, 10)
    pair.move()
    pair.a.grad = None
    method.after_backward()
    assert pair.a.grad is None
    assert pair.b.grad.item() == 23.0


def test_a_fresh_head_is_not_held(start: Path) -> None:
    def pulled(method: L2SP) -> set[str]:
        model = load_model(str(start))
        method.prepare(model, 10)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
            with torch.no_grad():
                weight.add_(1.0)
        method.after_backward()
        return {name for name, weight in model.named_parameters() if weight.grad.any()}

    names = {name for name, _ in load_model(str(start)).named_parameters()}
    head = {"qa_outputs.weight", "qa_outputs.bias"}
    assert pulled(L2SP(1.0)) == names
    assert pulled(L2SP(1.0, head_is_fresh=True)) == names - head
    assert head < names


def ewc(tiny: Path, inputs: Inputs, start: Path, tmp_path: Path) -> QuadraticPenalty:
    return ElasticWeightConsolidation(1e3, old_data(tiny, inputs, start, tmp_path))


def l2sp(tiny: Path, inputs: Inputs, start: Path, tmp_path: Path) -> QuadraticPenalty:
    return L2SP(0.3)


def si(tiny: Path, inputs: Inputs, start: Path, tmp_path: Path) -> QuadraticPenalty:
    generator = torch.Generator().manual_seed(1)
    model = load_model(str(start))
    importance = {
        name: torch.rand(weight.shape, generator=generator)
        for name, weight in model.named_parameters()
    }
    save_file(importance, tmp_path / IMPORTANCE_FILE)
    return SynapticIntelligence(0.7, str(tmp_path))


@pytest.mark.parametrize("made", [ewc, l2sp, si])
@pytest.mark.parametrize("chunk", [1 << 24, 100])
def test_the_gradient_is_that_of_the_penalty(
    made: Callable[..., QuadraticPenalty],
    chunk: int,
    tiny: Path,
    inputs: Inputs,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchors, "_CHUNK", chunk)
    model = load_model(str(start)).double()
    method = made(tiny, inputs, start, tmp_path)
    method.prepare(model, 10)
    generator = torch.Generator().manual_seed(2)
    weights = list(model.parameters())

    def draw() -> list[torch.Tensor]:
        return [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]

    def move(direction: list[torch.Tensor], far: float) -> None:
        with torch.no_grad():
            torch._foreach_add_(weights, direction, alpha=far)

    move(draw(), 0.1)
    there = draw()
    for weight, gradient in zip(weights, there, strict=True):
        weight.grad = gradient.clone()
    method.after_backward()
    added = [weight.grad - gradient for weight, gradient in zip(weights, there, strict=True)]
    step = 1e-3
    directions = [draw() for _ in range(3)]
    for index in (0, 5, len(weights) - 2):  # and single parameters
        alone = draw()
        directions.append([w if i == index else 0 * w for i, w in enumerate(alone)])
    for direction in directions:
        move(direction, step)
        above = method.penalty().item()
        move(direction, -2 * step)
        below = method.penalty().item()
        move(direction, step)
        slope = sum((g * d).sum().item() for g, d in zip(added, direction, strict=True))
        assert slope == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-9)
        assert abs(slope) > 1e-6
