"""What hostile input is made from: a good corpus, checkpoint, export, study file and database."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.trial import TrialState
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from qa_hpo.config import RunConfig, StudyFile, to_toml
from qa_hpo.paths import write_json
from qa_hpo.search.artifacts import artifact_id, open_store
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import Kept, finish, record_epoch

__all__ = ["Valid", "corpus", "predictions", "run_sections", "study_sections", "write_valid"]

QUESTIONS = 6
METRICS = {
    "exact": 40.0, "f1": 50.0, "total": 6, "HasAns_exact": 1.0, "HasAns_f1": 2.0,
    "HasAns_total": 4, "NoAns_exact": 3.0, "NoAns_f1": 4.0, "NoAns_total": 2, "best_exact": 35.5,
    "best_exact_thresh": -1.25, "best_f1": 51.5, "best_f1_thresh": -2.125, "crossfit_f1": 41.0,
    "HasAns_f1_no_null": 77.0,
}  # fmt: skip


@dataclass(frozen=True)
class Valid:
    """Where the good things are.

    Attributes:
        checkpoint: A folder with a question-answering checkpoint.
        export: The same with ``qa_hpo.toml`` and ``metrics.json``.
        database: A SQLite file with the study ``told``, which has two finished trials.
        artifacts: The artifact folder of that study.
    """

    checkpoint: Path
    export: Path
    database: Path
    artifacts: Path


def corpus(prefix: str = "q") -> dict[str, Any]:
    """A corpus in the SQuAD format; every third question has no answer."""
    data = []
    for number in range(QUESTIONS):
        context = (
            f"Lake{number} is deep and cold. The town of Port{number} lies beside Lake{number}."
        )
        answer = {"text": f"Port{number}", "answer_start": context.index("Port")}
        impossible = number % 3 == 2
        qa = {
            "id": f"{prefix}{number}",
            "question": f"Which town lies beside Lake{number}?",
            "answers": [] if impossible else [answer],
            "is_impossible": impossible,
        }
        paragraph = {"context": context, "qas": [qa]}
        data.append({"title": f"Article {number // 2}", "paragraphs": [paragraph]})
    return {"version": "v2.0", "data": data}


def predictions() -> tuple[dict[str, Any], dict[str, Any]]:
    """Predictions and null scores for :func:`corpus`."""
    texts = {f"q{n}": "" if n == 4 else f"Port{n}" for n in range(QUESTIONS)}
    return texts, {name: number / 10 for number, name in enumerate(texts)}


def study_sections() -> dict[str, Any]:
    """A study file that uses every section; its files are relative to the working folder."""
    return {
        "study": {"name": "small", "seed": 1, "objectives": ["best_f1"]},
        "data": {
            "train": "train.json", "validation": "validation.json", "max_length": 32,
            "train_limit": 5, "validation_limit": 5,
        },
        "starts": {
            "base": "checkpoint",
            "v1": {"from": "base", "train": "train.json", "epochs": 1, "learning_rate": 1e-3},
        },
        "search": {
            "start": {"choices": ["base", "v1"]},
            "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "epochs": {"low": 1, "high": 2},
            "doc_stride": {"low": 4, "high": 8, "step": 2},
            "weight_decay": [0.0, 0.01],
            "retention": {
                "method": {"choices": ["none", "l2sp"], "when": {"start": "v1"}},
                "strength": {"l2sp": {"low": 0.01, "high": 1.0}},
            },
        },
        "training": {"batch_size": 4, "doc_stride": 8, "precision": "fp32"},
        "pruning": {"across": "median", "patience": 1, "min_delta": 0.0, "control_fraction": 0.1},
        "evaluation": {"n_best": 5, "max_answer_length": 5, "doc_stride": 8},
        "budget": {"trials": 9, "hours": 1.0},
        "artifacts": {"folder": "artifacts", "keep": 2},
        "baseline": [{"learning_rate": 1e-3, "epochs": 2, "start": "base"}],
    }  # fmt: skip


def run_sections() -> dict[str, Any]:
    """One run's configuration, as an export has it."""
    study = study_sections()
    return {
        "run": {"name": "told", "seed": 1},
        "data": study["data"],
        "starts": study["starts"],
        "parameters": {"start": "base", "learning_rate": 1e-3, "epochs": 1, "doc_stride": 8},
        "training": {"cpu_threads": 1, "eval_batch_size": 8},
        "evaluation": study["evaluation"],
    }


def write_valid(folder: Path) -> Valid:
    """Write all of it to a folder."""
    checkpoint, export = folder / "checkpoint", folder / "export"
    _write_checkpoint(checkpoint)
    shutil.copytree(checkpoint, export)
    config = RunConfig.model_validate_json(json.dumps(run_sections()))
    (export / "qa_hpo.toml").write_text(to_toml(config), encoding="utf-8")
    write_json(export / "metrics.json", {"threshold": -1.5, **METRICS})
    valid = Valid(checkpoint, export, folder / "told.db", folder / "artifacts")
    _write_study(valid)
    return valid


def _write_checkpoint(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "which", "town", "lies", "beside", "?", "is"]
    words += [f"lake{n}" for n in range(QUESTIONS)] + [f"port{n}" for n in range(QUESTIONS)]
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]",
        sep_token="[SEP]", cls_token="[CLS]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForQuestionAnswering(
            BertConfig(
                vocab_size=len(words), hidden_size=16, num_hidden_layers=1,
                num_attention_heads=2, intermediate_size=16, max_position_embeddings=64,
            )
        ).save_pretrained(folder)  # fmt: skip


def _write_study(valid: Valid) -> None:
    sections = study_sections()
    sections["study"]["name"] = "told"
    # Relative, as the commands run: a listing of their folder shows what they write.
    file = StudyFile.from_dict(sections)
    storage = open_storage(f"sqlite:///{valid.database}", create=True)
    try:
        joined = create_study(file, storage, fingerprints={"data.train": "a"})
        store = open_store(str(valid.artifacts))
        for best_f1 in (51.5, 53.25):
            asked = ask(joined, worker="me")
            assert isinstance(asked, Asked)
            key = artifact_id(joined.uid, asked.trial.number, 1)
            store.put(key, valid.checkpoint)
            scores = {**METRICS, "best_f1": best_f1}
            record = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.5, **scores}
            timing = {"seconds": 60.0, "eval_seconds": 6.0}
            record_epoch(joined, asked.trial, {**record, **timing}, kept=Kept(1, None, key, 1))
            named = ("f1", "exact", "best_f1", "best_exact", "crossfit_f1")
            attrs: dict[str, Any] = {name: scores[name] for name in named}
            attrs |= {"best_epoch": 1, "threshold": -2.125, "train_seconds": 60.0}
            finish(joined, asked.trial, state=TrialState.COMPLETE, stop_reason=None, attrs=attrs)
    finally:
        storage.close()
    _one_file(valid.database)


def _one_file(database: Path) -> None:
    """Have all of a database in its file, and none in its log."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    Path(f"{database}.lock").unlink(missing_ok=True)
