"""Dropout from 16 bits an element: as random, as large, and nothing else changed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, DistilBertConfig
from transformers import DistilBertForQuestionAnswering as DistilBert

from qa_hpo.finetune.dropout import attention, dropped_scale, use_quick_dropout
from tiny import bert_config


@pytest.mark.parametrize("probability", [0.1, 0.5, 2**-16, 1 - 2**-10])
def test_how_often_and_how_much(probability: float) -> None:
    torch.manual_seed(1)
    count = 1_000_003  # no multiple of 4
    scale = dropped_scale(torch.empty(count), probability)
    exact = round(probability * 65536) / 65536
    dropped = int((scale == 0).sum())
    assert abs(dropped - exact * count) < 5 * (exact * (1 - exact) * count) ** 0.5 + 1
    assert set(scale.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - exact)).item()}
    assert scale.mean().item() == pytest.approx(1.0, abs=5 * (exact / (1 - exact) / count) ** 0.5)


def test_elements_are_independent() -> None:
    """Also those that share a draw: neighbours, and places of the same rest of 4."""
    torch.manual_seed(2)
    dropped = (dropped_scale(torch.empty(2_000_000), 0.3) == 0).double().numpy() - 0.3
    for distance in (1, 2, 3, 4, 8, 64):
        correlation = np.mean(dropped[:-distance] * dropped[distance:]) / 0.21
        assert abs(correlation) < 5 / 2_000_000**0.5
    for place in range(4):
        assert abs(dropped[place::4].mean()) < 5 * (0.21 / 500_000) ** 0.5


def test_the_seed_decides() -> None:
    torch.manual_seed(3)
    one, other = (dropped_scale(torch.empty(7, 9), 0.4) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(one, dropped_scale(torch.empty(7, 9), 0.4))
    assert not torch.equal(one, other)


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(4)
    return [torch.randn(3, 2, 11, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_is_the_usual_but_for_what_is_dropped(kind: str) -> None:
    query, key, value = tensors(torch.float64)
    allowed = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    allowed[1, ..., 7:] = False
    added = torch.zeros(3, 1, 1, 11, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    mask = {"none": None, "bool": allowed, "added": added}[kind]
    layer = torch.nn.Identity()
    torch.manual_seed(5)
    ours, weights = attention(layer, query, key, value, mask, dropout=0.25)
    assert weights is None
    # By hand, with the same draws.
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / 8**0.5
    if kind != "none":
        scores = scores + added
    torch.manual_seed(5)
    probabilities = scores.exp() / scores.exp().sum(-1, keepdim=True)
    by_hand = torch.einsum(
        "bhqk,bhkd->bqhd", probabilities * dropped_scale(probabilities, 0.25), value
    )
    torch.testing.assert_close(ours, by_hand)
    given = torch.autograd.grad(ours.square().sum(), (query, key, value))
    wanted = torch.autograd.grad(by_hand.square().sum(), (query, key, value))
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("change", ["no dropout", "causal", "groups"])
def test_what_is_left_to_transformers(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from qa_hpo.finetune import dropout as module

    asked = []
    monkeypatch.setattr(module, "sdpa_attention_forward", lambda *a, **k: asked.append((a, k)))
    query, key, value = tensors()
    options = {"dropout": 0.0 if change == "no dropout" else 0.1}
    if change == "causal":
        options["is_causal"] = True
    if change == "groups":
        key, value = key[:, :1], value[:, :1]
    attention(torch.nn.Identity(), query, key, value, None, **options)
    assert len(asked) == 1


def models() -> list[torch.nn.Module]:
    torch.manual_seed(6)
    distil = DistilBertConfig(
        vocab_size=150, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    return [BertForQuestionAnswering(bert_config()), DistilBert(distil)]


@pytest.mark.parametrize("number", [0, 1], ids=["bert", "distilbert"])
def test_a_model_evaluates_as_before_and_is_saved_as_before(number: int, tmp_path: Path) -> None:
    model = models()[number]
    ids = torch.randint(5, 100, (4, 20))
    mask = torch.ones_like(ids)
    mask[2, 13:] = 0
    model.train(False)
    before = model(input_ids=ids, attention_mask=mask).start_logits
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "before")
    use_quick_dropout(model)
    after = model(input_ids=ids, attention_mask=mask).start_logits
    torch.testing.assert_close(before, after)
    model.save_pretrained(tmp_path / "after")
    assert list(model.state_dict()) == names
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("before", "after")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("number", [0, 1], ids=["bert", "distilbert"])
def test_a_model_in_training_has_the_loss_that_torch_gives_it_on_average(number: int) -> None:
    """The mean and the spread of outputs over many draws are those of torch's own dropout."""
    model = models()[number]
    ids = torch.randint(5, 100, (1, 20)).expand(64, -1)  # the same text, dropped out differently
    model.train()

    def outputs() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(input_ids=ids).start_logits for _ in range(24)])

    usual = outputs()
    use_quick_dropout(model)
    quick = outputs()
    spread = usual.std(0)
    assert (spread > 0).all()
    assert ((usual.mean(0) - quick.mean(0)).abs() < 6 * spread * (2 / len(usual)) ** 0.5).all()
    assert (quick.std(0) / spread - 1).abs().max() < 0.2


def test_a_model_without_dropout_is_left_alone() -> None:
    config = bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert isinstance(config, BertConfig)
    model = BertForQuestionAnswering(config)
    ids = torch.randint(5, 100, (4, 20))
    model.train()
    state = torch.get_rng_state()
    before = model(input_ids=ids).start_logits
    use_quick_dropout(model)
    torch.testing.assert_close(model(input_ids=ids).start_logits, before)
    assert torch.equal(torch.get_rng_state(), state)
