"""One trial of a study: fine-tune, tell every epoch, stop what overfits or has no hope."""

import logging
import shutil
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from qa_hpo.config import Run, RunConfig, Runtime
from qa_hpo.finetune.run import EpochRecord, FineTuned, Inputs, Starts, fine_tune
from qa_hpo.paths import RunPaths, StudyPaths
from qa_hpo.search.budget import time_is_up
from qa_hpo.search.pruning import OverfittingRule, diverged, is_control
from qa_hpo.search.study import Asked, JoinedStudy
from qa_hpo.search.trials import (
    CPU_THREADS,
    DOING,
    LostTrialError,
    finish,
    finished_trials,
    lineage_number,
    record_epoch,
    trial_id,
)

__all__ = ["Objective"]

_logger = logging.getLogger(__name__)


class Objective:
    """Runs trials of a study, one after the other.

    Args:
        joined: The study.
        inputs: Data and tokenizers, kept from trial to trial.
        runtime: How this worker uses the hardware.
    """

    def __init__(self, joined: JoinedStudy, inputs: Inputs, runtime: Runtime) -> None:
        self.joined = joined
        self.inputs = inputs
        self.runtime = runtime
        file = joined.file
        self.overfitting = OverfittingRule(file.pruning.patience, file.pruning.min_delta)
        self.paths = StudyPaths(file.artifacts.path, file.study.name)

    def run(self, asked: Asked) -> FineTuned:
        """Run a trial to its end and finish it in the storage.

        Raises:
            LostTrialError: Another worker took the trial over.
            QaHpoError: The trial cannot be run.
        """
        config = self.config(asked)
        # Before the run, which would build it too: so that it can be told what is going on.
        Starts(config, config.runtime, self.inputs).checkpoint(
            config.parameters.start, lambda name: self.doing(asked, f"building start {name}")
        )
        self.doing(asked, "training")
        tuned = fine_tune(
            config,
            self.run_paths(asked).folder,
            inputs=self.inputs,
            on_epoch=_EpochTeller(self, asked),
        )
        self._finish(asked, tuned)
        self._collect()
        return tuned

    def config(self, asked: Asked) -> RunConfig:
        """Return the configuration of a trial's run."""
        stop_after = asked.epochs_reserved
        run = Run(
            name=f"{self.joined.file.study.name} trial {asked.lineage}",
            seed=asked.seed,
            stop_after_epochs=stop_after if stop_after < asked.parameters.epochs else None,
        )
        return self.joined.file.run_config(asked.parameters, run, self.runtime)

    def run_paths(self, asked: Asked) -> RunPaths:
        """Return where a trial's checkpoints are; a retry goes on in its predecessor's."""
        return self.paths.run(asked.lineage)

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

    def stop_reason(self, asked: Asked, records: list[EpochRecord]) -> str | None:
        """Return why the trial ends after these epochs, or None. The last epoch needs no reason.

        Args:
            asked: The trial.
            records: Its epochs so far, the newest reported.
        """
        file, trial = self.joined.file, asked.trial
        epoch = records[-1].epoch
        losses = [record.val_loss for record in records if record.val_loss is not None]
        if epoch >= asked.parameters.epochs:
            return None
        if diverged(losses[-1], file.data.max_length):
            return "diverged"
        if not is_control(file.study.seed, asked.lineage, file.pruning.control_fraction):
            if self.overfitting.overfits(losses):
                return "overfitting"
            if trial.should_prune():
                return "hopeless"
        out_of_epochs = epoch >= asked.epochs_reserved
        if out_of_epochs or time_is_up(self.joined.optuna_study, file.budget):
            return "budget"
        return None

    def _finish(self, asked: Asked, tuned: FineTuned) -> None:
        attributes: dict[str, Any] = {
            "train_seconds": sum(record.seconds for record in tuned.records)
        }
        if self.runtime.cpu_threads is not None:
            attributes[CPU_THREADS] = self.runtime.cpu_threads
        if tuned.best is not None:
            metrics = tuned.best.metrics
            attributes |= {
                "best_epoch": tuned.best.epoch,
                "f1": metrics["f1"],
                "exact": metrics["exact"],
                "best_f1": metrics["best_f1"],
                "best_exact": metrics["best_exact"],
                "threshold": metrics["best_f1_thresh"],
                "crossfit_f1": metrics.get("crossfit_f1"),
            }
        stopped = tuned.stop_reason is not None
        finish(
            self.joined,
            asked.trial,
            state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
            stop_reason=tuned.stop_reason,
            attrs=attributes,
        )

    def _collect(self) -> None:
        """Remove the checkpoints of trials that are no longer among the leading ones."""
        file = self.joined.file
        with self.joined.storage.lock(file.study.name):
            ranked = finished_trials(self.joined.optuna_study)
            for trial in ranked[file.artifacts.keep :]:
                folder = self.paths.run(lineage_number(trial)).folder
                if folder.is_dir():
                    _logger.info("trial %d is no longer among the leading ones", trial.number)
                    shutil.rmtree(folder, ignore_errors=True)


class _EpochTeller:
    """Tells the storage of each epoch, and the run when to stop."""

    def __init__(self, objective: Objective, asked: Asked) -> None:
        self.objective = objective
        self.asked = asked
        self.records: list[EpochRecord] = []

    def __call__(self, record: EpochRecord) -> str | None:
        self.records.append(record)
        record_epoch(self.asked.trial, record.as_dict())
        _logger.info(
            "trial %d, epoch %d of %d: training loss %.3f, validation loss %.3f, best F1 %.2f, "
            "%.1f s",
            self.asked.trial.number,
            record.epoch,
            self.asked.parameters.epochs,
            record.train_loss,
            record.val_loss,
            record.metrics["best_f1"],
            record.seconds,
        )
        return self.objective.stop_reason(self.asked, self.records)
