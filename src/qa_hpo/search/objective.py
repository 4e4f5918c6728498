"""One trial of a study: fine-tune, tell every epoch, stop what overfits or has no hope."""

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from qa_hpo.config import Parameters, Run, RunConfig, Runtime
from qa_hpo.finetune.allocator import give_back_freed_memory
from qa_hpo.finetune.records import EpochRecord, Look, best_record
from qa_hpo.finetune.run import Inputs, Starts, fine_tune
from qa_hpo.paths import RunPaths, scratch_folder
from qa_hpo.search.artifacts import open_store
from qa_hpo.search.asking import Asked
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import Keeper, collect
from qa_hpo.search.stopping import PAUSED, StoppingRules
from qa_hpo.search.trials import (
    CPU_THREADS,
    DEVICE_BATCH,
    DOING,
    LOOKS,
    PEAK_MEMORY,
    LostTrialError,
    epoch_records,
    finish,
    record_epoch,
    trial_id,
)
from qa_hpo.squad.answered import Answered

__all__ = ["Objective"]

_logger = logging.getLogger(__name__)

_Whole = Callable[[], AbstractContextManager[None]]


def _never() -> None:
    """Let a run go on."""


def _no_more(answered: Answered) -> dict[str, Any]:
    """Tell no more of a trial than its metrics."""
    return {}


def _memory_needs(parameters: Parameters) -> tuple[object, ...]:
    """Return what decides how much memory a trial of a study takes."""
    retention = parameters.retention
    drops = parameters.dropout != 0.0
    return parameters.start, parameters.batch_size, retention.method, retention.rank, drops


class Objective:
    """Runs trials of a study, one after the other.

    Args:
        joined: The study.
        inputs: Data and tokenizers, kept from trial to trial.
        runtime: How this worker uses the hardware.
        judge: Given what a trial's best checkpoint answered, returns user attributes that tell
            what it is worth.
        check: Called before each training step and each evaluation batch; what it raises ends the
            trial's run, whose resume state stays.
        whole: Gives a context for what should not be interrupted half-way, such as telling of an
            epoch.
    """

    def __init__(
        self,
        joined: JoinedStudy,
        inputs: Inputs,
        runtime: Runtime,
        *,
        judge: Callable[[Answered], dict[str, Any]] = _no_more,
        check: Callable[[], None] = _never,
        whole: _Whole = contextlib.nullcontext,
    ) -> None:
        self.joined = joined
        self.inputs = inputs
        self.runtime = runtime
        self.judge = judge
        self.check = check
        self.whole = whole
        self.rules = StoppingRules(joined)
        self.store = open_store(joined.file.artifacts.folder)
        self._needed: tuple[object, ...] | None = None

    def run(self, asked: Asked) -> str | None:
        """Run a trial to its end and finish it in the storage, or let it wait at a rung.

        Returns:
            Why it was stopped, or None; ``PAUSED`` if it waits, and may go on elsewhere.

        Raises:
            LostTrialError: Another worker took the trial over.
            QaHpoError: The trial cannot be run.
        """
        with scratch_folder(self.inputs.cache.runs) as folder:
            teller = _EpochTeller(self, asked, RunPaths(folder))
            if len(teller.records) < asked.epochs_reserved:
                stop_reason = self._train(asked, teller)
            else:  # all that was left for its worker was to finish it
                stop_reason = self.rules.reason(asked, teller.records)
            if stop_reason == PAUSED:
                return PAUSED
            with self.whole():
                self._finish(asked, teller, stop_reason)
        return stop_reason

    def collect(self) -> None:
        """Remove the checkpoints that no trial needs any more."""
        with self.whole():
            collect(self.joined, self.store)

    def _train(self, asked: Asked, teller: "_EpochTeller") -> str | None:
        config = self.config(asked)
        # Before the run, which would build it too: so that it can be told what is going on.
        Starts(config, config.runtime, self.inputs).checkpoint(
            config.parameters.start,
            lambda name: self.doing(asked, f"building start {name}"),
            check=self.check,
        )
        self.doing(asked, "training")
        teller.keeper.restore()
        # What the last trial's run freed is of use to one that needs as much; it would count in the
        # peak of one that needs less.
        needs = _memory_needs(config.parameters)
        if needs != self._needed:
            give_back_freed_memory()
        self._needed = needs
        tuned = fine_tune(
            config,
            teller.keeper.paths.folder,
            inputs=self.inputs,
            on_epoch=teller,
            on_look=teller.look,
            check=self.check,
        )
        teller.device_batch = tuned.device_batch
        teller.peak_memory_mib = round(tuned.peak_memory_mib, 1)
        return tuned.stop_reason

    def config(self, asked: Asked) -> RunConfig:
        """Return the configuration of a trial's run."""
        stop_after = asked.epochs_reserved
        # One that may be promoted on the way is told to end when it is not.
        ends = self.rules.promotion is None and stop_after < asked.parameters.epochs
        run = Run(
            name=f"{self.joined.file.study.name} trial {asked.lineage}",
            seed=asked.seed,
            stop_after_epochs=stop_after if ends else None,
            evaluations_per_epoch=self.joined.file.pruning.evaluations_per_epoch,
        )
        return self.joined.file.run_config(asked.parameters, run, self.runtime)

    def doing(self, asked: Asked, what: str) -> None:
        """Tell whoever watches what the worker is at.

        Raises:
            LostTrialError: Another worker finished the trial.
        """
        try:
            self.joined.storage.rdb.set_trial_system_attr(trial_id(asked.trial), DOING, what)
        except UpdateFinishedTrialError:
            number = asked.trial.number
            raise LostTrialError(f"trial {number} was finished by another worker") from None

    def _finish(self, asked: Asked, teller: "_EpochTeller", stop_reason: str | None) -> None:
        best = best_record(teller.records)
        answered = teller.keeper.answers()
        corpus = self.inputs.validation_corpus(self.joined.file.data)
        teller.keeper.keep_tables(teller.records, answered, corpus)
        attributes: dict[str, Any] = {
            "train_seconds": sum(record.seconds for record in teller.records)
        }
        if self.runtime.cpu_threads is not None:
            attributes[CPU_THREADS] = self.runtime.cpu_threads
        if teller.device_batch is not None and teller.device_batch < asked.parameters.batch_size:
            attributes[DEVICE_BATCH] = teller.device_batch
        if teller.peak_memory_mib is not None:
            attributes[PEAK_MEMORY] = teller.peak_memory_mib
        if teller.looks:
            attributes[LOOKS] = [list(look) for look in teller.looks]
        if best is not None:
            attributes |= {
                "best_epoch": best.epoch,
                "f1": best.metrics["f1"],
                "exact": best.metrics["exact"],
                "best_f1": best.metrics["best_f1"],
                "best_exact": best.metrics["best_exact"],
                "threshold": best.metrics["best_f1_thresh"],
                "crossfit_f1": best.metrics.get("crossfit_f1"),
            }
            attributes |= {
                name: value for name, value in best.metrics.items() if name.startswith("old_task")
            }
        if answered is not None:
            try:
                attributes |= self.judge(answered)
            except Exception as error:  # noqa: BLE001 - a trained trial is worth more than this
                why = " ".join(f"{type(error).__name__}: {error}".split())
                _logger.warning("trial %d is not judged: %s", asked.trial.number, why)
        finish(
            self.joined,
            asked.trial,
            state=TrialState.COMPLETE if stop_reason is None else TrialState.PRUNED,
            stop_reason=stop_reason,
            attrs=attributes,
            system_attrs=teller.keeper.metadata(),
        )


class _EpochTeller:
    """Keeps what each epoch leaves, tells the storage of it, and the run when to stop."""

    def __init__(self, objective: Objective, asked: Asked, paths: RunPaths) -> None:
        self.objective = objective
        self.asked = asked
        self.keeper = Keeper(objective.joined, objective.store, asked.trial, paths)
        self.records = [EpochRecord.from_dict(record) for record in epoch_records(asked.trial)]
        self.looks: list[Look] = []
        self.device_batch: int | None = None
        self.peak_memory_mib: float | None = None

    def __call__(self, record: EpochRecord) -> str | None:
        if record.epoch < len(self.records):
            return None  # known, and the trial went on after it
        if record.epoch > len(self.records):
            with self.objective.whole():
                self._keep(record)
        with self.objective.whole():
            self.asked, reason = self.objective.rules.after(self.asked, self.records)
        return reason

    def look(self, look: Look) -> str | None:
        """Return why the trial ends at a look within the epoch that goes on, or None."""
        if look.position < len(self.records):
            return (
                None  # of an epoch that is known, where a run without its resume state began anew
            )
        self.looks.append(look)
        return self.objective.rules.at_look(self.asked, self.records, self.looks)

    def _keep(self, record: EpochRecord) -> None:
        self.records.append(record)
        self.looks.clear()
        asked = self.asked
        # Not by what is reserved: a retry may be given more.
        last = record.epoch >= asked.parameters.epochs
        now = self.keeper.keep(self.records, last=last)
        record_epoch(self.objective.joined, asked.trial, record.as_dict(), kept=now)
        self.keeper.recorded(now)
        number = asked.trial.number
        retry = "" if asked.lineage == number else f" (of trial {asked.lineage})"
        _logger.info(
            "trial %d%s, epoch %d of %d: training loss %.3f, validation loss %.3f, best F1 %.2f, "
            "%.1f s",
            number,
            retry,
            record.epoch,
            asked.parameters.epochs,
            record.train_loss,
            record.val_loss,
            record.metrics["best_f1"],
            record.seconds,
        )
