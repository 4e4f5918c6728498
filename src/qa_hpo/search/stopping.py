"""Whether a trial goes on after an epoch or a look, ends there, or waits for its promotion."""

import math
from collections.abc import Sequence

from qa_hpo.finetune.records import EpochRecord, Look
from qa_hpo.search.asking import Asked, go_on
from qa_hpo.search.budget import time_is_up
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.promotion import Rules
from qa_hpo.search.pruning import as_number, diverged, is_control, overfits
from qa_hpo.search.trials import REPEAT_OF, configuration_number, with_reports

__all__ = ["PAUSED", "StoppingRules"]

PAUSED = "paused"
"""What :meth:`StoppingRules.after` returns of a trial that is not this worker's any more, as it
waits at its rung."""


class StoppingRules:
    """Decides after each epoch of a study's trials, and at each look, what becomes of them.

    Args:
        joined: The study.
    """

    def __init__(self, joined: JoinedStudy) -> None:
        self.joined = joined
        self.promotion = Rules.of(joined.file)

    def reason(self, asked: Asked, records: Sequence[EpochRecord]) -> str | None:
        """Return why a trial ends after these epochs, or None. The last epoch needs no reason.

        What a study promotes has no hope only beside the trials that come later: that is decided
        at its rungs, see :meth:`after`.

        Args:
            asked: The trial.
            records: Its epochs so far, the newest reported.
        """
        epoch = records[-1].epoch
        if epoch >= asked.parameters.epochs:
            return None
        # First, since it may have been decided by a worker that died before it could tell.
        if (reason := self._on_its_merits(asked, records)) is not None:
            return reason
        if asked.stop_reason is not None:
            return asked.stop_reason
        out_of_epochs = epoch >= asked.epochs_reserved and not self._is_rung(asked, epoch)
        out_of_time = time_is_up(self.joined.optuna_study, self.joined.file.budget)
        return "budget" if out_of_epochs or out_of_time else None

    def _on_its_merits(self, asked: Asked, records: Sequence[EpochRecord]) -> str | None:
        """Return why a trial ends for what its epochs have measured, or None."""
        study = self.joined.optuna_study
        if diverged(as_number(records[-1].val_loss), self.joined.file.data.max_length):
            return "diverged"
        if self._is_control(asked):
            return None
        if self._overfits(records):
            return "overfitting"
        reported = {record.epoch: record.val_loss for record in records}
        # A finalist is there to be compared, and has shown that there is hope.
        repeats = REPEAT_OF in asked.trial.user_attrs
        if not repeats and study.pruner.prune(study, with_reports(asked.trial, reported)):
            return "hopeless"
        return None

    def at_look(
        self, asked: Asked, records: Sequence[EpochRecord], looks: Sequence[Look]
    ) -> str | None:
        """Return why a trial ends at a look within an epoch, or None.

        Only what the trial's own losses show counts here, divergence and overfitting; of the
        budget, of other trials and of rungs an epoch's end decides. Of an epoch that is cut off
        there is no record, so that the budget does not count it among those that were trained.

        Args:
            asked: The trial.
            records: Its finished epochs.
            looks: The looks of the epoch that goes on, the newest last.
        """
        loss = as_number(looks[-1].val_loss)
        # A fresh head may begin far above guessing, and has an epoch to learn better.
        above_guessing = bool(records) and diverged(loss, self.joined.file.data.max_length)
        if above_guessing or not math.isfinite(loss):
            return "diverged"
        if self._is_control(asked) or not self._overfits(records, looks):
            return None
        return "overfitting"

    def _is_control(self, asked: Asked) -> bool:
        file = self.joined.file
        configuration = configuration_number(asked.trial)
        return is_control(file.study.seed, configuration, file.pruning.control_fraction)

    def _overfits(self, records: Sequence[EpochRecord], looks: Sequence[Look] = ()) -> bool:
        epochs = [[*(look.val_loss for look in r.looks), r.val_loss] for r in records]
        return overfits(
            self.joined.file.pruning,
            [[as_number(loss) for loss in losses] for losses in epochs],
            [as_number(look.val_loss) for look in looks],
        )

    def after(self, asked: Asked, records: Sequence[EpochRecord]) -> tuple[Asked, str | None]:
        """Return a trial as it goes on after these epochs, and why it does not, or None.

        Args:
            asked: The trial.
            records: Its epochs so far, the newest recorded.

        Returns:
            The trial, with more epochs reserved if it was promoted at once, and the reason:
            ``PAUSED`` if it waits.

        Raises:
            LostTrialError: It is not this worker's any more.
        """
        reason = self.reason(asked, records)
        epoch = records[-1].epoch
        at_rung = self._is_rung(asked, epoch) and epoch >= asked.epochs_reserved
        if reason is not None or not at_rung or epoch >= asked.parameters.epochs:
            return asked, reason
        promoted = go_on(self.joined, asked)
        return (asked, PAUSED) if promoted is None else (promoted, promoted.stop_reason)

    def _is_rung(self, asked: Asked, epoch: int) -> bool:
        rules = self.promotion
        return rules is not None and epoch in rules.rungs and not rules.exempts(asked.trial)
