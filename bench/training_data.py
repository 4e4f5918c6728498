"""What models are trained and measured on: real questions and weights where they are there."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.data import TOKENIZER_PACKAGE
from qa_hpo.demo import BASE, write_demo

__all__ = ["TrainingMaterial", "training_material"]


@dataclass(frozen=True)
class TrainingMaterial:
    """A start and two corpora.

    Attributes:
        name: The data and the model, as the results name them.
        checkpoint: The folder of the weights, whose question-answering head is fresh.
        train: The training corpus' file.
        validation: The validation corpus' file.
        train_limit: Questions of it that are used.
        validation_limit: Likewise.
        max_length: Tokens of a window.
        doc_stride: Tokens that windows share.
        learning_rate: One with which the start learns something in an epoch.
    """

    name: str
    checkpoint: str
    train: str
    validation: str
    train_limit: int
    validation_limit: int
    max_length: int
    doc_stride: int
    learning_rate: float


def training_material(train_limit: int, validation_limit: int) -> TrainingMaterial:
    """Return so many questions of SQuAD 2.0 with MiniLM, else of the demo with its base model."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("QA_HPO_REAL_DATA") or beside) / "squad"
    train, validation = folder / "train-part-1.json", folder / "dev-16-articles.json"
    package = find_spec(TOKENIZER_PACKAGE)
    counts = f"{train_limit:,} training and {validation_limit:,} validation questions"
    if not (train.is_file() and validation.is_file()) or package is None or package.origin is None:
        demo = Path(tempfile.mkdtemp(prefix="qa_hpo-bench-"))
        atexit.register(shutil.rmtree, demo, ignore_errors=True)
        write_demo(demo)
        return TrainingMaterial(
            f"the demo, {counts}; its base model (3 MB)",
            str(BASE),
            str(demo / "train-v2.json"),
            str(demo / "validation-v2.json"),
            train_limit,
            validation_limit,
            max_length=256,
            doc_stride=64,
            learning_rate=5e-4,
        )
    return TrainingMaterial(
        f"SQuAD 2.0, {counts}; MiniLM-L6 (22 million parameters), which saw SQuAD training pairs "
        "in its contrastive training",
        str(Path(package.origin).parent / "model"),
        str(train),
        str(validation),
        train_limit,
        validation_limit,
        max_length=384,
        doc_stride=128,
        learning_rate=2e-4,
    )
