"""The leaderboard: a study's trials, best first."""

import statistics
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from qa_hpo.config import StudyFile
from qa_hpo.parameters import parameter_of
from qa_hpo.search.choosing import trials_on_front
from qa_hpo.search.failures import is_retried, lineages
from qa_hpo.search.finalists import finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import (
    BASELINE,
    CAUSE,
    configuration_number,
    epoch_records,
)

__all__ = [
    "COLUMNS",
    "Leaderboard",
    "Row",
    "best_of_starts",
    "competes",
    "contenders",
    "forgets_too_much",
    "leaderboard",
    "searched_columns",
]


COLUMNS = {
    "start": "start",
    "learning_rate": "learning rate",
    "weight_decay": "decay",
    "doc_stride": "stride",
    "batch_size": "batch",
    "warmup": "warmup",
    "scheduler": "scheduler",
    "max_grad_norm": "clip",
    "dropout": "dropout",
    "retention.method": "retention",
    "retention.strength": "strength",
    "retention.rank": "rank",
}
"""What a leaderboard calls the parameters, in the order of its columns."""


def searched_columns(file: StudyFile) -> list[str]:
    """Return the parameters that have a column: those that the study file names in its search."""
    named = {parameter_of(dimension) for dimension in file.search}
    return [name for name in COLUMNS if name in named]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Result):
    """One finished trial. Scores are percentages, losses are in nats, per window."""

    number: int
    state: str
    """COMPLETE, PRUNED or FAIL."""
    stop_reason: str | None
    """overfitting, hopeless, diverged or budget, if the trial was stopped; of a failed trial its
    cause: oom, diverged, data, worker died, database, artifacts, disk or error."""
    params: dict[str, Any]
    """The complete parameters: searched, fixed and default ones."""
    best_epoch: int | None
    """The epoch with the highest best_f1, counted from 1; the scores are of this epoch."""
    f1: float | None
    exact: float | None
    best_f1: float | None
    best_exact: float | None
    threshold: float | None
    """The null margin above which the answer is none, in logits."""
    crossfit_f1: float | None
    val_loss: list[float | None]
    """Per epoch; null where it was not a finite number."""
    train_seconds: float | None
    worker: str | None
    repeat_of: int | None = None
    """The trial whose configuration this one runs with another seed."""
    seeds: int = 1
    """Finished runs of this configuration, this one included."""
    seeds_f1: float | None = None
    """Mean best_f1 of these runs, where there are several. Finalists are ranked by such means when
    all of them have run with all their seeds, and by the best_f1 of single runs before."""
    seeds_f1_sd: float | None = None
    """Standard deviation of their best_f1."""
    old_task_f1: float | None = None
    """F1 on ``evaluation.old_task`` at ``threshold``, of the same checkpoint."""
    old_task_exact: float | None = None
    old_task_f1_no_null: float | None = None
    """The same with the null answer disabled: what is lost is not only abstention."""
    old_task_drop: float | None = None
    """The start's F1 there less ``old_task_f1``; null where the start has not learnt that task."""
    old_task_drop_no_null: float | None = None
    """Likewise, with the null answer disabled."""
    best_f1_interval: tuple[float, float] | None = None
    """95% interval of best_f1 for other articles of the kind, its threshold as it is."""
    on_front: bool | None = None
    """Whether no other finished trial is better in best_f1 and old_task_f1: at least as good in
    both, and better in one. Null where the study has one objective."""


class Leaderboard(_Result):
    """A study's finished trials: the winner first, failed ones last."""

    study: str
    winner: Row | None
    """The best of all complete and pruned trials: of those that keep to
    ``constraints.max_forgetting``, and where none does, the one that forgets least."""
    baseline: Row | None
    """The first ``[[baseline]]``, in its latest attempt."""
    trials: list[Row]

    def to_json(self) -> str:
        """Return the leaderboard as JSON; numbers are as they are stored."""
        return self.model_dump_json(indent=2)


def leaderboard(joined: JoinedStudy) -> Leaderboard:
    """Return the leaderboard of a study; trials that wait or run are not on it."""
    trials = joined.optuna_study.get_trials(deepcopy=False)
    # One row for a trial and its retries: what an earlier attempt measured, the latest one has.
    # None where the latest failed and is tried again: that says nothing yet.
    attempts = lineages(trials)
    latest = {number: own[-1] for number, own in attempts.items()}
    competing = finished_trials(joined)
    seeds: dict[int, list[float]] = {}
    for trial in competing:
        seeds.setdefault(configuration_number(trial), []).append(trial.user_attrs["best_f1"])
    one_objective = len(joined.file.study.objectives) == 1
    front = None if one_objective else trials_on_front(competing)
    rows = {
        own[-1].number: _row(joined, own[-1], seeds.get(configuration_number(own[-1]), []), front)
        for own in attempts.values()
        if own[-1].state.is_finished() and not is_retried(own)
    }
    place = {trial.number: place for place, trial in enumerate(competing)}

    def rank(row: Row) -> tuple[bool, int, int]:
        failed = row.state == TrialState.FAIL.name
        return failed, place.get(row.number, len(place)), row.number

    ranked = sorted(rows.values(), key=rank)
    baselines = [number for number, trial in latest.items() if BASELINE in trial.user_attrs]
    return Leaderboard(
        study=joined.file.study.name,
        winner=next((row for row in ranked if competes(row)), None),
        baseline=rows.get(latest[min(baselines)].number) if baselines else None,
        trials=ranked,
    )


def competes(row: Row) -> bool:
    """Return whether a trial has finished with a score; one that failed may have left one, too."""
    return row.state != TrialState.FAIL.name and row.best_f1 is not None


def forgets_too_much(row: Row, most: float | None) -> bool:
    """Return whether a trial forgets more than ``constraints.max_forgetting``, in points of F1."""
    return most is not None and row.old_task_drop is not None and row.old_task_drop > most


def contenders(rows: Iterable[Row], most: float | None) -> list[Row]:
    """Return the trials that may win: those that keep to ``constraints.max_forgetting``.

    All that compete, where none of them does, or where there is no such bound.
    """
    competing = [row for row in rows if competes(row)]
    return [row for row in competing if not forgets_too_much(row, most)] or competing


def best_of_starts(rows: Iterable[Row]) -> dict[str, Row]:
    """Return the best trial of each start, of those that compete.

    It is the one with the highest best_f1, among equals the first one tried; means over seeds,
    which only finalists have, have no part in it. Starts are in the order of the rows.
    """
    best: dict[str, Row] = {}
    for row in filter(competes, rows):
        start = str(row.params["start"])
        best[start] = min(best.get(start, row), row, key=_by_f1)
    return best


def _by_f1(row: Row) -> tuple[float, int]:
    return -(row.best_f1 or 0.0), row.number


# Of a row's fields, those that are no user attributes of the trial.
_DERIVED = {
    *("number", "state", "params", "val_loss", "seeds", "seeds_f1", "seeds_f1_sd", "on_front"),
}


def _row(
    joined: JoinedStudy, trial: FrozenTrial, seeds: list[float], front: set[int] | None
) -> Row:
    """Return a trial's row.

    Args:
        joined: The study.
        trial: The trial.
        seeds: The best_f1 of all runs of its configuration.
        front: The numbers of the trials on the front; None where the study has one objective.
    """
    attributes = {key: trial.user_attrs.get(key) for key in Row.model_fields.keys() - _DERIVED}
    if trial.state is TrialState.FAIL:
        attributes["stop_reason"] = trial.user_attrs.get(CAUSE)
    several = len(seeds) > 1
    return Row(
        number=trial.number,
        state=trial.state.name,
        params=joined.space.parameters_of(trial.params).flat(),
        val_loss=[record.get("val_loss") for record in epoch_records(trial)],
        seeds=max(1, len(seeds)),
        seeds_f1=statistics.fmean(seeds) if several else None,
        seeds_f1_sd=statistics.stdev(seeds) if several else None,
        on_front=None if front is None else trial.number in front,
        **attributes,
    )
