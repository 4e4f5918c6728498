"""Hostile checkpoints: damaged files, other architectures, and code that must not be run."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.hostile.inputs import Hostile, good_files, put
from bench.hostile.judging import MARKER
from bench.hostile.mutations import as_json, change_bytes, change_tree
from bench.hostile.valid import Valid, corpus

__all__ = ["changed_checkpoints", "named_checkpoints"]

_CODE = f"""
import pathlib
pathlib.Path({MARKER!r}).write_text("run")
from transformers import BertConfig as Config, BertForQuestionAnswering as Model
from transformers import PreTrainedTokenizerFast as Tokenizer
"""


class _Bomb:
    """Writes the marker when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (_CODE,))


def named_checkpoints(valid: Valid) -> Iterator[Hostile]:
    """Checkpoints that somebody thought of."""
    for name, spoil in _named().items():
        yield _evaluated(valid, name, spoil)
        yield _checked(valid, name, spoil)


def changed_checkpoints(valid: Valid, seed: int) -> Iterator[Hostile]:
    """Endless changes to the files of a checkpoint, or of an export."""
    trees = ("config.json", "tokenizer.json", "tokenizer_config.json", "metrics.json")
    number = 0
    while True:
        rng = random.Random(f"{seed}/checkpoint/{number}")
        file = rng.choice([*trees, *trees, "model.safetensors", "header", "qa_hpo.toml"])
        how = _evaluated if number % 3 or file in {"metrics.json", "qa_hpo.toml"} else _checked
        if file == "header":
            name, content = _header(valid, rng)
            file = "model.safetensors"
        elif file in trees and rng.random() < 0.8:
            change = change_tree(json.loads((valid.export / file).read_bytes()), rng)
            name, content = change.name, as_json(change.tree).encode()
        else:
            name, content = change_bytes((valid.export / file).read_bytes(), rng)
        yield how(valid, f"{number}: {file} {name}", _writes(file, content))
        number += 1


def _writes(file: str, content: Any) -> Callable[[Path], None]:
    return lambda folder: put(folder, file, content)


def _evaluated(valid: Valid, name: str, spoil: Callable[[Path], None]) -> Hostile:
    def make(folder: Path) -> None:
        shutil.copytree(valid.export, folder / "model")
        put(folder, "data.json", corpus())
        spoil(folder / "model")

    return Hostile(f"evaluated {name}", "checkpoint", make, ("evaluate", "model", "data.json"))


def _checked(valid: Valid, name: str, spoil: Callable[[Path], None]) -> Hostile:
    def make(folder: Path) -> None:
        good_files(folder, valid)
        (folder / "checkpoint").unlink()
        shutil.copytree(valid.checkpoint, folder / "checkpoint")
        spoil(folder / "checkpoint")

    return Hostile(f"checked {name}", "checkpoint", make, ("check", "study.toml"))


def _configured(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        put(folder, "config.json", json.loads(path.read_bytes()) | changes)

    return spoil


def _tokenizer_configured(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        put(folder, path.name, json.loads(path.read_bytes()) | changes)

    return spoil


def _templated(change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """The pair is [CLS] question [SEP] context [SEP]."""

    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_bytes())
        change(tokenizer["post_processor"]["pair"])
        put(folder, path.name, tokenizer)

    return spoil


def _remote_code(**model: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        put(folder, "mine.py", _CODE)
        code = {"AutoConfig": "mine.Config", "AutoModelForQuestionAnswering": "mine.Model"}
        _configured(auto_map=code, **model)(folder)
        path = folder / "tokenizer_config.json"
        given = json.loads(path.read_bytes())
        put(folder, path.name, given | {"auto_map": {"AutoTokenizer": [None, "mine.Tokenizer"]}})

    return spoil


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    put(folder, "pytorch_model.bin", pickle.dumps(_Bomb()))


def _both(folder: Path) -> None:
    put(folder, "pytorch_model.bin", pickle.dumps(_Bomb()))
    put(folder, "training_args.bin", pickle.dumps(_Bomb()))


def _other_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"qa_outputs.weight": "../../../etc/passwd"}}
    put(folder, "model.safetensors.index.json", index)


def _unlink(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def _without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("qa_outputs")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


def _cut(size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        put(folder, path.name, path.read_bytes()[:size])

    return spoil


def _a_folder(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def _named() -> dict[str, Callable[[Path], None]]:
    deep = "[" * 100_000
    return {
        "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
        "without tokenizer": _unlink("tokenizer.json", "tokenizer_config.json"),
        "without tokenizer.json": _unlink("tokenizer.json"),
        "without weights": _unlink("model.safetensors"),
        "without config": _unlink("config.json"),
        "without head": _without_head,
        "of NaN": _with_nan,
        "pickled weights only": _pickled,
        "pickled beside safetensors": _both,
        "remote code": _remote_code(),
        "remote code of an unknown model": _remote_code(model_type="mine", architectures=["Model"]),
        "remote code, elsewhere": _configured(
            auto_map={"AutoConfig": "../../x--mine.Config"}, model_type="mine"
        ),
        "an index that leads out": _other_index,
        "index not JSON": lambda folder: put(folder, "model.safetensors.index.json", "{"),
        "vision model": _configured(model_type="vit", architectures=["ViTModel"]),
        "generating model": _configured(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "no such model": _configured(model_type="a\x1b[31m\nb"),
        "model of a number": _configured(model_type=7),
        "head of another size": _configured(num_labels=7, id2label={str(n): "x" for n in range(7)}),
        "vocabulary larger than embeddings": _configured(vocab_size=5),
        "embeddings larger than weights": _configured(vocab_size=100_000),
        "a billion labels": _configured(num_labels=10**9),
        "a billion layers": _configured(num_hidden_layers=10**9),
        "a million layers": _configured(num_hidden_layers=10**6),
        "huge": _configured(hidden_size=2 * 10**6, num_attention_heads=1),
        "huge vocabulary": _configured(vocab_size=10**12),
        "huge positions": _configured(max_position_embeddings=10**12),
        "no heads": _configured(num_attention_heads=0),
        "more heads than size": _configured(num_attention_heads=17),
        "negative size": _configured(hidden_size=-16),
        "unknown activation": _configured(hidden_act="__import__('os')"),
        "quantized": _configured(quantization_config={"quant_method": "bitsandbytes"}),
        "quantized strangely": _configured(quantization_config={"quant_method": "x\x1b[0m"}),
        "dtype": _configured(dtype="__class__", torch_dtype="int8"),
        "attention": _configured(attn_implementation="eval", _attn_implementation="hub/kernel"),
        "config not JSON": _writes("config.json", "no JSON"),
        "config of a list": _writes("config.json", "[]"),
        "config deep": _writes("config.json", deep),
        "config UTF-16": _writes("config.json", "{}".encode("utf-16")),
        "config empty": _writes("config.json", ""),
        "config 10 MB": _configured(x="y" * 10_000_000),
        "tokenizer not JSON": _writes("tokenizer.json", "no JSON"),
        "tokenizer of a list": _writes("tokenizer.json", "[]"),
        "tokenizer deep": _writes("tokenizer.json", deep),
        "tokenizer empty": _writes("tokenizer.json", ""),
        "tokenizer config deep": _writes("tokenizer_config.json", deep),
        "tokenizer class": _writes(
            "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast"}
        ),
        "tokenizer class unknown": _writes("tokenizer_config.json", {"tokenizer_class": "os.x"}),
        "tokens that the model has not": _tokenizer_configured(unk_token=" "),
        "lengths that are no numbers": _tokenizer_configured(model_max_length="64"),
        "a template of unknown tokens": _templated(
            lambda pair: pair[0]["SpecialToken"].update(id="[NONE]")
        ),
        "a template without the context": _templated(lambda pair: pair.pop(3)),
        "a template of unknown types": _templated(
            lambda pair: pair[3]["Sequence"].update(type_id=200)
        ),
        "chat template": _writes("chat_template.jinja", "{{ cycler.__init__.__globals__ }}"),
        "weights cut to 0": _cut(0),
        "weights cut to 7": _cut(7),
        "weights cut to 100": _cut(100),
        "weights cut to 5000": _cut(5000),
        "weights of a huge header": _writes("model.safetensors", b"\xff" * 7 + b"\x7f{}"),
        "weights that are text": _writes("model.safetensors", "weights"),
        "config is a folder": _a_folder("config.json"),
        "tokenizer is a folder": _a_folder("tokenizer.json"),
        "weights are a folder": _a_folder("model.safetensors"),
    }  # fmt: skip


def _header(valid: Valid, rng: random.Random) -> tuple[str, bytes]:
    """Weights whose header says something else than what is there."""
    content = (valid.checkpoint / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    change = change_tree(json.loads(content[8 : 8 + length]), rng)
    header = as_json(change.tree).encode()
    return f"header {change.name}", struct.pack("<Q", len(header)) + header + content[8 + length :]
