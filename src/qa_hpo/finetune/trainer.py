"""transformers' Trainer for windows: grouped batches, one validation pass, whole checkpoints."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from qa_hpo.config import Evaluation
from qa_hpo.errors import DivergedError
from qa_hpo.finetune.batching import LengthGroupedBatches, WindowCollator
from qa_hpo.finetune.disk import probe, telling_of_a_full_disk
from qa_hpo.finetune.evaluation import evaluation_passes, forward_pass, mean_loss, span_loss
from qa_hpo.finetune.inputs import ValidationSet
from qa_hpo.finetune.interruption import Check
from qa_hpo.finetune.looks import Looks
from qa_hpo.finetune.memory import PassSize, RandomState
from qa_hpo.finetune.old_task import OldTask
from qa_hpo.finetune.records import EpochRecord, best_record
from qa_hpo.finetune.resuming import PASSES, RECORDS, RETENTION
from qa_hpo.finetune.retention.base import NoRetention, RetentionMethod
from qa_hpo.paths import RunPaths, new_folder, write_bytes, write_json
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.scoring import corpus_metrics

__all__ = ["OnEpoch", "QuestionAnsweringTrainer"]

OnEpoch = Callable[[EpochRecord], str | None]


class QuestionAnsweringTrainer(Trainer):
    """Fine-tunes on windows and measures every epoch.

    At the end of an epoch: one pass over the validation windows; the checkpoint, if the epoch is
    the best so far; the resume state, with the records of all epochs in it; then ``on_epoch``,
    which may end the run by returning a reason. A process that dies on the way loses at most the
    epoch it was in.

    A batch that does not fit into the memory goes through the model in passes that do, before the
    one optimizer step that it is for: the gradient is that of the whole batch, and the schedule
    the same. Dropout is drawn per pass.

    Args:
        model: The model to train.
        args: Training arguments; evaluation, logging and saving are per epoch.
        tokenizer: Saved with every checkpoint.
        train: The training windows and how they are padded.
        validation: The validation set, and how its windows are padded; None to measure nothing.
        evaluation: How validation questions are answered.
        autocast: Lower precision of the evaluation, or None.
        paths: Where checkpoints and resume states go.

    Attributes:
        records: The finished epochs; those from before, when a run is resumed, are put in.
        on_epoch: Told of each epoch that this process finishes.
        stop_after_epochs: Epoch after which the run ends although the schedule goes on.
        stop_reason: What ``on_epoch`` returned last.
        looks: The looks at the validation loss within epochs; they may end the run too.
        passes: Windows per pass of a training step.
        check: Called before every training step and every evaluation batch, and never while files
            are written.
        old_task: What the start has learnt before, measured with the epochs; None for nothing.
        retention: What keeps it, and has chosen ``train``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        tokenizer: PreTrainedTokenizerBase,
        train: WindowCollator,
        validation: tuple[ValidationSet, WindowCollator] | None,
        evaluation: Evaluation,
        autocast: torch.dtype | None,
        paths: RunPaths,
    ) -> None:
        self.looks = Looks(self._look, math.ceil(len(train.windows) / args.train_batch_size))
        super().__init__(
            model=model,
            args=args,
            data_collator=train,
            # Trainer asks for the sets only to see that they are there; batches are made below.
            train_dataset=cast("Dataset[int]", range(len(train.windows))),
            eval_dataset=cast("Dataset[int]", range(0)),
            processing_class=tokenizer,
            callbacks=[_Epochs(self), self.looks],
        )
        # Progress is told through on_epoch; standard output belongs to the command.
        self.remove_callback(PrinterCallback)
        self.network = model
        self.train_collator = train
        self.retention: RetentionMethod = NoRetention()
        self.validation = validation
        self.evaluation = evaluation
        self.autocast = autocast
        self.paths = paths
        self.records: list[EpochRecord] = []
        self.on_epoch: OnEpoch = lambda record: None
        self.stop_after_epochs = round(args.num_train_epochs)
        self.stop_reason: str | None = None
        self.passes = PassSize(
            args.train_batch_size,
            checkpoint=model.name_or_path or "the model",
            unchanged=f"the effective batch stays {args.train_batch_size}",
        )
        self.check: Check = lambda: None
        self.old_task: OldTask | None = None
        self._evaluation_passes = evaluation_passes(model, args.eval_batch_size)
        # Of the step's windows, how many are in the pass that goes through the model.
        self._share = 1.0
        self._staging: Path | None = None
        self._epoch_started = time.monotonic()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, in their order for each epoch."""
        windows, seed = self.train_collator.windows, self.args.seed
        loader = DataLoader(
            # The collator turns window numbers into batches, so the data set is the numbers.
            cast("Dataset[int]", range(len(windows))),
            batch_sampler=LengthGroupedBatches(windows.lengths, self.args.train_batch_size, seed),
            collate_fn=self.train_collator,
            pin_memory=self.args.dataloader_pin_memory,
            # Its own generator: a loader without one draws from the state that dropout uses.
            generator=torch.Generator().manual_seed(seed),
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Add the gradient of a batch's mean loss, in as many passes as the memory asks for.

        A step that runs out of memory is done again from its first pass, with the random state
        of its beginning: what it gives depends on the size of its passes alone.

        Args:
            model: The model.
            inputs: The batch, each tensor (windows, ...).
            num_items_in_batch: Not used: a loss is a mean over windows.

        Returns:
            The batch's mean loss in nats per window, a scalar without gradient.

        Raises:
            OutOfMemoryError: One window at a time does not fit.
        """
        self.check()
        beginning = RandomState(self.args.device)

        def undo() -> None:
            model.zero_grad(set_to_none=True)
            beginning.restore()

        work = partial(self._in_passes, model, inputs)
        loss = self.passes.fit(len(inputs["input_ids"]), work, undo)
        scaler = self.accelerator.scaler
        self.retention.after_backward(1.0 if scaler is None else scaler.get_scale())
        return loss

    def _in_passes(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], size: int
    ) -> torch.Tensor:
        windows = len(inputs["input_ids"])
        if size >= windows:
            return super().training_step(model, inputs)
        # The padding stays: windows of a batch are of like length, so there is hardly any.
        losses = []
        try:
            for first in range(0, windows, size):
                part = {name: rows[first : first + size] for name, rows in inputs.items()}
                self._share = len(part["input_ids"]) / windows
                losses.append(super().training_step(model, part))
        finally:
            self._share = 1.0
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of a pass, times its share of the step's windows.

        Padding takes no part in it, nor does the penalty of a retention method, which is a
        gradient alone: training losses compare between methods.
        """
        labels = {name: inputs.pop(name) for name in ("start_positions", "end_positions")}
        extras = {name: inputs.pop(name) for name in self.retention.batch_keys}
        outputs = model(**inputs)
        losses = span_loss(
            outputs.start_logits, outputs.end_logits, inputs["attention_mask"], **labels
        )
        losses = self.retention.window_losses(losses, outputs, inputs, extras)
        loss = losses.mean() * self._share
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Measure the epoch that has just ended, and keep its weights if it is the best so far.

        Raises:
            DivergedError: The epoch's training loss or a validation logit is not finite.
            DiskFullError: No space is left for the checkpoint.
            OutOfMemoryError: One validation window at a time does not fit.
        """
        epoch = round(self.state.epoch or 0)
        train_loss = float(self.state.log_history[-1]["loss"])
        if not math.isfinite(train_loss):
            raise DivergedError(f"the training loss of epoch {epoch} is {train_loss}")
        started = time.monotonic()
        val_loss, answered = self._measure()
        metrics: dict[str, float] = {}
        if answered is not None and self.validation is not None:
            metrics = corpus_metrics(answered.scores, self.validation[0].groups)
        if metrics and self._old_task_is_due(metrics):
            metrics |= self._measure_old_task(metrics["best_f1_thresh"])
        ended = time.monotonic()
        record = EpochRecord(
            epoch=epoch,
            train_loss=train_loss,
            seconds=ended - self._epoch_started,
            eval_seconds=ended - started + self.looks.seconds,
            val_loss=val_loss,
            metrics=metrics,
            looks=tuple(self.looks.taken),
        )
        self.records.append(record)
        if best_record(self.records) is record:
            self._save_best(epoch, answered)
        return {}

    def _measure(self) -> tuple[float | None, Answered | None]:
        if self.validation is None:
            return None, None
        validation, collator = self.validation
        forward = forward_pass(
            self.network,
            collator,
            n_best=self.evaluation.n_best,
            max_answer_length=self.evaluation.max_answer_length,
            batch_size=self._evaluation_passes,
            autocast=self.autocast,
            check=self.check,
        )
        answered = Answered.of(validation.corpus, forward.predictions, self.evaluation.tokens)
        return forward.loss, answered

    def _look(self) -> float:
        """Return the validation loss between two steps; the next one is as it would have been."""
        assert self.validation is not None
        # Some models draw random numbers in evaluation too, for hashing or sampling.
        beginning = RandomState(self.args.device)
        loss = mean_loss(
            self.network,
            self.validation[1],
            batch_size=self._evaluation_passes,
            autocast=self.autocast,
            check=self.check,
        )
        beginning.restore()
        self.network.train()
        return loss

    def _old_task_is_due(self, metrics: dict[str, float]) -> bool:
        """Return whether an epoch that measured this is to be measured on the old task too.

        Each is where that costs no more than the validation, else those whose weights are kept.
        """
        if self.old_task is None or self.validation is None:
            return False
        windows, old_windows = self.validation[0].windows, self.old_task.questions.windows
        best = best_record(self.records)
        is_best = best is None or metrics["best_f1"] > best.metrics["best_f1"]
        return is_best or len(old_windows) <= len(windows)

    def _measure_old_task(self, threshold: float) -> dict[str, float]:
        assert self.old_task is not None
        return self.old_task.measure(
            self.network,
            threshold,
            evaluation=self.evaluation,
            batch_size=self._evaluation_passes,
            autocast=self.autocast,
            check=self.check,
        )

    def _save_best(self, epoch: int, answered: Answered | None) -> None:
        final = self.paths.checkpoint(epoch)
        # Left by a process that died after this epoch's checkpoint and before its resume state.
        shutil.rmtree(final, ignore_errors=True)
        with telling_of_a_full_disk(self.paths.folder), new_folder(final) as folder:
            if answered is not None:
                write_bytes(self.paths.answers(epoch), answered.to_bytes())
            self.retention.portable(self.network).save_pretrained(folder)
            self.retention.save(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the resume state beside its place and put it there in one step, then tidy up.

        What the state before it needs is removed last: whenever the process dies, there is one
        state that is whole, with the checkpoint of its best epoch.

        Raises:
            DiskFullError: No space is left for it.
        """
        final = self.paths.resume_state(self.records[-1].epoch)
        with telling_of_a_full_disk(self.paths.folder):
            self.paths.resume.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".writing-", dir=self.paths.resume) as staging:
                self._staging = Path(staging)
                try:
                    with probe(self._staging):
                        super()._save_checkpoint(model, trial)
                finally:
                    self._staging = None
                (written,) = Path(staging).glob("checkpoint-*")
                state = self.retention.state()
                if state:
                    save_file(state, written / RETENTION)
                write_json(written / PASSES, {"device_batch": self.passes.size})
                write_json(written / RECORDS, [record.as_dict() for record in self.records])
                written.replace(final)
        best = best_record(self.records)
        kept = {final, self.paths.checkpoint(best.epoch) if best else None}
        for folder in [*self.paths.resume_states(), *self.paths.checkpoints()]:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for file in self.paths.answers(0).parent.glob("*.npz"):
            if best is None or file != self.paths.answers(best.epoch):
                file.unlink(missing_ok=True)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate walks all parameters at every step, and nobody reads it."""
        return 0


class _Epochs(TrainerCallback):
    """Times epochs, and ends the run where it is told to."""

    def __init__(self, trainer: QuestionAnsweringTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer._epoch_started = time.monotonic()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.retention.after_step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        record = self.trainer.records[-1]
        self.trainer.stop_reason = self.trainer.on_epoch(record)
        if self.trainer.stop_reason or record.epoch >= self.trainer.stop_after_epochs:
            control.should_training_stop = True
