"""What tests of the command line share."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from qa_hpo import cli


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def run_cli(*arguments: str | Path) -> Ended:
    """Run the command line in this process, as the console script does."""
    out, err = io.StringIO(), io.StringIO()
    argv = sys.argv
    sys.argv = ["qa-hpo", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = argv
    code = ended.value.code
    return Ended(code if isinstance(code, int) else 1, out.getvalue(), err.getvalue())


def squad(questions: int, *, answerable: bool = True, prefix: str = "q") -> dict[str, Any]:
    """Return a small corpus in SQuAD format, one article for every two questions."""
    articles = []
    for number in range(questions):
        name = f"Lake{number}"
        context = f"{name} is deep and cold. The town of Port{number} lies beside {name}."
        answer = f"Port{number}"
        answers = [{"text": answer, "answer_start": context.index(answer)}] if answerable else []
        qa = {
            "id": f"{prefix}{number}",
            "question": f"Which town lies beside {name}?",
            "answers": answers,
            "is_impossible": not answerable,
        }
        articles.append(
            {"title": f"Article {number // 2}", "paragraphs": [{"context": context, "qas": [qa]}]}
        )
    return {"version": "v2.0", "data": articles}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def tiny_checkpoint(folder: Path, *, cls: bool = True, architecture: str = "bert") -> Path:
    """Write a random checkpoint with a word-level tokenizer that knows the corpus of ``squad``."""
    import torch
    from transformers import BertConfig, BertModel, GPT2Config, PreTrainedTokenizerFast, T5Config

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "which", "town", "lies", "beside", "?", "."]
    words += ["is", "deep", "and", "cold", "the", "of", *(f"lake{n}" for n in range(40))]
    words += [f"port{n}" for n in range(40)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "sep_token": "[SEP]"}
    if cls:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        special["cls_token"] = "[CLS]"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    if architecture == "t5-encoder":
        T5Config(vocab_size=len(words)).save_pretrained(folder)
    elif architecture == "other":
        GPT2Config(vocab_size=len(words)).save_pretrained(folder)
    return folder
