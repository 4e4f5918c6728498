"""What a run does on the hardware it meets. A GPU is only pretended: nothing is computed on it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, DebertaV2Config, RobertaConfig

from qa_hpo.config import Runtime
from qa_hpo.errors import StudyFileError
from qa_hpo.finetune import hardware, training
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import supports_flash_attention
from qa_hpo.finetune.run import fine_tune
from tiny import run_config


def gpu(patch: pytest.MonkeyPatch, *, bf16: bool = True, flash: bool = False) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    patch.setattr(hardware, "is_flash_attn_2_available", lambda: flash)


@pytest.mark.parametrize(
    ("wanted", "bf16", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
        ("fp32", True, None),
        ("fp16", False, torch.float16),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_precision_on_a_gpu(monkeypatch, wanted, bf16, expected):
    gpu(monkeypatch, bf16=bf16)
    assert hardware.lower_precision(Runtime(precision=wanted)) is expected


def test_precision_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.lower_precision(Runtime()) is None
    assert hardware.lower_precision(Runtime(precision="bf16")) is torch.bfloat16
    with pytest.raises(StudyFileError, match=r"^training\.precision: 'fp16' needs a GPU; .*$"):
        hardware.lower_precision(Runtime(precision="fp16"))


def test_device_and_padding(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (hardware.best_device(), hardware.length_multiple()) == ("cpu", 1)
    gpu(monkeypatch)
    assert (hardware.best_device(), hardware.length_multiple()) == ("cuda", 8)


@pytest.fixture
def families(tmp_path: Path) -> dict[str, str]:
    """Checkpoints without weights: their family is all that is looked at."""
    for config in (BertConfig(), RobertaConfig(), DebertaV2Config()):
        config.save_pretrained(tmp_path / config.model_type)
    return {folder.name: str(folder) for folder in tmp_path.iterdir()}


def test_flash_attention_by_family(families: dict[str, str], tmp_path: Path):
    assert supports_flash_attention(families["bert"])
    assert supports_flash_attention(families["roberta"])
    assert not supports_flash_attention(families["deberta-v2"])
    assert not supports_flash_attention(str(tmp_path / "nothing there"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "flash_attention_2"),
        ({"flash": False}, "auto"),
        ({"family": "deberta-v2"}, "auto"),
        ({"precision": "fp32"}, "auto"),
        ({"bf16": False}, "auto"),
        ({"attention": "eager"}, "eager"),
        ({"attention": "sdpa"}, "sdpa"),
    ],
)
def test_attention_on_a_gpu(monkeypatch, families, change: dict[str, Any], expected):
    given = {"flash": True, "bf16": True, "family": "bert", "precision": "auto"}
    given |= {"attention": "auto"} | change
    gpu(monkeypatch, bf16=given["bf16"], flash=given["flash"])
    runtime = Runtime(precision=given["precision"], attention=given["attention"])
    assert hardware.attention_for(runtime, families[given["family"]]) == expected


def test_attention_on_a_cpu(monkeypatch, families):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "is_flash_attn_2_available", lambda: True)
    assert hardware.attention_for(Runtime(), families["bert"]) == "auto"


def test_a_compiler_that_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StudyFileError, match=r"^training\.compile: needs a C\+\+ compiler.*$"):
        hardware.check_compiler()
    gpu(monkeypatch)
    monkeypatch.setattr(hardware, "has_triton", lambda: False)
    with pytest.raises(StudyFileError, match=r"^training\.compile: needs the package triton.*$"):
        hardware.check_compiler()


def test_a_compiled_run_measures_the_same_and_compiles_once(
    tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch
):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(training, "check_compiler", lambda: None)
    compiled = torch.compile

    # The graphs are captured as for any backend, and run as they are: no C++ compiler is needed.
    def eagerly(model, **options):
        return compiled(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eagerly)
    torch._dynamo.reset()
    counters.clear()
    graphs: list[int] = []

    def told(_record) -> None:
        graphs.append(counters["stats"]["unique_graphs"])

    # Without dropout, which is drawn otherwise when it is compiled.
    still: dict[str, Any] = {"parameters": {"dropout": 0.0}}
    plain = fine_tune(run_config(tiny, **still), tmp_path / "plain", inputs=inputs)
    assert counters["stats"]["unique_graphs"] == 0
    config = run_config(tiny, **still, training={"compile": True})
    tuned = fine_tune(config, tmp_path / "compiled", inputs=inputs, on_epoch=told)
    # Training and evaluation have a graph each, and later epochs, of other batches, no new one.
    assert graphs[0] >= 2
    assert graphs[1:] == [graphs[0]] * (len(graphs) - 1)
    assert len(graphs) >= 2
    for one, other in zip(plain.records, tuned.records, strict=True):
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-4)
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
    assert sorted(file.name for file in tuned.checkpoint.iterdir()) == sorted(
        file.name for file in plain.checkpoint.iterdir()
    )
