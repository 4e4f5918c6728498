"""How long a run's training steps and evaluation take here, measured on some of its own windows.

The steps are those of a run: its trainer takes them, with its batches, precision and attention.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qa_hpo.finetune.batching import LengthGroupedBatches, longest_first
from qa_hpo.finetune.disk import telling_of_a_full_disk
from qa_hpo.finetune.evaluation import forward_pass
from qa_hpo.finetune.hardware import best_device, lower_precision, use_threads
from qa_hpo.finetune.memory import PeakMemory, releasing, telling_of_memory
from qa_hpo.finetune.models import quiet
from qa_hpo.finetune.trainer import QuestionAnsweringTrainer
from qa_hpo.finetune.training import Training, collator, make_trainer
from qa_hpo.paths import RunPaths
from qa_hpo.squad.windows import Windows

__all__ = ["Pace", "time_steps"]

_WARM_UP = 2
_STEPS = 8
_EVALUATION_BATCHES = 6
# Warm-up and steps may come from a corpus of few batches, which are then taken again.
_EPOCHS = _WARM_UP + _STEPS


@dataclass(frozen=True)
class Pace:
    """How fast a run goes.

    Attributes:
        checkpoint: What was trained.
        device: What it was trained on: "cpu" or "cuda".
        threads: With how many CPU threads.
        precision: Of the arithmetic: "float32", or that of the autocast.
        batch_size: Windows of a training step.
        steps: Training steps that were timed, after a warm-up.
        step_s: Mean seconds of a training step.
        evaluated: Validation windows that were timed, after a warm-up.
        evaluation_s: Mean seconds for each of them.
        setup_s: Seconds until the first step of a run: the model, the optimizer.
        checkpoint_bytes: Size of a checkpoint.
        save_s: Seconds it takes to write one.
        peak_memory_mib: The most memory at once, as a run's ``peak_memory_mib``.
    """

    checkpoint: str
    device: str
    threads: int
    precision: str
    batch_size: int
    steps: int
    step_s: float
    evaluated: int
    evaluation_s: float
    setup_s: float
    checkpoint_bytes: int
    save_s: float
    peak_memory_mib: float

    @property
    def window_s(self) -> float:
        """Seconds of training for each window."""
        return self.step_s / self.batch_size


def time_steps(training: Training, *, seconds: float = 30.0) -> Pace:
    """Train some steps and evaluate some windows, and throw away what that gives.

    The batches are a run's own, spread over all lengths. The first ones warm up.

    Args:
        training: The run, with a validation set. A retention method that it has is timed with it;
            an old task is not measured.
        seconds: After so many, no further step is begun once there are two. A step in which
            memory ran out is done again, and its time counts.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        OutOfMemoryError: The model, or one window at a time, does not fit into the memory.
        StudyFileError: The hardware lacks the precision that was asked for.
        WindowError: A window is longer than the model can take.
    """
    assert training.validation is not None
    quiet()
    before, size = torch.get_num_threads(), training.parameters.batch_size
    use_threads(training.runtime.cpu_threads)
    timed = replace(
        training,
        windows=training.windows.take(_of_all_lengths(training)),
        parameters=training.parameters.model_copy(update={"epochs": _EPOCHS}),
        evaluations_per_epoch=1,
    )
    peak = PeakMemory()
    try:
        with releasing(), tempfile.TemporaryDirectory() as folder:
            watch = _Stopwatch(seconds)
            with telling_of_memory(training.checkpoint, "the model"):
                trainer = make_trainer(timed, RunPaths(Path(folder)), size)
            trainer.add_callback(watch)
            with telling_of_memory(training.checkpoint, "the model and its optimizer"):
                trainer.train()
            evaluated, evaluation_s = _time_evaluation(training, trainer)
            checkpoint_bytes, save_s = _time_saving(trainer, Path(folder) / "saved")
            return Pace(
                checkpoint=training.checkpoint,
                device=best_device(),
                threads=torch.get_num_threads(),
                precision=str(lower_precision(training.runtime) or "float32").removeprefix(
                    "torch."
                ),
                batch_size=size,
                steps=len(watch.durations[_timed(watch.durations)]),
                step_s=_step_s(training, timed, watch.durations),
                evaluated=evaluated,
                evaluation_s=evaluation_s,
                setup_s=watch.setup_s,
                checkpoint_bytes=checkpoint_bytes,
                save_s=save_s,
                peak_memory_mib=peak.mib(),
            )
    finally:
        use_threads(before)


class _Stopwatch(TrainerCallback):
    """Times steps from the end of one to the end of the next, and ends the run after them.

    Nothing is evaluated or saved.

    Args:
        seconds: After so many since now, no step is begun once there are two.

    Attributes:
        durations: Seconds of each step, the warm-up included.
        setup_s: Seconds until the first step began.
    """

    def __init__(self, seconds: float) -> None:
        self.durations: list[float] = []
        self.setup_s = 0.0
        self._began = self._last = time.monotonic()
        self._seconds = seconds

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.global_step:
            self._last = time.monotonic()
            self.setup_s = self._last - self._began

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was asked of the device may not have been done yet
        now = time.monotonic()
        self.durations.append(now - self._last)
        self._last = now
        done = len(self.durations)
        late = now - self._began > self._seconds and done > 1
        if late or done == _WARM_UP + _STEPS:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_log = control.should_evaluate = control.should_save = False


def _spread(batches: Sequence[NDArray[np.int64]], most: int) -> NDArray[np.int64]:
    """Return the windows of at most so many of ``batches``, at equal distances."""
    picked = np.unique(np.linspace(0, len(batches) - 1, most).round().astype(np.int64))
    return np.concatenate([batches[i] for i in picked])


def _of_all_lengths(training: Training) -> NDArray[np.int64]:
    """Return the windows of some of a run's batches, from its shortest to its longest."""
    lengths, size = training.windows.lengths, training.parameters.batch_size
    batches = map(np.asarray, LengthGroupedBatches(lengths, size, training.seed))
    return _spread(sorted(batches, key=lambda batch: int(lengths[batch].max())), _WARM_UP + _STEPS)


def _timed(durations: Sequence[float]) -> slice:
    """Return which steps count: those after the warm-up, and at least the last one."""
    return slice(min(_WARM_UP, len(durations) - 1), len(durations))


def _step_s(training: Training, timed: Training, durations: Sequence[float]) -> float:
    """Return the mean seconds of a step of ``training``, from steps of ``timed``.

    Those timed may have had longer windows than the others, or shorter ones: time goes by tokens.
    """
    counted = _timed(durations)
    tokens = sum(_tokens(timed, _EPOCHS)[counted])
    return float(sum(durations[counted]) / tokens * np.mean(_tokens(training)))


def _tokens(training: Training, epochs: int = 1) -> list[int]:
    """Return the tokens of each step's batch, padding included, in the order of a run."""
    lengths, size = training.windows.lengths, training.parameters.batch_size
    batches = LengthGroupedBatches(lengths, size, training.seed)
    found = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        found += [len(batch) * int(lengths[batch].max()) for batch in batches]
    return found


def _time_evaluation(training: Training, trainer: QuestionAnsweringTrainer) -> tuple[int, float]:
    """Return how many validation windows were timed, and the mean seconds of one."""
    assert training.validation is not None
    whole, runtime = training.validation.windows, training.runtime
    batches = list(longest_first(whole.lengths, runtime.eval_batch_size))

    def run(windows: Windows) -> float:
        began = time.monotonic()
        forward_pass(
            trainer.network,
            collator(windows, training.tokenizer),
            n_best=training.evaluation.n_best,
            max_answer_length=training.evaluation.max_answer_length,
            batch_size=runtime.eval_batch_size,
            autocast=lower_precision(runtime),
        )
        return time.monotonic() - began

    run(_alone(whole.take(batches[-1])))
    some = _alone(whole.take(_spread(batches, _EVALUATION_BATCHES)))
    return len(some), run(some) / len(some)


def _alone(windows: Windows) -> Windows:
    """Return windows that were taken from others, without the questions that have none of them."""
    questions, numbers = np.unique(windows.question_index, return_inverse=True)
    return replace(windows, question_index=numbers.astype(np.int32), questions=len(questions))


def _time_saving(trainer: QuestionAnsweringTrainer, folder: Path) -> tuple[int, float]:
    """Return a checkpoint's size in bytes, and the seconds that it takes to write it."""
    began = time.monotonic()
    with telling_of_a_full_disk(folder):
        trainer.network.save_pretrained(folder)
        assert trainer.processing_class is not None
        trainer.processing_class.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.iterdir()), time.monotonic() - began
