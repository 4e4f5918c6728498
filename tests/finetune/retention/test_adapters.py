"""Low-rank adapters: what trains, what they merge to, and that a run can go on with them."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from old_data import write_start
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    AutoModelForQuestionAnswering,
    BertForQuestionAnswering,
    PreTrainedModel,
)

from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.batching import LengthGroupedBatches, WindowCollator
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.retention.adalora import AdaLora, budget_phases
from qa_hpo.finetune.retention.adapters import adapted_modules
from qa_hpo.finetune.retention.base import RetentionMethod
from qa_hpo.finetune.retention.lora import Lora
from tiny import bert_config

Make = Callable[[int], RetentionMethod]
RANK = 2
STEPS = 20
# Six linear modules in each of the two layers of the tiny BERT.
ADAPTERS = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("adapters") / "start")


@pytest.fixture(scope="module")
def collator(tiny: Path, inputs: Inputs, start: Path) -> WindowCollator:
    corpus = inputs.train_corpus(str(tiny / "train.json"), None)
    windows = inputs.windows(corpus, str(start), max_length=40, doc_stride=8)
    return WindowCollator(windows, 0, left=False)


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def prepared(method: RetentionMethod, start: Path, steps: int = STEPS) -> PreTrainedModel:
    torch.manual_seed(7)
    model = load_model(str(start))
    method.prepare(model, steps)
    return model


def adamw(model: PreTrainedModel) -> torch.optim.Optimizer:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1)


def batches(collator: WindowCollator) -> Iterator[dict[str, torch.Tensor]]:
    order = LengthGroupedBatches(collator.windows.lengths, 8, seed=1)
    for epoch in range(100):
        order.set_epoch(epoch)
        for indices in order:
            yield collator(indices)


def train(
    method: RetentionMethod,
    model: PreTrainedModel,
    collator: WindowCollator,
    steps: range,
    optimizer: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """Do the given steps of a run, whose dropout depends on the step alone."""
    optimizer = optimizer or adamw(model)
    model.train()
    for step, batch in zip(range(steps.stop), batches(collator), strict=False):
        if step < steps.start:
            continue
        torch.manual_seed(step)
        model(**batch).loss.backward()
        method.after_backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        method.after_step()
        optimizer.zero_grad()
    return optimizer


def logits(model: PreTrainedModel, collator: WindowCollator, windows: range) -> torch.Tensor:
    batch = {name: rows for name, rows in collator(windows).items() if "positions" not in name}
    model.train(False)
    with torch.no_grad():
        outputs = model(**batch)
    inside = batch["attention_mask"].bool()
    return torch.stack([outputs.start_logits[inside], outputs.end_logits[inside]])


@pytest.mark.parametrize("make", [Lora, AdaLora])
def test_a_run_begins_as_the_start(make: Make, start: Path, collator: WindowCollator) -> None:
    method = make(RANK)
    model = prepared(method, start)
    assert type(model) is BertForQuestionAnswering
    whole = range(len(collator.windows))
    torch.testing.assert_close(
        logits(model, collator, whole), logits(load_model(str(start)), collator, whole)
    )


@pytest.mark.parametrize("make", [Lora, AdaLora])
def test_adapters_are_beside_all_linear_modules_of_the_layers(make: Make, start: Path) -> None:
    method = make(RANK)
    model = prepared(method, start)
    names = ["attention.self.query", "attention.self.key", "attention.self.value"]
    names += ["attention.output.dense", "intermediate.dense", "output.dense"]
    expected = {f"bert.encoder.layer.{n}.{name}" for n in range(2) for name in names}
    assert len(expected) == ADAPTERS
    found = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert found == expected
    assert sorted(adapted_modules(load_model(str(start)))) == sorted(expected)


@pytest.mark.parametrize("make", [Lora, AdaLora])
def test_the_starts_weights_stay_and_adapters_and_head_move(
    make: Make, start: Path, collator: WindowCollator
) -> None:
    method = make(RANK)
    model = prepared(method, start)
    before = bits(model)
    train(method, model, collator, range(12))
    theirs = load_file(start / "model.safetensors")
    for name, values in model.state_dict().items():
        trains = ".lora_" in name or name.startswith("qa_outputs")
        # AdaLora's budget takes singular values away again, as 0, which they were at the start.
        taken = ".lora_E" in name and not values.any()
        assert torch.equal(values, before[name]) != (trains and not taken), name
        if not trains and "ranknum" not in name:
            assert torch.equal(values, theirs[name.replace(".base_layer", "")]), name
    singular = [values for name, values in model.state_dict().items() if ".lora_E" in name]
    assert not singular or any(values.any() for values in singular)


@pytest.mark.parametrize("make", [Lora, AdaLora])
def test_merged_is_an_ordinary_model_that_answers_alike(
    make: Make, start: Path, collator: WindowCollator, tmp_path: Path
) -> None:
    method = make(RANK)
    model = prepared(method, start)
    train(method, model, collator, range(STEPS))
    forward = model.forward

    def lower(*args: Any, **more: Any) -> Any:
        return forward(*args, **more)

    # As accelerate does for lower precision.
    model._original_forward, model.forward = forward, lower
    before, mode = bits(model), model.training
    merged = method.portable(model)
    assert same(bits(model), before)
    assert model.training is mode
    assert type(merged) is BertForQuestionAnswering
    own = load_model(str(start))
    assert list(merged.state_dict()) == list(own.state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in own.modules()]
    assert not hasattr(merged, "peft_config")

    whole = range(len(collator.windows))
    expected = logits(model, collator, whole)
    torch.testing.assert_close(logits(merged, collator, whole), expected, rtol=1e-4, atol=1e-4)
    # And it has moved from the start by more than rounding.
    assert (logits(own, collator, whole) - expected).abs().max() > 0.1
    # It is another model, whose weights are its own.
    theirs, own_places = ({w.data_ptr() for w in m.parameters()} for m in (model, merged))
    assert not theirs & own_places

    method.portable(model).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded, loading = AutoModelForQuestionAnswering.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    torch.testing.assert_close(logits(loaded, collator, whole), expected, rtol=1e-4, atol=1e-4)


def test_a_merged_weight_by_hand(start: Path, collator: WindowCollator) -> None:
    method = Lora(RANK)
    model = prepared(method, start)
    train(method, model, collator, range(5))
    now = {name: values.numpy() for name, values in model.state_dict().items()}
    merged = method.portable(model).state_dict()
    name = "bert.encoder.layer.1.intermediate.dense"
    down, up = now[f"{name}.lora_A.default.weight"], now[f"{name}.lora_B.default.weight"]
    assert down.shape == (RANK, 32)
    assert up.shape == (64, RANK)
    # Alpha is twice the rank: the product counts twice.
    expected = now[f"{name}.base_layer.weight"] + 2 * up @ down
    np.testing.assert_allclose(merged[f"{name}.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(up @ down) == RANK


@pytest.mark.parametrize("make", [Lora, AdaLora])
def test_the_trainers_own_files_hold_the_adapters(
    make: Make, start: Path, collator: WindowCollator, tmp_path: Path
) -> None:
    """What transformers' Trainer does with its resume states: save_pretrained, then names."""
    method = make(RANK)
    model = prepared(method, start)
    train(method, model, collator, range(8))
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    kept = load_file(tmp_path / "model.safetensors")
    assert kept.keys() == model.state_dict().keys()
    again = prepared(make(RANK), start)
    result = again.load_state_dict(kept, strict=False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert same(bits(again), bits(model))


def test_layers_that_share_their_weights_have_one_adapter() -> None:
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "embedding_size": 8}
    config = AlbertConfig(**small, num_attention_heads=2, intermediate_size=20)
    model = AlbertForQuestionAnswering(config)
    Lora(RANK).prepare(model, 10)
    adapters = [name for name, _ in model.named_parameters() if ".lora_A" in name]
    assert len(adapters) == 6
    assert not any("embedding" in name or "qa_outputs" in name for name in adapters)


@pytest.mark.parametrize("make", [Lora, AdaLora])
def test_a_model_without_linear_modules_in_its_layers_is_refused(make: Make) -> None:
    model = BertForQuestionAnswering(bert_config(num_hidden_layers=1))
    model.bert.encoder.layer = torch.nn.ModuleList([torch.nn.Identity()])
    model.name_or_path = "some/model"
    with pytest.raises(CheckpointError, match=r"^some/model: .*no linear modules"):
        make(RANK).prepare(model, 10)


# --- the budget of ranks ---------------------------------------------------------------------


def ranks(model: PreTrainedModel) -> list[int]:
    """How many entries of each E are not 0."""
    return [int((w != 0).sum()) for name, w in model.named_parameters() if ".lora_E." in name]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, None), (2, (0, 0)), (3, (0, 1)), (4, (0, 1)), (10, (1, 3)), (1000, (100, 300))],
)
def test_the_phases_of_a_run(steps: int, expected: tuple[int, int] | None) -> None:
    assert budget_phases(steps) == expected


def test_every_length_of_run_has_room_for_its_phases() -> None:
    for steps in range(2, 300):
        before, after = budget_phases(steps) or (-1, -1)
        assert min(before, after) >= 0
        assert before < steps - after
        assert steps - after >= 2


def test_ranks_fall_to_the_budget(start: Path, collator: WindowCollator) -> None:
    method = AdaLora(4)
    model = prepared(method, start)
    assert len(ranks(model)) == ADAPTERS
    optimizer, seen = None, []
    for step in range(STEPS):
        optimizer = train(method, model, collator, range(step, step + 1), optimizer)
        seen.append(sum(ranks(model)))
    # Six per adapter for the first two steps, the budget of four from step 14 on, and between
    # them 48 + 24 (1 - (step - 2) / 12)^3, rounded down.
    expected = [72] * 2
    expected += [int(48 + 24 * (1 - (step - 2) / 12) ** 3) for step in range(3, 15)]
    expected += [48] * 6
    assert seen == expected
    # They go where they matter: not the same everywhere.
    assert len(set(ranks(model))) > 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_very_short_run_ends_at_its_budget(
    steps: int, start: Path, collator: WindowCollator
) -> None:
    method = AdaLora(RANK)
    model = prepared(method, start, steps)
    train(method, model, collator, range(steps))
    assert sum(ranks(model)) <= RANK * ADAPTERS
    assert sum(ranks(model)) > RANK * ADAPTERS / 2
    one, other = (logits(m, collator, range(20)) for m in (model, method.portable(model)))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [2, 9, 14, 17])
def test_a_resumed_run_is_the_same(
    before: int, start: Path, collator: WindowCollator, tmp_path: Path
) -> None:
    whole = AdaLora(RANK)
    model = prepared(whole, start)
    optimizer = train(whole, model, collator, range(before))
    kept = tmp_path / "retention.safetensors"
    save_file(whole.state(), kept)
    weights, moments = bits(model), copy.deepcopy(optimizer.state_dict())
    train(whole, model, collator, range(before, STEPS), optimizer)

    resumed = AdaLora(RANK)
    torch.manual_seed(99)
    other = load_model(str(start))
    resumed.prepare(other, STEPS)
    other.load_state_dict(weights)
    resumed.load_state(load_file(kept))
    optimizer = adamw(other)
    optimizer.load_state_dict(moments)
    train(resumed, other, collator, range(before, STEPS), optimizer)
    assert same(bits(other), bits(model))
    assert same(whole.state(), resumed.state())


def test_without_the_state_it_would_not_be(start: Path, collator: WindowCollator) -> None:
    whole = AdaLora(RANK)
    model = prepared(whole, start)
    optimizer = train(whole, model, collator, range(9))
    weights, moments = bits(model), copy.deepcopy(optimizer.state_dict())
    train(whole, model, collator, range(9, STEPS), optimizer)
    forgetful = AdaLora(RANK)
    other = prepared(forgetful, start)
    other.load_state_dict(weights)
    optimizer = adamw(other)
    optimizer.load_state_dict(moments)
    train(forgetful, other, collator, range(9, STEPS), optimizer)
    assert not same(bits(other), bits(model))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_vectors_are_pulled_towards_orthogonal_ones(
    start: Path, collator: WindowCollator, scale: float
) -> None:
    """The penalty's gradient against differences of the penalty itself, with peft's coefficient."""
    method = AdaLora(RANK)
    model = prepared(method, start)

    def penalty(weights: dict[str, Any]) -> float:
        terms = []
        for name, values in weights.items():
            rows = values if ".lora_A" in name else values.T
            terms.append(np.linalg.norm(rows @ rows.T - np.eye(len(rows))))
        assert len(terms) == 2 * ADAPTERS
        return 0.5 * float(np.mean(terms))

    vectors = {
        name: weight
        for name, weight in model.named_parameters()
        if ".lora_A" in name or ".lora_B" in name
    }
    batch = next(batches(collator))
    (scale * model(**batch).loss).backward()
    plain = {name: weight.grad.clone() for name, weight in vectors.items()}
    method.after_backward(scale)
    exact = {name: weight.detach().numpy().astype(np.float64) for name, weight in vectors.items()}
    for name in list(vectors)[::7]:
        for place in ((0, 0), (1, 1)):
            change = []
            for side in (1e-5, -1e-5):
                moved = {**exact, name: exact[name].copy()}
                moved[name][place] += side
                change.append(penalty(moved))
            expected = scale * (change[0] - change[1]) / 2e-5
            added = (vectors[name].grad - plain[name])[place].item()
            assert added == pytest.approx(expected, rel=1e-3, abs=1e-6 * scale)


def test_a_step_that_overflowed_does_no_harm(start: Path, collator: WindowCollator) -> None:
    method = AdaLora(RANK)
    model = prepared(method, start)
    train(method, model, collator, range(5))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.full_like(weight, torch.inf)
    method.after_step()
    model.zero_grad()
    assert all(values.isfinite().all() for values in method.state().values())
    train(method, model, collator, range(6, STEPS))
    assert sum(ranks(model)) == RANK * ADAPTERS
