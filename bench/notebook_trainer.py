"""The baseline's trial: fine-tuning as a question-answering notebook does it with Trainer.

Questions are a Dataset, and windows are made from it by `Dataset.map`, all padded to max_length.
Trainer draws batches at random, measures the validation loss when the epoch ends, and predicts the
validation windows, from which the notebook's loops take answers, scores and metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from bench import notebook
from bench.data import question_rows
from bench.timing import Stopwatch
from qa_hpo.finetune.hardware import lower_precision
from qa_hpo.sections import Runtime
from qa_hpo.squad.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PARTS = ("load", "train", "save", "predict", "answers", "scores")


@dataclass(frozen=True)
class Features:
    """What a notebook makes before its first training, and keeps for the next.

    Attributes:
        tokenizer: a fast one that pads on the right.
        questions: the validation questions.
        train: training windows with labels.
        validation: validation windows with labels, for the loss.
        prediction: validation windows without labels, for the answers.
    """

    tokenizer: PreTrainedTokenizerFast
    questions: Dataset
    train: Dataset
    validation: Dataset
    prediction: Dataset


def questions_of(corpus: Corpus) -> Dataset:
    """A corpus as the Dataset that a hub gives."""
    return Dataset.from_list(question_rows(corpus))


def labelled_windows(
    questions: Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, doc_stride: int
) -> Dataset:
    """Windows as training takes them, padded to max_length."""
    make = partial(
        notebook.label, tokenizer=tokenizer, max_length=max_length, doc_stride=doc_stride
    )
    return notebook.dataset_windows(questions, make)


def prediction_windows(
    questions: Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, doc_stride: int
) -> Dataset:
    """Windows from which answers are read, with the characters of their tokens."""
    make = partial(
        notebook.tokenise, tokenizer=tokenizer, max_length=max_length, doc_stride=doc_stride
    )
    return notebook.dataset_windows(questions, make)


def make_features(
    train: Corpus,
    validation: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    doc_stride: int,
) -> Features:
    questions = questions_of(validation)
    return Features(
        tokenizer,
        questions,
        labelled_windows(questions_of(train), tokenizer, max_length, doc_stride),
        labelled_windows(questions, tokenizer, max_length, doc_stride),
        prediction_windows(questions, tokenizer, max_length, doc_stride),
    )


def training_arguments(
    folder: Path,
    *,
    learning_rate: float,
    seed: int,
    epochs: int = 1,
    batch_size: int = 16,
    weight_decay: float = 0.01,
) -> TrainingArguments:
    """The notebook's arguments, in the precision that ours takes on this hardware.

    Nothing is saved on the way, which favours the notebook: it saves its model once, at the end.
    """
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        eval_strategy="epoch",
        save_strategy="no",
        learning_rate=learning_rate,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        num_train_epochs=epochs,
        weight_decay=weight_decay,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        bf16=lower_precision(Runtime()) is torch.bfloat16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
    )
    # One device on both sides: with several visible, Trainer would replicate the model.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def load(checkpoint: str, seed: int) -> PreTrainedModel:
    """The model, with a fresh head drawn from the seed."""
    set_seed(seed)
    model: PreTrainedModel = AutoModelForQuestionAnswering.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    return model


def make_trainer(
    model: PreTrainedModel, features: Features, arguments: TrainingArguments
) -> Trainer:
    trainer = Trainer(
        model,
        arguments,
        train_dataset=features.train,
        eval_dataset=features.validation,
        data_collator=default_data_collator,
        processing_class=features.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # it prints every loss between our own lines
    return trainer


def run_notebook(
    checkpoint: str, features: Features, arguments: TrainingArguments, watch: Stopwatch
) -> dict[str, float]:
    """One trial: the model is saved in the arguments' folder, and its metrics are returned."""
    with watch.part("load"):
        model = load(checkpoint, arguments.seed)
        trainer = make_trainer(model, features, arguments)
    with watch.part("train"):
        trainer.train()
    with watch.part("save"):
        trainer.save_model(arguments.output_dir)
    with watch.part("predict"):
        windows: Any = features.prediction
        logits: Any = trainer.predict(windows).predictions
        start, end = logits
    questions = features.questions
    with watch.part("answers"):
        cls = features.tokenizer.cls_token_id
        found = notebook.best_answers(questions, windows, start, end, cls)
    with watch.part("scores"):
        references = [{"id": row["id"], "answers": row["answers"]} for row in questions]
        exact, f1 = notebook.question_scores(references, found)
        return notebook.official_metrics(references, found, exact, f1)
