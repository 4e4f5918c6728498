"""What the stand-in for the hub serves: tiny models and data sets behind the real ids."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hub_server import Hub, Repository

from tiny import bert_config, bert_tokenizer, squad

__all__ = ["DISTILBERT", "SQUAD", "SQUAD_V2", "Contents", "fill"]

DISTILBERT = "distilbert/distilbert-base-uncased"
SQUAD = "rajpurkar/squad"
SQUAD_V2 = "rajpurkar/squad_v2"

# What a real repository of a model also holds, and nobody here should fetch.
_OTHERS = {
    ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "pytorch_model.bin": b"pickled",
    "tf_model.h5": b"of TensorFlow",
    "flax_model.msgpack": b"of Flax",
    "rust_model.ot": b"of Rust",
    "onnx/model.onnx": b"of ONNX",
    "onnx/config.json": b"{}",
    "modeling_own.py": b"raise SystemExit('code of the repository was run')\n",
}
# As in the Parquet files of rajpurkar/squad and rajpurkar/squad_v2.
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("context", pa.string()),
        ("question", pa.string()),
        (
            "answers",
            pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))]),
        ),
    ]
)
_CARD = """---
license: cc-by-sa-4.0
language:
- en
task_categories:
- question-answering
dataset_info:
  config_name: {config}
  features:
  - name: id
    dtype: string
  - name: title
    dtype: string
  - name: context
    dtype: string
  - name: question
    dtype: string
  - name: answers
    sequence:
    - name: text
      dtype: string
    - name: answer_start
      dtype: int32
  splits:
  - name: train
    num_examples: {train}
  - name: validation
    num_examples: {validation}
configs:
- config_name: {config}
  data_files:
  - split: train
    path: {config}/train-*
  - split: validation
    path: {config}/validation-*
---
# A data set
"""


class Contents:
    """The files of all repositories, made once."""

    def __init__(self, folder: Path) -> None:
        self.distilbert = _OTHERS | _distilbert(folder / "distilbert")
        self.bert = _OTHERS | _bert(folder / "bert")
        self.squad = dataset("plain_text", squad(40, seed=11, impossible=0), squad(20, seed=12))
        self.squad_v2 = dataset("squad_v2", squad(60, seed=21), squad(30, seed=22))


def fill(hub: Hub, contents: Contents) -> dict[str, Repository]:
    """Add the repositories that everybody reads, with the ids that they had before."""
    some = [
        hub.add("model", DISTILBERT, contents.distilbert, once="distilbert-base-uncased"),
        hub.add("model", "google-bert/bert-base-uncased", contents.bert, once="bert-base-uncased"),
        hub.add("dataset", SQUAD, contents.squad, once="squad"),
        hub.add("dataset", SQUAD_V2, contents.squad_v2, once="squad_v2"),
    ]
    return {repository.id: repository for repository in some}


def dataset(
    config: str, train: Mapping[str, Any], validation: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the files of a data set in the layout of rajpurkar/squad."""
    splits = {"train": _rows(train), "validation": _rows(validation)}
    sizes = {split: len(rows) for split, rows in splits.items()}
    files = {
        f"{config}/{split}-00000-of-00001.parquet": parquet(rows) for split, rows in splits.items()
    }
    return {
        ".gitattributes": _OTHERS[".gitattributes"],
        "README.md": _CARD.format(config=config, **sizes).encode(),
        **files,
    }


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer)
    return buffer.getvalue()


def _rows(corpus: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [answer["text"] for answer in qa["answers"]],
                "answer_start": [answer["answer_start"] for answer in qa["answers"]],
            },
        }
        for article in corpus["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def _distilbert(folder: Path) -> dict[str, bytes]:
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    tokenizer = bert_tokenizer(
        model_max_length=512, model_input_names=["input_ids", "attention_mask"]
    )
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=16,
        hidden_dim=32,
        n_layers=1,
        n_heads=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # With the head that the real one has been pretrained with.
        DistilBertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _files(folder)


def _bert(folder: Path) -> dict[str, bytes]:
    import torch
    from transformers import BertForPreTraining

    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForPreTraining(bert_config()).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return _files(folder)


def _files(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    files["vocab.txt"] = "\n".join(vocabulary).encode()
    return files
