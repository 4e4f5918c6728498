"""A tiny checkpoint and corpora that it can learn in a second, made without a hub."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from qa_hpo.config import RunConfig, StudyFile

NAMES = ["adela", "bruno", "clara", "doran", "elise", "fabian", "greta", "hugo", "ida", "jonas"]
YEARS = [str(year) for year in range(1700, 1720)]
PLACES = ["tower", "harbour", "bridge", "mill", "church", "castle"]
FILLERS = [
    *("it", "is", "old", "and", "tall", ",", "people", "like", "to", "see", "the", "stones"),
    *("in", "summer", "when", "ships", "come", "."),
]
OTHERS = ["was", "built", "by", "dug", "who", "which", "colour", "has", "year", "?"]
WORDS = sorted({*NAMES, *YEARS, *PLACES, *FILLERS, *OTHERS})
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def bert_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """WordPiece: [CLS] question [SEP] context [SEP]; its words, their letters, nothing else."""
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = [*WORDS, *(c for c in letters if c not in WORDS), *(f"##{c}" for c in letters)]
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    usual = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": 64,
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(usual | options))


def bert_config(**options: Any) -> BertConfig:
    usual = {
        "vocab_size": len(bert_tokenizer()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        # Dropout, so that a resumed run must restore the random state to give the same epochs.
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.1,
    }
    return BertConfig(**(usual | options))


def write_base(folder: Path, **options: Any) -> Path:
    """Write a checkpoint with random weights, the same each time, without a QA head."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(bert_config(**options)).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def squad(
    questions: int, *, seed: int, impossible: float = 0.3, lie: float = 0.0
) -> dict[str, Any]:
    """Generate a corpus in the SQuAD 2.0 format: who built it, in which year, or of what colour.

    Args:
        questions: How many.
        seed: Another seed gives other contexts.
        impossible: Share of questions that the context does not answer.
        lie: Share of answers that are marked at a random word.
    """
    rng = np.random.default_rng(seed)
    data = []
    for number in range(questions):
        place, name, year = rng.choice(PLACES), rng.choice(NAMES), rng.choice(YEARS)
        before, after = (
            list(rng.choice(FILLERS, size=rng.integers(*size))) for size in ((0, 12), (0, 40))
        )
        context = " ".join([*before, f"the {place} was built by {name} in {year} .", *after])
        kind = "colour" if rng.random() < impossible else rng.choice(["who", "year"])
        answer = {"who": name, "year": year}.get(kind)
        if answer and rng.random() < lie:
            answer = rng.choice(context.split())
        text = {
            "who": f"who built the {place} ?",
            "year": f"in which year was the {place} built ?",
            "colour": f"which colour has the {place} ?",
        }[kind]
        answers = [] if answer is None else [{"text": answer, "answer_start": context.find(answer)}]
        entry = {
            "id": f"q{seed}-{number}",
            "question": text,
            "answers": answers,
            "is_impossible": not answers,
        }
        data.append({"title": f"article {number // 5}", "paragraphs": [
            {"context": context, "qas": [entry]}
        ]})  # fmt: skip
    return {"version": "v2.0", "data": data}


def write_corpora(folder: Path) -> None:
    """Write train.json, validation.json, and noise.json, of which nothing general is learnt."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, corpus in {
        "train": squad(240, seed=1),
        "validation": squad(60, seed=2),
        "noise": squad(32, seed=3, lie=0.9),
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(corpus), encoding="utf-8")


def run_config(folder: Path, **sections: Any) -> RunConfig:
    """A run on the corpora and the checkpoint of ``folder``; each section's values are merged."""
    given: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "seed": 5},
        "data": {
            "train": str(folder / "train.json"),
            "validation": str(folder / "validation.json"),
            "max_length": 40,
        },
        "starts": {"base": str(folder / "base")},
        "parameters": {"learning_rate": 3e-3, "epochs": 3, "batch_size": 16, "doc_stride": 8},
        "training": {"cpu_threads": 1},
        "evaluation": {"doc_stride": 8},
    }
    for name, values in sections.items():
        given[name] = {**given[name], **values}
    return RunConfig.model_validate_json(json.dumps(given))


def study_file(folder: Path, kept_in: Path, **sections: Any) -> StudyFile:
    """A study on the corpora and the checkpoint of ``folder``; each section's values are merged."""
    run = run_config(folder).model_dump(mode="json", by_alias=True, exclude_none=True)
    given: dict[str, Any] = {
        "study": {"name": "tiny", "seed": 3},
        "data": run["data"],
        "starts": run["starts"],
        "search": {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
        "training": {"epochs": 3, "batch_size": 16, "doc_stride": 8},
        "pruning": {"across": "none"},
        "evaluation": run["evaluation"],
        "budget": {"trials": 10},
        "artifacts": {"folder": str(kept_in)},
    }
    for name, values in sections.items():
        whole = name in {"budget", "baseline", "search"}
        given[name] = values if whole else {**given[name], **values}
    return StudyFile.model_validate_json(json.dumps(given))
