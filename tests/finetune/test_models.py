import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    BertForQuestionAnswering,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    RobertaConfig,
    ViTConfig,
)

from qa_hpo.errors import CheckpointError, InputError, WindowError
from qa_hpo.finetune.families import position_limit
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import (
    checkpoint_fingerprint,
    folder_of,
    is_hub_model,
    load_model,
    load_tokenizer,
    parameter_count,
    read_config,
)
from qa_hpo.paths import CachePaths
from tiny import bert_tokenizer


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny / "base", tmp_path / "base"))


def configured(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def only_pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def refused(load: Callable[..., Any], checkpoint: Path | str, **options: Any) -> str:
    """Return the line that a checkpoint is refused with, without its name."""
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        load(str(checkpoint), **options)
    assert time.monotonic() - started < 2
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    assert str(checkpoint) in line
    return line.replace(str(checkpoint), "X")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such checkpoint folder"),
    "no config.json": (lambda x: (x / "config.json").unlink(), "it has no config.json"),
    "config.json is no JSON": (
        lambda x: (x / "config.json").write_text("{"),
        "its config.json is not JSON",
    ),
    "config.json is a list": (
        lambda x: (x / "config.json").write_text("[]"),
        "its config.json is not a JSON object",
    ),
    "a wrong type": (lambda x: configured(x, hidden_size="big"), "expected int, got str"),
    "a wrong number": (lambda x: configured(x, vocab_size=7), "cannot be loaded"),
    "a wrong number of heads": (lambda x: configured(x, num_attention_heads=5), "not a multiple"),
    "an unknown architecture": (lambda x: configured(x, model_type="nonesuch"), "`nonesuch`"),
    "no reader": (
        lambda x: configured(x, model_type="vit"),
        "a vit model cannot answer",
    ),
    "another architecture": (
        lambda x: configured(x, model_type="distilbert"),
        "its weights are not those of the distilbert model that its config.json describes",
    ),
    "no weights": (lambda x: (x / "model.safetensors").unlink(), "no file named model.safetensors"),
    "only pickled weights": (only_pickled, "no file named model.safetensors"),
    "half the weights": (lambda x: half(x / "model.safetensors"), "cannot be loaded"),
    "no safetensors": (lambda x: (x / "model.safetensors").write_bytes(b"no"), "cannot be loaded"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_checkpoint_that_is_no_good(base: Path, how: str) -> None:
    spoil, line = SPOILED[how]
    spoil(base)
    said = refused(load_model, base)
    assert said.startswith("X: ")
    assert line in said


def test_pickled_weights_are_not_loaded_although_they_would_do(base: Path) -> None:
    only_pickled(base)
    assert torch.load(base / "pytorch_model.bin", weights_only=True)
    with pytest.raises(CheckpointError):
        load_model(str(base))


@pytest.mark.parametrize("model_type", ["bert", "nonesuch"])
def test_code_of_a_checkpoint_is_not_run(base: Path, tmp_path: Path, model_type: str) -> None:
    trace = tmp_path / "trace"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    code += "from transformers import BertConfig as C, BertForQuestionAnswering as M\n"
    (base / "evil.py").write_text(code)
    mapped = {"AutoConfig": "evil.C", "AutoModelForQuestionAnswering": "evil.M"}
    configured(base, model_type=model_type, auto_map=mapped)
    if model_type == "bert":
        assert type(load_model(str(base))).__module__.startswith("transformers.models.bert")
    else:
        assert "contains custom code" in refused(load_model, base)
    assert not trace.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: (x / "tokenizer.json").unlink(),
        lambda x: (x / "tokenizer.json").write_text("{}"),
        lambda x: (x / "tokenizer.json").write_text("no JSON"),
        lambda x: half(x / "tokenizer.json"),
        lambda x: (x / "config.json").unlink(),
        shutil.rmtree,
    ],
)
def test_a_tokenizer_that_is_no_good(base: Path, spoil: Callable[[Path], object]) -> None:
    spoil(base)
    assert refused(load_tokenizer, base).startswith("X: ")


def test_a_tokenizer_without_cls(base: Path) -> None:
    tokenizer = bert_tokenizer()
    tokenizer.cls_token = None
    tokenizer.save_pretrained(base)
    with pytest.raises(WindowError, match="has no CLS token, whose logits stand for 'no answer'"):
        load_tokenizer(str(base))


def test_a_fresh_head_is_drawn_from_the_random_state(tiny: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_model(str(tiny / "base")).qa_outputs.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    said = refused(load_model, tiny / "base", fresh_head=False)
    assert said.startswith("X: has no trained question-answering head (its weights lack qa_outputs")


def test_weights_come_in_float32(base: Path, tiny: Path) -> None:
    load_model(str(tiny / "base")).half().save_pretrained(base)
    assert {parameter.dtype for parameter in load_model(str(base)).parameters()} == {torch.float32}


def test_dropout(base: Path) -> None:
    def found(**options: Any) -> set[float]:
        model = load_model(str(base), **options)
        return {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}

    assert found() == {0.1}
    assert found(dropout=0.3) == {0.3}
    assert found(dropout=0.0) == {0.0}
    configured(base, hidden_dropout_prob=0, attention_probs_dropout_prob=0)  # as ALBERT's
    assert found() == {0.0}
    assert found(dropout=0.3) == {0.3}


def test_a_model_without_dropout(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qa_hpo.finetune.models.DROPOUT_NAMES", ("resid_pdrop",))
    said = refused(load_model, base, dropout=0.2)
    assert said == "X: has no dropout that could be set to 0.2"


def test_the_fingerprint_is_that_of_the_content(base: Path, tiny: Path) -> None:
    print_ = checkpoint_fingerprint(str(base))
    assert print_ == checkpoint_fingerprint(str(tiny / "base"))
    (base / "notes.md").write_text("no part of it")
    assert checkpoint_fingerprint(str(base)) == print_
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        before = (base / name).read_bytes()
        (base / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert checkpoint_fingerprint(str(base)) != print_
        (base / name).write_bytes(before)
    assert checkpoint_fingerprint("distilbert-base-uncased") == "distilbert-base-uncased"


@pytest.mark.parametrize("dropout", [math.nan, -0.1, 1.5])
def test_a_dropout_that_is_no_probability_is_refused(base: Path, dropout: float) -> None:
    configured(base, hidden_dropout_prob=dropout)
    for load in (load_model, parameter_count):
        with pytest.raises(
            CheckpointError, match=r"hidden_dropout_prob in its config.json is .*, not"
        ):
            load(str(base))


def test_a_tokenizer_that_fails_on_unknown_words_is_refused(base: Path) -> None:
    path = base / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"]["unk_token"] = "[NOWHERE]"
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="its tokenizer fails on what it does not know: "):
        load_tokenizer(str(base))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (DistilBertConfig(), 512),
        (RobertaConfig(max_position_embeddings=514), 512),
        (ModernBertConfig(), None),  # rotary
        (ViTConfig(), None),
        (GPT2Config(), 1024),
    ],
)
def test_position_limit(config: Any, limit: int | None) -> None:
    assert position_limit(config) == limit


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks for it
def test_a_model_with_an_adapter_beside_it(base: Path) -> None:
    """Transformers would attach it, train nothing else, and save nothing else."""
    adapter = LoraConfig(r=2, target_modules=["query"], task_type="QUESTION_ANS")
    whole = BertForQuestionAnswering.from_pretrained(base)
    get_peft_model(whole, adapter).save_pretrained(base)
    assert (base / "model.safetensors").is_file()
    for load in (load_model, load_tokenizer, read_config, parameter_count):
        assert refused(load, base) == (
            "X: holds a PEFT adapter (adapter_config.json); merge it into its model and give the "
            "merged one"
        )
    (base / "config.json").unlink()  # an adapter alone
    assert "X: holds a PEFT adapter" in refused(load_model, base)


def test_parameters_are_counted(tiny: Path) -> None:
    weights = load_file(tiny / "base" / "model.safetensors")
    # The pooler is no part of a reader; the head is: two logits of each token.
    body = sum(w.numel() for name, w in weights.items() if not name.startswith("pooler."))
    hidden = json.loads((tiny / "base" / "config.json").read_text())["hidden_size"]
    assert parameter_count(str(tiny / "base")) == body + 2 * hidden + 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_attention_heads": 7}, "X: cannot be loaded as a question-answering model: "),
        ({"num_hidden_layers": 5000}, "X: its config.json has 5000 layers (num_hidden_layers), "),
        ({"model_type": "vit"}, "X: a vit model cannot answer"),
        ({"model_type": "nonesuch"}, "X: cannot be loaded: "),
    ],
)
def test_parameters_of_what_cannot_be_a_model(
    base: Path, values: dict[str, Any], said: str
) -> None:
    configured(base, **values)
    assert refused(parameter_count, base).startswith(said)


def test_a_checkpoint_in_the_home(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    assert folder_of("~/base") == str(base)
    assert not is_hub_model("~/base")
    assert checkpoint_fingerprint("~/base") == checkpoint_fingerprint(str(base))
    inputs = Inputs(CachePaths(base.parent / "cache"))
    assert inputs.checkpoint("~/base") == str(base)
    assert inputs.checkpoint_key("~/base") == inputs.checkpoint_key(str(base))
    assert load_model("~/base").config.model_type == "bert"
    assert len(load_tokenizer("~/base")) == len(load_tokenizer(str(base)))
    for lost in ("~/bse", "~nobody-of-that-name/base"):
        assert refused(load_model, lost).startswith("X: no such checkpoint folder (looked in ")
