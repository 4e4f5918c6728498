"""The leaderboard: a study's trials, best first."""

from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from qa_hpo.search.failures import is_retried, lineages
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import BASELINE, CAUSE, epoch_records

__all__ = ["Leaderboard", "Row", "leaderboard"]


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


class Leaderboard(_Result):
    """A study's finished trials: the highest ``best_f1`` first, failed ones last."""

    study: str
    winner: Row | None
    """The best of all complete and pruned trials."""
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
    rows = {
        own[-1].number: _row(joined, own[-1])
        for own in attempts.values()
        if own[-1].state.is_finished() and not is_retried(own)
    }
    ranked = sorted(rows.values(), key=_rank)
    baselines = [number for number, trial in latest.items() if BASELINE in trial.user_attrs]
    return Leaderboard(
        study=joined.file.study.name,
        winner=next((row for row in ranked if _competes(row)), None),
        baseline=rows.get(latest[min(baselines)].number) if baselines else None,
        trials=ranked,
    )


def _competes(row: Row) -> bool:
    return row.state != TrialState.FAIL.name and row.best_f1 is not None


def _rank(row: Row) -> tuple[bool, bool, float, int]:
    failed = row.state == TrialState.FAIL.name
    best = row.best_f1 if row.best_f1 is not None else 0.0
    return failed, row.best_f1 is None, -best, row.number


def _row(joined: JoinedStudy, trial: FrozenTrial) -> Row:
    attributes = {
        key: trial.user_attrs.get(key)
        for key in Row.model_fields.keys() - {"number", "state", "params", "val_loss"}
    }
    if trial.state is TrialState.FAIL:
        attributes["stop_reason"] = trial.user_attrs.get(CAUSE)
    return Row(
        number=trial.number,
        state=trial.state.name,
        params=joined.space.parameters_of(trial.params).model_dump(),
        val_loss=[record.get("val_loss") for record in epoch_records(trial)],
        **attributes,
    )
