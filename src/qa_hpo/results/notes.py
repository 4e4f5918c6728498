"""What a study and its trials tell about themselves, in Markdown for the dashboard's notes.

The dashboard renders GitHub's Markdown, tables included. Names come from outside, and are escaped.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import Budget, Dimension, Recipe
from qa_hpo.results.leaderboard import Leaderboard, Row, best_of_starts, competes
from qa_hpo.results.note_forgetting import bound, objectives, old_task, pareto_front
from qa_hpo.results.note_words import NONE, escaped, table, trial_link, two_digits
from qa_hpo.search.budget import Spent, spent
from qa_hpo.search.failures import Cause, is_retried, lineages
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.promotion import Ladder
from qa_hpo.search.pruning import STOP_REASONS, is_control
from qa_hpo.search.trials import (
    BASELINE,
    CAUSE,
    ERROR,
    LOOKS,
    REPEAT_OF,
    STOP_REASON,
    WORKER,
    configuration_number,
    epoch_records,
    kept,
    lineage_number,
)

__all__ = ["study_note", "trial_note"]

_LEADING = 5


def study_note(joined: JoinedStudy, board: Leaderboard) -> str:
    """Return the note of a study: how it stands, what it searches, and how to read its pages."""
    trials = joined.optuna_study.get_trials(deepcopy=False)
    parts = [f"# {escaped(board.study)}", *_standing(joined, board)]
    used = spent(joined.optuna_study, trials=trials, ladder=Ladder.of(joined.file, trials))
    parts += ["## Progress", _progress(trials, used, joined)]
    leading = [row for row in board.trials if competes(row)]
    if leading:
        parts += ["## Leading trials", _leading_table(joined, leading[:_LEADING])]
        parts += pareto_front(joined, leading)
        parts += ["## The best trial of each start", _start_table(joined, leading)]
    if board.winner is not None:
        heading = f"## Configuration of trial {board.winner.number}"
        parts += [heading, _parameters(board.winner.params)]
    parts += ["## What is searched", _search(joined)]
    parts += ["## How to read these pages", _reading(joined)]
    return "\n\n".join(parts) + "\n"


def trial_note(joined: JoinedStudy, trial: FrozenTrial) -> str:
    """Return the note of a trial: why it ended, its configuration and its epochs."""
    parts = [_ending(joined, trial), *_origin(joined, trial)]
    attributes = trial.user_attrs
    if attributes.get("best_f1") is not None and trial.state is not TrialState.FAIL:
        rows = _scores(
            attributes.get("threshold"),
            attributes["best_f1"],
            attributes.get("best_f1_interval"),
            attributes.get("crossfit_f1"),
            attributes.get("f1"),
        )
        rows += old_task(attributes.get("old_task_f1"), attributes.get("old_task_drop"))
        parts.append(table(["", "F1 (%)"], rows))
    records = epoch_records(trial)
    if records:
        parts += ["## Epochs", _epochs(records, attributes.get("best_epoch"))]
    parameters = joined.space.parameters_of(trial.params)
    parts += ["## Configuration", _parameters(parameters.flat())]
    if trial.state is not TrialState.FAIL:
        parts += ["## Checkpoint", _checkpoint(joined, trial, parameters.start)]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------- a study


def _standing(joined: JoinedStudy, board: Leaderboard) -> list[str]:
    winner, baseline = board.winner, board.baseline
    if winner is None or winner.best_f1 is None:
        return ["No trial has been measured yet."]
    text = f"**{trial_link(joined, winner.number, 'Trial')} leads with F1 {winner.best_f1:.2f}%**"
    text += f", from the start {escaped(winner.params['start'])}"
    text += f", in epoch {_epoch(winner)}."
    if baseline is None or baseline.best_f1 is None:
        text += " No baseline has been measured."
    elif baseline.number == winner.number:
        text += " It is the baseline."
    else:
        gain = winner.best_f1 - baseline.best_f1
        text += f" The baseline, {trial_link(joined, baseline.number)}, has "
        text += f"{baseline.best_f1:.2f}%: "
        text += f"the difference is {gain:+.2f} points."
    rows = _scores(
        winner.threshold, winner.best_f1, winner.best_f1_interval, winner.crossfit_f1, winner.f1
    )
    if winner.seeds_f1 is not None:
        deviation = "" if winner.seeds_f1_sd is None else f" ± {winner.seeds_f1_sd:.2f}"
        rows.append([f"mean of {winner.seeds} seeds", f"{winner.seeds_f1:.2f}{deviation}"])
    rows += old_task(winner.old_task_f1, winner.old_task_drop)
    return [text, *bound(joined, winner), table(["", "F1 (%)"], rows)]


def _scores(
    threshold: float | None,
    best: float,
    interval: Sequence[float] | None,
    crossfit: float | None,
    at_zero: float | None,
) -> list[list[str]]:
    tuned = "" if threshold is None else f", {threshold:.2f} logits"
    rows = [[f"at the tuned threshold{tuned}", f"**{best:.2f}**"]]
    if interval is not None:
        rows.append(["95% interval of it", f"{interval[0]:.2f} to {interval[1]:.2f}"])
    if crossfit is not None:
        rows.append(["with the threshold tuned on other articles (cross-fit)", f"{crossfit:.2f}"])
    if at_zero is not None:
        rows.append(["at threshold 0", f"{at_zero:.2f}"])
    return rows


def _progress(trials: Sequence[FrozenTrial], used: Spent, joined: JoinedStudy) -> str:
    states = Counter(trial.state for trial in trials)
    stopped = Counter(
        trial.user_attrs.get(STOP_REASON) for trial in trials if trial.state is TrialState.PRUNED
    )
    reasons = ", ".join(f"{stopped[reason]} {reason}" for reason in STOP_REASONS if stopped[reason])
    text = f"{used.trials} trials have finished: {states[TrialState.COMPLETE]} complete and "
    text += f"{states[TrialState.PRUNED]} pruned" + (f" ({reasons})" if reasons else "") + ". "
    text += f"Failed: {used.failed}, running: {used.running}, waiting: {used.waiting}"
    text += f", at a rung: {used.paused}.\n\n" if used.paused else ".\n\n"
    return text + f"Spent of the budget: {_spent(used, joined.file.budget)}."


def _spent(used: Spent, budget: Budget) -> str:
    shares = [
        (f"{used.trials}", budget.trials, "trials"),
        (f"{used.epochs}", budget.epochs, "epochs"),
        (f"{used.hours:.2f}", budget.hours, "hours"),
    ]
    return ", ".join(f"{have} of {limit:g} {what}" for have, limit, what in shares if limit)


def _leading_table(joined: JoinedStudy, rows: Sequence[Row]) -> str:
    several = any(row.seeds_f1 is not None for row in rows)
    heads = ["trial", "start", "learning rate", "epoch", *(["mean of seeds"] if several else [])]
    return table(
        [*heads, "F1 (%)", "threshold", "cross-fit F1", "ended"],
        [
            [
                trial_link(joined, row.number),
                escaped(row.params["start"]),
                _value(row.params["learning_rate"]),
                _epoch(row),
                *([_mean(row)] if several else []),
                two_digits(row.best_f1),
                two_digits(row.threshold),
                two_digits(row.crossfit_f1),
                row.state if row.stop_reason is None else f"{row.state}, {row.stop_reason}",
            ]
            for row in rows
        ],
    )


def _start_table(joined: JoinedStudy, rows: Sequence[Row]) -> str:
    lines = []
    found = best_of_starts(rows)
    for start in joined.file.starts:
        best = found.get(start)
        if best is None:
            lines.append([escaped(start), "0", NONE, NONE, NONE])
            continue
        own = [row for row in rows if row.params["start"] == start]
        ends = best.best_f1_interval
        between = NONE if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
        link = trial_link(joined, best.number)
        lines.append([escaped(start), str(len(own)), link, two_digits(best.best_f1), between])
    return table(["start", "trials", "best", "F1 (%)", "95% interval"], lines)


def _search(joined: JoinedStudy) -> str:
    file = joined.file
    lines = [f"- {_words(name)}: {_range(file.search[name])}" for name in file.search]
    lines += [f"- start {escaped(name)}: {_start(joined, name)}" for name in file.starts]
    lines.append(f"- trained on {escaped(file.data.train)}")
    lines.append(f"- judged by {escaped(file.data.validation)}")
    return "\n".join(lines)


def _range(dimension: Dimension) -> str:
    low, high = dimension.low, dimension.high
    if dimension.value is not None:
        text = f"{_value(dimension.value)}, fixed"
    elif low is None or high is None:
        text = _any_of(dimension.choices or [])
    else:
        text = f"from {_value(low)} to {_value(high)}"
        text += ", on a logarithmic scale" if dimension.log else ""
        text += "" if dimension.step is None else f", in steps of {_value(dimension.step)}"
    conditions = [
        f"{_words(name)} is {_any_of(allowed if isinstance(allowed, list) else [allowed])}"
        for name, allowed in (dimension.when or {}).items()
    ]
    return text + (f"; only where {' and '.join(conditions)}" if conditions else "")


def _any_of(values: Sequence[Any]) -> str:
    words = [_value(value) for value in values]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _reading(joined: JoinedStudy) -> str:
    pruning = joined.file.pruning
    times = "an epoch" if pruning.patience == 1 else f"{pruning.patience} epochs in a row"
    delta = f"more than {pruning.min_delta:g} " if pruning.min_delta else ""
    return "\n".join(
        [
            *objectives(joined),
            "- **COMPLETE** trials trained all their epochs.",
            "- **PRUNED** trials were stopped early: as *overfitting* (for "
            f"{times}, the validation loss was {delta}above its best), *hopeless* beside other "
            "trials, *diverged*, or at the end of the *budget*. The user attribute `stop_reason` "
            "says which.",
            "- Pruned trials **compete** with their best epoch. The dashboard's own best trial is "
            "the best of the complete ones, and with two objectives its own front is of those; the "
            "winner may be a pruned one.",
            "- **FAIL**: there is no result. What may pass is tried again, as another trial.",
        ]
    )


# ---------------------------------------------------------------------------- a trial


def _ending(joined: JoinedStudy, trial: FrozenTrial) -> str:
    done, epochs = len(epoch_records(trial)), joined.space.parameters_of(trial.params).epochs
    if trial.state is TrialState.COMPLETE:
        return f"**Complete**: it trained all its epochs, {done} of {epochs}."
    if trial.state is TrialState.PRUNED:
        reason = trial.user_attrs.get(STOP_REASON)
        why = _why(joined, trial, reason)
        where = f"within epoch {done + 1}" if LOOKS in trial.user_attrs else f"after epoch {done}"
        return (
            f"**Stopped {where} of {epochs}**: {why} It competes with its best epoch all the same."
        )
    if trial.state is TrialState.FAIL:
        cause = trial.user_attrs.get(CAUSE, Cause.WORKER_DIED)
        error = trial.user_attrs.get(ERROR, "its worker ended")
        text = f"**Failed after {done} of {epochs} epochs** ({escaped(cause)}): {escaped(error)}"
        return f"{text}\n\n{_again(joined, trial)}"
    return f"Not finished: {done} of {epochs} epochs so far."


def _why(joined: JoinedStudy, trial: FrozenTrial, reason: str | None) -> str:
    pruning = joined.file.pruning
    losses = _losses(trial)
    finite = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    last = list(losses.values())[-1] if losses else None
    now = "not a finite number" if last is None else f"{last:.3f}"
    if reason == "overfitting":
        times = "" if pruning.patience == 1 else f" for {pruning.patience} epochs in a row"
        delta = f"more than {pruning.min_delta:g} " if pruning.min_delta else ""
        text = f"it was overfitting. Its validation loss was {delta}above its best{times}"
        best = min(finite, key=lambda epoch: finite[epoch], default=None)
        where = f"in epoch {best}" if isinstance(best, int) else f"after {best or 0:.2f} epochs"
        return text + (f": {finite[best]:.3f} {where}, {now} now." if best else ".")
    if reason == "hopeless" and pruning.across == "promote":
        done = f"{len(losses)} epoch{'' if len(losses) == 1 else 's'}"
        return f"it was hopeless. Too many other trials were ahead of it after {done}."
    if reason == "hopeless":
        rival = "Hyperband prefers others"
        if pruning.across == "median":
            rival = "the median of the trials with as many epochs is better"
        return f"it was hopeless. Its validation loss is {now} at last, and {rival}."
    if reason == "diverged":
        guess = math.log(joined.file.data.max_length)
        return f"it diverged. Its validation loss is {now}; that of mere guessing is {guess:.3f}."
    if reason == "budget":
        return "the study's budget was spent."
    return "there is no reason on record."


def _losses(trial: FrozenTrial) -> dict[float, float | None]:
    """Return a trial's losses in their order, by epoch, and by position where it was looked."""
    losses: dict[float, float | None] = {}
    for record in epoch_records(trial):
        losses |= dict(record.get("looks", ())) | {record["epoch"]: record.get("val_loss")}
    return losses | dict(trial.user_attrs.get(LOOKS, ()))


def _again(joined: JoinedStudy, trial: FrozenTrial) -> str:
    own = lineages(joined.optuna_study.get_trials(deepcopy=False))[lineage_number(trial)]
    later = [other.number for other in own if other.number > trial.number]
    if later:
        return f"It was tried again as {trial_link(joined, later[0])}."
    return "It is tried again." if is_retried(own) else "It is not tried again."


def _origin(joined: JoinedStudy, trial: FrozenTrial) -> list[str]:
    attributes, study = trial.user_attrs, joined.file.study
    lines = []
    if BASELINE in attributes:
        lines.append(f"It runs the baseline {escaped(attributes[BASELINE])}.")
    if REPEAT_OF in attributes:
        first = trial_link(joined, attributes[REPEAT_OF])
        lines.append(f"It runs the configuration of {first} with another seed.")
    if lineage_number(trial) != trial.number:
        first = trial_link(joined, lineage_number(trial))
        lines.append(f"It is a retry of {first}, and went on after its last finished epoch.")
    if is_control(study.seed, configuration_number(trial), joined.file.pruning.control_fraction):
        lines.append("It is a control: it is not stopped for its losses.")
    if WORKER in attributes:
        lines.append(f"Worker: {escaped(attributes[WORKER])}.")
    return [" ".join(lines)] if lines else []


def _epochs(records: Sequence[dict[str, Any]], best: int | None) -> str:
    lines = []
    for record in records:
        epoch = record["epoch"]
        lines.append(
            [
                f"**{epoch}**, the best" if epoch == best else str(epoch),
                _loss(record, "train_loss"),
                _loss(record, "val_loss"),
                two_digits(record.get("f1")),
                two_digits(record.get("best_f1")),
                two_digits(record.get("best_f1_thresh")),
                NONE if record.get("seconds") is None else f"{record['seconds']:.1f}",
            ]
        )
    heads = ["epoch", "training loss", "validation loss", "F1 at 0 (%)", "best F1 (%)"]
    return table([*heads, "threshold (logits)", "seconds"], lines)


def _loss(record: dict[str, Any], name: str) -> str:
    if name not in record:
        return NONE
    return "not finite" if record[name] is None else f"{record[name]:.3f}"


def _checkpoint(joined: JoinedStudy, trial: FrozenTrial, start: str) -> str:
    what = kept(trial)
    if what is None:
        return "There is none: it finished no epoch."
    measured = joined.file.evaluation.old_task is not None
    or_on_front = ", or none other is better on both tasks" if measured else ""
    return (
        f"The weights after epoch {what.checkpoint_epoch}, fine-tuned from {escaped(start)}: "
        f"{_start(joined, start)}. They are kept while the trial is among the leading "
        f"{joined.file.artifacts.keep}{or_on_front}; `qa-hpo export study.toml OUT --trial "
        f"{trial.number}` writes them to a folder."
    )


# ---------------------------------------------------------------------------- words


def _start(joined: JoinedStudy, name: str) -> str:
    start = joined.file.starts[name]
    if isinstance(start, Recipe):
        return f"{escaped(start.from_)}, trained on {escaped(start.train)}"
    return f"the checkpoint {escaped(start)}"


def _parameters(params: dict[str, Any]) -> str:
    rows = [[_words(name), _value(value)] for name, value in params.items()]
    return table(["parameter", "value"], sorted(rows, key=lambda row: row[0] != "start"))


def _epoch(row: Row) -> str:
    return f"{row.best_epoch or NONE} of {row.params['epochs']}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return "the start's own"
    return f"{value:.4g}" if isinstance(value, float) else escaped(value)


def _mean(row: Row) -> str:
    return NONE if row.seeds_f1 is None else f"{row.seeds_f1:.2f} ({row.seeds})"
