"""A fixed part of the model: which weights it holds, and that they stay as they are."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    ElectraConfig,
    ElectraForQuestionAnswering,
    ModernBertConfig,
    ModernBertForQuestionAnswering,
    PreTrainedModel,
)

from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.retention.freeze import Freeze
from tiny import bert_config

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bert(layers: int = 4) -> PreTrainedModel:
    torch.manual_seed(0)
    return BertForQuestionAnswering(bert_config(num_hidden_layers=layers))


def frozen(model: PreTrainedModel) -> set[str]:
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


def begins_with(model: PreTrainedModel, *prefixes: str) -> set[str]:
    found = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert all(any(name.startswith(prefix) for name in found) for prefix in prefixes)
    return found


def batch(seed: int, words: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, words, (6, 20), generator=generator)
    labels = torch.randint(0, 20, (2, 6), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "start_positions": labels[0],
        "end_positions": labels[1],
    }


def train(model: PreTrainedModel, steps: int = 5, **options: Any) -> None:
    """Train as transformers' Trainer does: the optimizer has the weights that want gradients."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1, **options)
    model.train()
    for step in range(steps):
        model(**batch(step, model.config.vocab_size)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("strength", "layers"),
    # Of four; halves go to the even number.
    [(0.0, 0), (0.12, 0), (0.25, 1), (0.375, 2), (0.5, 2), (0.8, 3), (1.0, 4)],
)
def test_the_embeddings_and_the_lowest_layers_are_frozen(strength: float, layers: int) -> None:
    model = bert()
    Freeze(strength).prepare(model, steps=10)
    lowest = [f"bert.encoder.layer.{number}." for number in range(layers)]
    assert frozen(model) == begins_with(model, "bert.embeddings.", *lowest)
    assert all(weight.requires_grad for weight in model.qa_outputs.parameters())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_frozen_weights_stay_to_the_bit_and_all_others_move(strength: float) -> None:
    model = bert()
    Freeze(strength).prepare(model, steps=10)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model)
    held = frozen(model)
    assert held
    for name, weight in model.named_parameters():
        moved = not torch.equal(weight.view(torch.int32), before[name].view(torch.int32))
        assert moved == (name not in held), name


def test_without_it_all_of_them_move() -> None:
    model = bert()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model)
    assert all(not torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_what_the_frozen_part_computes_stays() -> None:
    model = bert()
    Freeze(0.5).prepare(model, steps=10)
    inputs = {"input_ids": batch(9, model.config.vocab_size)["input_ids"]}

    def hidden() -> tuple[torch.Tensor, ...]:
        model.train(False)
        with torch.no_grad():
            states: tuple[torch.Tensor, ...] = model(
                **inputs, output_hidden_states=True
            ).hidden_states
        return states

    before = hidden()
    train(model)
    same = [torch.equal(one, other) for one, other in zip(before, hidden(), strict=True)]
    assert same == [True, True, True, False, False]


def test_dropout_stays_where_it_is() -> None:
    model = bert()
    Freeze(1.0).prepare(model, steps=10)
    model.train()
    words = batch(1, model.config.vocab_size)
    with torch.no_grad():
        assert not torch.equal(model(**words).start_logits, model(**words).start_logits)


def test_other_families() -> None:
    distil = DistilBertForQuestionAnswering(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=4, n_heads=2, hidden_dim=20)
    )
    Freeze(0.5).prepare(distil, steps=10)
    names = "embeddings.", "transformer.layer.0.", "transformer.layer.1."
    assert frozen(distil) == begins_with(distil, *(f"distilbert.{name}" for name in names))

    # What lies between the embeddings and the layers is below them too.
    electra = ElectraForQuestionAnswering(ElectraConfig(**{**SMALL, "embedding_size": 8}))
    Freeze(0.25).prepare(electra, steps=10)
    names = "embeddings.", "embeddings_project.", "encoder.layer.0."
    assert frozen(electra) == begins_with(electra, *(f"electra.{name}" for name in names))

    modern = ModernBertForQuestionAnswering(
        ModernBertConfig(**{**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    )
    Freeze(0.25).prepare(modern, steps=10)
    assert frozen(modern) == begins_with(modern, "model.embeddings.", "model.layers.0.")


def albert(**options: Any) -> PreTrainedModel:
    return AlbertForQuestionAnswering(AlbertConfig(**{**SMALL, "embedding_size": 8, **options}))


def test_layers_that_share_their_weights_cannot_be_frozen_in_part() -> None:
    model = albert()
    model.name_or_path = "some/albert"
    with pytest.raises(CheckpointError) as caught:
        Freeze(0.5).prepare(model, steps=10)
    message = str(caught.value)
    assert message.startswith("some/albert: 2 of its 4 layers cannot be frozen")
    assert "\n" not in message
    assert frozen(model) == set()
    Freeze(0.1).prepare(model, steps=10)
    assert frozen(model) == begins_with(model, "albert.embeddings.")


def test_layers_that_can_be_told_apart_are_frozen_in_every_family() -> None:
    model = albert(num_hidden_groups=4)
    Freeze(0.5).prepare(model, steps=10)
    groups = [f"albert.encoder.albert_layer_groups.{number}." for number in range(2)]
    assert frozen(model) == begins_with(model, "albert.embeddings.", *groups)
