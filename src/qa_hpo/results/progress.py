"""A study as it goes on: trials done, what each worker is at, and how long it may take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qa_hpo.config import Budget
from qa_hpo.search.budget import Spent, spent
from qa_hpo.search.failures import Cause, is_retried, lineages
from qa_hpo.search.finalists import finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.promotion import Ladder, Rules
from qa_hpo.search.trials import (
    CAUSE,
    DOING,
    PEAK_MEMORY,
    WORKER,
    epoch_records,
    lineage_number,
)

__all__ = ["Busy", "Paused", "Snapshot", "describe_trial", "render", "snapshot"]


@dataclass(frozen=True)
class Busy:
    """A running trial.

    Attributes:
        number: The trial's number.
        worker: Who runs it.
        start: The start it fine-tunes.
        epoch: Finished epochs.
        epochs: Epochs of its schedule.
        loss: The last epoch's validation loss, in nats per window.
        f1: The best F1 so far, in percent, each epoch's at its best threshold.
        doing: What the worker is at.
        seconds: How long the trial has been running.
    """

    number: int
    worker: str
    start: str
    epoch: int
    epochs: int
    loss: float | None
    f1: float | None
    doing: str
    seconds: float


@dataclass(frozen=True)
class Paused:
    """A trial that waits at a rung for its promotion.

    Attributes:
        number: The trial's number.
        epoch: Finished epochs.
        epochs: Epochs of its schedule.
        f1: The best F1 so far, in percent.
    """

    number: int
    epoch: int
    epochs: int
    f1: float | None


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        study: Its name.
        spent: What is spent.
        budget: What may be spent.
        counts: Trials by state.
        busy: The running trials.
        paused: The trials that wait at a rung.
        best: The leading trial.
        seconds_left: Estimated from the pace so far; None before a trial has finished.
    """

    study: str
    spent: Spent
    budget: Budget
    counts: dict[str, int]
    busy: list[Busy]
    best: FrozenTrial | None
    seconds_left: float | None
    paused: tuple[Paused, ...] = ()

    @property
    def share(self) -> float:
        """Share of the budget that is spent, 0 … 1."""
        return max(_shares(self.spent, self.budget))

    def as_dict(self) -> dict[str, Any]:
        """Return the snapshot as ``qa-hpo status --json`` prints it."""
        best = self.best
        return {
            "study": self.study,
            "trials": self.counts,
            "finished": self.spent.trials,
            "budget": self.budget.model_dump(),
            "spent": {
                "trials": self.spent.trials,
                "epochs": self.spent.epochs,
                "hours": self.spent.hours,
            },
            "share_of_budget": min(1.0, self.share),
            "seconds_left": self.seconds_left,
            "best": None
            if best is None
            else {"number": best.number, "best_f1": best.user_attrs["best_f1"]},
            "running": [vars(busy) for busy in self.busy],
            "at_a_rung": [vars(paused) for paused in self.paused],
        }


def _shares(used: Spent, budget: Budget) -> list[float]:
    pairs = [
        (used.trials, budget.trials),
        (used.epochs, budget.epochs),
        (used.hours, budget.hours),
    ]
    return [have / limit for have, limit in pairs if limit is not None]


def snapshot(joined: JoinedStudy, now: datetime | None = None) -> Snapshot:
    """Return how a study stands."""
    now = now or datetime.now()  # Optuna stores local times without a zone
    trials = joined.optuna_study.get_trials(deepcopy=False)
    ladder = Ladder.of(joined.file, trials)
    used = spent(joined.optuna_study, now=now, trials=trials, ladder=ladder)
    budget = joined.file.budget
    ranked = finished_trials(joined)
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    share = max(_shares(used, budget))
    left = None
    if used.trials and running and share > 0:
        left = max(0.0, used.hours * 3600 * (1 / share - 1))
    return Snapshot(
        study=joined.file.study.name,
        spent=used,
        budget=budget,
        counts={state.name: sum(trial.state is state for trial in trials) for state in TrialState},
        busy=[_busy(joined, trial, now) for trial in running],
        best=ranked[0] if ranked else None,
        seconds_left=left,
        paused=tuple(_paused(ladder.rules, trial) for trial in ladder.paused) if ladder else (),
    )


def _paused(rules: Rules, trial: FrozenTrial) -> Paused:
    records = epoch_records(trial)
    return Paused(trial.number, len(records), rules.horizon, _best_f1(records))


def _busy(joined: JoinedStudy, trial: FrozenTrial, now: datetime) -> Busy:
    records = epoch_records(trial)
    parameters = joined.space.parameters_of(trial.params)
    begun = trial.datetime_start or now
    return Busy(
        number=trial.number,
        worker=str(trial.user_attrs.get(WORKER, "")),
        start=parameters.start,
        epoch=len(records),
        epochs=parameters.epochs,
        loss=records[-1].get("val_loss") if records else None,
        f1=_best_f1(records),
        doing=str(trial.system_attrs.get(DOING, "")),
        seconds=(now - begun).total_seconds(),
    )


def _best_f1(records: Sequence[Mapping[str, Any]]) -> float | None:
    # An epoch that diverged has no score.
    scores = [record.get("best_f1") for record in records]
    return max((score for score in scores if score is not None), default=None)


def render(now: Snapshot) -> RenderableType:
    """Return what a terminal shows of a study that goes on."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading, side in (
        ("worker", "left"),
        ("trial", "right"),
        ("start", "left"),
        ("epoch", "right"),
        ("loss", "right"),
        ("best F1", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for busy in now.busy:
        table.add_row(
            Text(busy.worker),  # a name from outside is no markup
            str(busy.number),
            Text(busy.start),
            f"{busy.epoch}/{busy.epochs}",
            "" if busy.loss is None else f"{busy.loss:.3f}",
            "" if busy.f1 is None else f"{busy.f1:.2f}",
            Text(f"{busy.doing}, {_clock(busy.seconds)}"),
        )
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=1, completed=now.share, width=30), Text(headline(now)))
    return Group(bar, table)


def headline(now: Snapshot) -> str:
    """Return one line on how a study stands."""
    budget = now.budget
    parts = [
        f"{now.spent.trials} of {budget.trials} trials"
        if budget.trials is not None
        else f"{now.spent.trials} trials"
    ]
    if budget.epochs is not None:
        parts.append(f"{now.spent.epochs} of {budget.epochs} epochs")
    if budget.hours is not None:
        parts.append(f"{now.spent.hours:.2g} of {budget.hours:g} hours")
    parts.append(f"{now.counts['PRUNED']} pruned")
    if now.paused:
        parts.append(f"{len(now.paused)} waiting at a rung")
    if now.spent.failed:
        parts.append(f"{now.spent.failed} failed")
    if now.best is not None:
        parts.append(f"best F1 {now.best.user_attrs['best_f1']:.2f} (trial {now.best.number})")
    if now.seconds_left is not None:
        parts.append(f"about {_clock(now.seconds_left)} left")
    return ", ".join(parts)


def describe_trial(joined: JoinedStudy, trial: FrozenTrial) -> str:
    """Return one line on a trial that has ended."""
    parameters = joined.space.parameters_of(trial.params)
    attributes = trial.user_attrs
    what = f"trial {trial.number} ({parameters.start}, learning rate {parameters.learning_rate:.2g}"
    what += f", {len(epoch_records(trial))} of {parameters.epochs} epochs)"
    if trial.state is TrialState.FAIL:
        own = lineages(joined.optuna_study.get_trials(deepcopy=False))[lineage_number(trial)]
        again = "; queued again" if own[-1].number > trial.number or is_retried(own) else ""
        cause = attributes.get(CAUSE, Cause.WORKER_DIED)
        return f"{what} failed ({cause}): {attributes.get('error', 'its worker ended')}{again}"
    how = attributes.get("stop_reason")
    ended = f"pruned, {how}" if how else "complete"
    if attributes.get("best_f1") is None:
        return f"{what} {ended}, no epoch could be measured"
    peak = attributes.get(PEAK_MEMORY)
    return (
        f"{what} {ended}: best F1 {attributes['best_f1']:.2f} in epoch {attributes['best_epoch']}, "
        f"{attributes['train_seconds']:.0f} s"
    ) + ("" if peak is None else f", {peak:,.0f} MiB at most")


def _clock(seconds: float) -> str:
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:")
