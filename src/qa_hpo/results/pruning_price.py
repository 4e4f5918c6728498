"""What pruning saved, and what it cost: read off the trials that were never pruned."""

import copy
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.promotion import Ladder
from qa_hpo.search.pruning import as_number, is_control, overfits
from qa_hpo.search.trials import (
    REPEAT_OF,
    STOP_REASON,
    configuration_number,
    epoch_records,
    with_reports,
)

__all__ = ["Control", "PruningPrice", "pruning_price"]


@dataclass(frozen=True)
class Control:
    """A trial that was not pruned, and where it would have been.

    Attributes:
        number: The trial's number.
        epochs: Epochs that it trained.
        stop: The epoch after which it would have ended, or the last one before that within which it
            would; None if it would not.
        reason: Why, ``overfitting`` or ``hopeless``; None likewise.
        f1: Its best F1, in percent.
        f1_lost: How much of that it reached after ``stop``, in points.
    """

    number: int
    epochs: int
    stop: int | None
    reason: str | None
    f1: float
    f1_lost: float

    @property
    def epochs_saved(self) -> int:
        """Epochs that it would not have finished."""
        return 0 if self.stop is None else self.epochs - self.stop


@dataclass(frozen=True)
class PruningPrice:
    """What pruning saved in a study, and what it would have cost its controls.

    Attributes:
        pruned: Trials that ended as overfitting, hopeless or diverged.
        epochs_trained: Epochs of all finished trials.
        epochs_saved: Epochs that the pruned ones had not finished.
        controls: Trials that were never pruned (``pruning.control_fraction``).
    """

    pruned: int
    epochs_trained: int
    epochs_saved: int
    controls: tuple[Control, ...]

    @property
    def share_saved(self) -> float:
        """Saved epochs, of those that would have been trained without pruning, 0 … 1."""
        whole = self.epochs_trained + self.epochs_saved
        return self.epochs_saved / whole if whole else 0.0

    @property
    def f1_lost(self) -> float | None:
        """Mean F1 that pruning would have cost a control, in points; None without controls."""
        if not self.controls:
            return None
        return sum(control.f1_lost for control in self.controls) / len(self.controls)

    @property
    def best_lost(self) -> float | None:
        """By how much the best control's F1 is above what they all reach when pruned, in points."""
        if not self.controls:
            return None
        kept = max(control.f1 - control.f1_lost for control in self.controls)
        return max(control.f1 for control in self.controls) - kept


def pruning_price(joined: JoinedStudy) -> PruningPrice:
    """Return what pruning saved and cost.

    A control shows what a pruned trial would have come to. The rules are applied to its recorded
    losses, epoch by epoch: that of overfitting as it was, at looks within epochs too, the one
    across trials beside all other trials, of which some had not finished at the time. Where trials
    are promoted, a control would have ended at the first rung where it is not among the best of
    all that came as far.
    """
    file, study = joined.file, joined.optuna_study
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    pruned = [t for t in trials if t.user_attrs.get(STOP_REASON) not in {None, "budget"}]
    saved = sum(_left(joined, trial) for trial in pruned)
    # Beside all trials, failed and running ones as well: they have come as far as they have.
    ladder = Ladder.of(file, study.get_trials(deepcopy=False))
    controls = [
        _control(joined, trial, ladder)
        for trial in trials
        if is_control(file.study.seed, configuration_number(trial), file.pruning.control_fraction)
        and trial.state is TrialState.COMPLETE
        and REPEAT_OF not in trial.user_attrs
    ]
    trained = sum(len(epoch_records(trial)) for trial in trials)
    return PruningPrice(len(pruned), trained, saved, tuple(controls))


def _left(joined: JoinedStudy, trial: FrozenTrial) -> int:
    wanted = joined.space.parameters_of(trial.params).epochs
    return max(0, wanted - len(epoch_records(trial)))


def _control(joined: JoinedStudy, trial: FrozenTrial, ladder: Ladder | None) -> Control:
    records = epoch_records(trial)
    scores = [record.get("best_f1") or 0.0 for record in records]
    stop, reason = _ending(joined, records, _hopeless(joined, trial, ladder))
    reached = max(scores[:stop]) if stop is not None else max(scores)
    return Control(trial.number, len(records), stop, reason, max(scores), max(scores) - reached)


def _ending(
    joined: JoinedStudy,
    records: Sequence[Mapping[str, Any]],
    hopeless: Callable[[Mapping[int, float | None]], bool],
) -> tuple[int | None, str | None]:
    """Return how many epochs a trial would have finished, and why no more; None if all."""
    pruning = joined.file.pruning
    epochs: list[list[float]] = []
    reports: dict[int, float | None] = {}
    for record in records:
        looks = [as_number(loss) for _, loss in record.get("looks", ())]
        if any(overfits(pruning, epochs, looks[:n]) for n in range(1, len(looks) + 1)):
            return record["epoch"] - 1, "overfitting"
        if record is records[-1]:
            break  # its end needs no rule
        epochs.append([*looks, as_number(record["val_loss"])])
        reports[record["epoch"]] = record["val_loss"]
        if overfits(pruning, epochs):
            return record["epoch"], "overfitting"
        if hopeless(reports):
            return record["epoch"], "hopeless"
    return None, None


def _hopeless(
    joined: JoinedStudy, trial: FrozenTrial, ladder: Ladder | None
) -> Callable[[Mapping[int, float | None]], bool]:
    """Return what tells whether a trial has no hope beside others after its first losses."""
    if ladder is not None:
        rungs = ladder.rules.rungs
        return lambda reports: (
            len(reports) in rungs and not ladder.is_among_best(trial, len(reports))
        )
    again = copy.copy(trial)
    again.state, again.system_attrs = TrialState.RUNNING, dict(trial.system_attrs)
    others = cast("optuna.Study", _Others(joined.optuna_study, again))
    return lambda reports: joined.optuna_study.pruner.prune(others, with_reports(again, reports))


class _Others:
    """A study without the trial that is judged: it would be its own measure."""

    def __init__(self, study: optuna.Study, judged: FrozenTrial) -> None:
        self._study = study
        self._number = judged.number
        self._storage = _Noting(study._storage, judged)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [trial for trial in trials if trial.number != self._number]


class _Noting:
    """A storage in which Hyperband notes of the judged trial what rungs it has reached."""

    def __init__(self, storage: Any, judged: FrozenTrial) -> None:
        self._backend = storage
        self._judged = judged

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def set_trial_system_attr(self, _trial_id: int, key: str, value: Any) -> None:
        """Note an attribute on the copy that is judged, as the trial itself is finished."""
        self._judged.system_attrs[key] = value
