"""Linear layers by oneDNN: what they compute is a linear layer, and only where they are faster."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering

from qa_hpo.finetune import linear, models
from qa_hpo.finetune.linear import multiplies_at_half_width, use_quick_linear
from tiny import bert_config

CONVOLUTION = "aten::mkldnn_convolution"


def operations(model: torch.nn.Module, *inputs: torch.Tensor) -> set[str]:
    """The names of what torch runs when a model is called."""
    with torch.profiler.profile() as profile:
        model(*inputs)
    return {event.key for event in profile.key_averages()}


def quick(layer: torch.nn.Linear) -> torch.nn.Linear:
    copied = copy.deepcopy(layer)
    use_quick_linear(torch.nn.Sequential(copied))
    return copied


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(16, 50), (1, 1), (3, 7)], ids=str)
def test_outputs_and_gradients_are_those_of_a_linear_layer(
    shape: tuple[int, int], threads: int, bias: bool
) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(96, 64, bias=bias)
    given = torch.randn(*shape, 96, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = quick(layer)
        output = ours(given)
        weighting = torch.randn_like(output)
        gradients = torch.autograd.grad((output * weighting).sum(), [given, *ours.parameters()])
    finally:
        torch.set_num_threads(before)
    assert output.is_contiguous()
    # By hand, in float64: y = x Wᵀ + b.
    x, weight, dy = (
        tensor.detach().double().numpy() for tensor in (given, layer.weight, weighting)
    )
    by_hand = x @ weight.T + (layer.bias.detach().double().numpy() if bias else 0)
    np.testing.assert_allclose(output.detach(), by_hand, atol=1e-5)
    wanted = [dy @ weight, np.einsum("btn,btk->nk", dy, x), dy.sum((0, 1))]
    for got, exact in zip(gradients, wanted, strict=False):
        np.testing.assert_allclose(got, exact, atol=1e-5 * max(1, np.abs(exact).max()))
    assert len(gradients) == 2 + bias


def test_a_batch_goes_through_onednn() -> None:
    layer = torch.nn.Linear(96, 64)
    batch = torch.randn(16, 50, 96)
    assert CONVOLUTION in operations(quick(layer), batch)
    assert CONVOLUTION not in operations(layer, batch)


@pytest.mark.parametrize("change", ["two dimensions", "float64", "few outputs"])
def test_what_is_left_to_torch(change: str) -> None:
    outputs = 2 if change == "few outputs" else 64
    kind = torch.float64 if change == "float64" else torch.float32
    layer = torch.nn.Linear(96, outputs, dtype=kind)
    batch = torch.randn(*((400, 96) if change == "two dimensions" else (16, 50, 96)), dtype=kind)
    assert CONVOLUTION not in operations(quick(layer), batch)
    assert torch.equal(quick(layer)(batch), layer(batch))


def test_lower_precision_is_left_to_torch() -> None:
    layer = torch.nn.Linear(96, 64)
    batch = torch.randn(16, 50, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CONVOLUTION not in operations(quick(layer), batch)
        assert torch.equal(quick(layer)(batch), layer(batch))


def test_a_model_keeps_its_weights_and_its_files(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = BertForQuestionAnswering(bert_config())
    model.train(False)
    ids = torch.randint(5, 100, (4, 20))
    before = model(input_ids=ids)
    model.save_pretrained(tmp_path / "before")
    use_quick_linear(model)
    after = model(input_ids=ids)
    torch.testing.assert_close(after.start_logits, before.start_logits)
    torch.testing.assert_close(after.end_logits, before.end_logits)
    model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "model.safetensors"):
        saved = [(tmp_path / folder / name).read_bytes() for folder in ("before", "after")]
        assert saved[0] == saved[1]
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "after")
    assert {type(m) for m in loaded.modules() if isinstance(m, torch.nn.Linear)} == {
        torch.nn.Linear
    }


def test_adapters_go_beside_such_layers() -> None:
    torch.manual_seed(3)
    plain = BertForQuestionAnswering(bert_config())
    ours = copy.deepcopy(plain)
    use_quick_linear(ours)
    ids = torch.randint(5, 100, (4, 20))
    outputs = []
    for model in (plain, ours):
        torch.manual_seed(4)
        config = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
        inject_adapter_in_model(config, model)
        model.train(False)
        outputs.append(model(input_ids=ids).start_logits)
    torch.testing.assert_close(*outputs)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Ask the processor anew, now and afterwards."""
    multiplies_at_half_width.cache_clear()
    yield
    multiplies_at_half_width.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("vendor", "capability", "mkl", "expected"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX2", True, False),
        ("GenuineIntel", "AVX512", True, False),
        ("AuthenticAMD", "AVX512", False, False),
        (None, "AVX512", True, False),
    ],
)
def test_where_they_are_faster(
    vendor: str | None,
    capability: str,
    mkl: bool,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = tmp_path / "cpuinfo"
    if vendor is not None:
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(linear, "_CPU_INFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert multiplies_at_half_width() is expected


@pytest.mark.parametrize("slow", [True, False])
def test_a_loaded_model_has_them_there_only(
    slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    BertForQuestionAnswering(bert_config()).save_pretrained(tmp_path)
    monkeypatch.setattr(models, "multiplies_at_half_width", lambda: slow)
    model = models.load_model(str(tmp_path), fresh_head=False)
    kinds = {type(m) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert (kinds == {torch.nn.Linear}) is not slow
    ran = operations(model, torch.randint(5, 100, (16, 60)))
    assert (CONVOLUTION in ran) is slow
