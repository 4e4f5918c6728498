"""A checkpoint and windows in, epoch records and the best epoch's checkpoint out."""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, TrainingArguments, set_seed

from qa_hpo.config import Evaluation, RunConfig, Runtime
from qa_hpo.errors import DivergedError, WindowError
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.dropout import use_quick_dropout
from qa_hpo.finetune.families import position_limit
from qa_hpo.finetune.hardware import (
    attention_for,
    best_device,
    check_compiler,
    length_multiple,
    lower_precision,
    use_threads,
)
from qa_hpo.finetune.inputs import ValidationSet
from qa_hpo.finetune.interruption import Check, carried, delivered
from qa_hpo.finetune.looks import OnLook, look_steps
from qa_hpo.finetune.memory import PeakMemory, releasing, telling_of_memory
from qa_hpo.finetune.models import load_model, quiet
from qa_hpo.finetune.old_task import OldTask, start_scores
from qa_hpo.finetune.records import EpochRecord, FineTuned, best_record
from qa_hpo.finetune.resuming import read_device_batch, read_records, read_retention
from qa_hpo.finetune.retention.base import NoRetention, RetentionMethod
from qa_hpo.finetune.trainer import OnEpoch, QuestionAnsweringTrainer
from qa_hpo.parameters import Hyperparameters
from qa_hpo.paths import RunPaths
from qa_hpo.squad.windows import Windows

__all__ = ["Training", "collator", "train"]

_SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Training:
    """What a run trains, on what, and how.

    Attributes:
        checkpoint: Folder or hub id of the weights to start from.
        tokenizer: Its tokenizer.
        windows: Training windows.
        validation: What is measured after every epoch; None to measure nothing and keep the last.
        old_task: What is measured with every checkpoint: how much of it is forgotten.
        parameters: The hyperparameters.
        seed: Seed of a fresh head, of the data's order and of dropout.
        runtime: How the hardware is used.
        evaluation: How validation questions are answered.
        retention: What keeps the old task.
        stop_after_epochs: Epoch after which to stop although the schedule goes on; None for none.
        evaluations_per_epoch: How often an epoch's validation loss is measured, its end included.
        device_batches: For each checkpoint, the most windows per pass that are known to fit; the
            run begins with as many, and writes down what it comes down to.
    """

    checkpoint: str
    tokenizer: PreTrainedTokenizerFast
    windows: Windows
    validation: ValidationSet | None
    parameters: Hyperparameters
    seed: int
    runtime: Runtime = field(default_factory=Runtime)
    evaluation: Evaluation = field(default_factory=Evaluation)
    old_task: OldTask | None = None
    retention: RetentionMethod = field(default_factory=NoRetention)
    stop_after_epochs: int | None = None
    evaluations_per_epoch: int = 1
    device_batches: dict[str, int] = field(default_factory=dict)


def train(
    training: Training,
    paths: RunPaths,
    on_epoch: OnEpoch | None = None,
    check: Check | None = None,
    on_look: OnLook | None = None,
) -> FineTuned:
    """Fine-tune, from the last finished epoch if ``paths`` holds a resume state.

    Args:
        training: What to train.
        paths: Where checkpoints and resume states go. When the run has ended, only the checkpoint
            of the best epoch is left.
        on_epoch: Told of each epoch, those finished before a resume included; a reason that it
            returns ends the run.
        check: Called before every training step and every evaluation batch. What it raises ends
            the run and comes out unchanged; the resume state of the last finished epoch stays.
        on_look: Told of each look at the validation loss within an epoch that is trained here; a
            reason that it returns ends the run, and the epoch leaves nothing.

    Returns:
        The records and the best checkpoint. A run that diverges ends with the stop reason
        ``diverged`` and what its earlier epochs gave.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DiskFullError: No space is left for a checkpoint or a resume state; those that were there
            before are whole.
        OutOfMemoryError: The model, or one window at a time, does not fit into the memory.
        StudyFileError: The hardware lacks the precision that was asked for.
        WindowError: A window is longer than the model can take.
    """
    quiet()
    use_threads(training.runtime.cpu_threads)
    states = paths.resume_states()
    records = read_records(states[-1]) if states else []
    stop_after = training.stop_after_epochs or training.parameters.epochs
    tell = on_epoch or (lambda record: None)
    stop_reason = None
    device_batch = _first_device_batch(training, states)
    for record in records:
        stop_reason = tell(record) or stop_reason
    peak = PeakMemory()
    if not stop_reason and len(records) < min(stop_after, training.parameters.epochs):
        with releasing():
            stop_reason, device_batch = _epochs(
                training, paths, records, device_batch, on_epoch=tell, on_look=on_look, check=check
            )
    best = best_record(records)
    checkpoint = paths.checkpoint(best.epoch) if best else None
    _tidy(paths, checkpoint)
    return FineTuned(
        records=tuple(records),
        best=best,
        checkpoint=checkpoint,
        stop_reason=stop_reason,
        device_batch=device_batch,
        peak_memory_mib=peak.mib(),
    )


def _epochs(
    training: Training,
    paths: RunPaths,
    records: list[EpochRecord],
    device_batch: int,
    *,
    on_epoch: OnEpoch,
    on_look: OnLook | None,
    check: Check | None,
) -> tuple[str | None, int]:
    """Train the epochs that are missing from ``records``, which grows by theirs.

    Returns:
        Why it ended early, or None, and how many windows went through at once in the end.
    """
    states = paths.resume_states()
    with telling_of_memory(training.checkpoint, "the model"):
        trainer = _trainer(training, paths, device_batch)
        if states:
            training.retention.load_state(read_retention(states[-1]))
    trainer.check = carried(check)
    trainer.records = records
    trainer.on_epoch = on_epoch
    trainer.looks.on_look = on_look or (lambda look: None)
    trainer.stop_after_epochs = training.stop_after_epochs or training.parameters.epochs
    stop_reason = delivered(partial(_run, trainer, training.checkpoint, states))
    return stop_reason, trainer.passes.size


def _run(trainer: QuestionAnsweringTrainer, checkpoint: str, states: list[Path]) -> str | None:
    """Train to the end and return why it came early, or None."""
    try:
        with telling_of_memory(checkpoint, "the model and its optimizer"):
            trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
    except DivergedError:
        return "diverged"
    return trainer.looks.stop_reason or trainer.stop_reason


def old_task(
    questions: ValidationSet,
    checkpoint: str,
    tokenizer: PreTrainedTokenizerFast,
    config: RunConfig,
    cache: Path,
    check: Check | None,
) -> OldTask:
    """Return what a run is measured on besides, with what its start scores there.

    Args:
        questions: The old task's questions.
        checkpoint: The start.
        tokenizer: Its tokenizer.
        config: The run.
        cache: Where the start's scores are kept.
        check: Called before every batch of the start's evaluation.
    """
    use_threads(config.runtime.cpu_threads)
    padded = collator(questions.windows, tokenizer)
    start = start_scores(
        checkpoint,
        questions,
        padded,
        max_length=config.data.max_length,
        evaluation=config.evaluation,
        runtime=config.runtime,
        cache=cache,
        check=check,
    )
    return OldTask(questions, padded, start)


def _first_device_batch(training: Training, states: list[Path]) -> int:
    """Return how many windows per pass to begin with: as many as before, as dropout shows it."""
    whole = training.parameters.batch_size
    known = training.device_batches.get(training.checkpoint, whole)
    return min(whole, known, read_device_batch(states[-1]) if states else whole)


def _tidy(paths: RunPaths, checkpoint: Path | None) -> None:
    """Leave nothing beside ``checkpoint``: no resume state, nor what a killed process began."""
    shutil.rmtree(paths.resume, ignore_errors=True)
    for entry in paths.checkpoint(0).parent.glob("*"):
        if entry != checkpoint:
            shutil.rmtree(entry, ignore_errors=True)


def _trainer(training: Training, paths: RunPaths, device_batch: int) -> QuestionAnsweringTrainer:
    # Before the model is loaded: a fresh head is drawn from the random state.
    set_seed(training.seed)
    runtime, retention = training.runtime, training.retention
    model = load_model(
        training.checkpoint,
        attention=attention_for(runtime, training.checkpoint),
        dropout=training.parameters.dropout,
        fresh_head=not retention.needs_head,
    )
    tokenizer = training.tokenizer
    validation = training.validation
    limit = position_limit(model.config)
    train = retention.batches(collator(training.windows, tokenizer))
    for windows in (train.windows, *([validation.windows] if validation else [])):
        if limit is not None and (longest := int(windows.lengths.max())) > limit:
            raise WindowError(
                f"{training.checkpoint}: a window has {longest} tokens and the model {limit} "
                "positions; lower data.max_length"
            )
    trainer = QuestionAnsweringTrainer(
        model,
        _arguments(training, paths),
        tokenizer=tokenizer,
        train=train,
        validation=(validation, collator(validation.windows, tokenizer)) if validation else None,
        evaluation=training.evaluation,
        autocast=lower_precision(runtime),
        paths=paths,
    )
    if validation is not None:
        trainer.looks.at = frozenset(
            look_steps(trainer.looks.steps, training.evaluations_per_epoch)
        )
    retention.prepare(model, trainer.looks.steps * training.parameters.epochs)
    if best_device() == "cpu" and not runtime.compile:
        use_quick_dropout(model)
    if runtime.compile:
        check_compiler()
        # In place, so that checkpoints have the names of the model's own weights. Shapes are
        # symbols: batches of another length, and the last one of an epoch, compile nothing anew.
        model.compile(dynamic=True)
    trainer.old_task = training.old_task
    trainer.retention = retention
    trainer.passes.size = device_batch
    trainer.passes.on_smaller = partial(training.device_batches.__setitem__, training.checkpoint)
    return trainer


def collator(windows: Windows, tokenizer: PreTrainedTokenizerFast) -> WindowCollator:
    """Return how ``windows`` are padded for a model with ``tokenizer`` on this hardware."""
    return WindowCollator(
        windows,
        tokenizer.pad_token_id,
        left=tokenizer.padding_side == "left",
        multiple=length_multiple(),
    )


def _arguments(training: Training, paths: RunPaths) -> TrainingArguments:
    parameters, runtime = training.parameters, training.runtime
    precision = lower_precision(runtime)
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(paths.resume),
        num_train_epochs=parameters.epochs,
        per_device_train_batch_size=parameters.batch_size,
        per_device_eval_batch_size=runtime.eval_batch_size,
        learning_rate=parameters.learning_rate,
        weight_decay=parameters.weight_decay,
        warmup_steps=parameters.warmup,
        lr_scheduler_type=_SCHEDULERS[parameters.scheduler],
        max_grad_norm=parameters.max_grad_norm,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="epoch",
        # A loss that is not a number must show, not be replaced by the mean of those before.
        logging_nan_inf_filter=False,
        bf16=precision is torch.bfloat16,
        fp16=precision is torch.float16,
        use_cpu=not cuda,
        # A batch is copied to the GPU while the one before it is computed.
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
        remove_unused_columns=False,
        label_names=["start_positions", "end_positions"],
        seed=training.seed,
        report_to="none",
        disable_tqdm=True,
    )
    # One process drives one device: with several visible, Trainer would replicate the model.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
