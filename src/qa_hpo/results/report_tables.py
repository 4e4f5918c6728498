"""The tables of a report: text for people, and in the leaderboard the exact values behind it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qa_hpo.results.leaderboard import COLUMNS, Row, forgets_too_much, searched_columns
from qa_hpo.results.pareto import front
from qa_hpo.results.report_data import Report, Spending
from qa_hpo.results.report_words import start_in_words

__all__ = [
    "Cell",
    "Column",
    "Line",
    "Table",
    "failures",
    "leaders",
    "on_the_front",
    "origin",
    "starts",
    "time",
]

_NONE = "–"


@dataclass(frozen=True)
class Column:
    """A column: its heading, whether it holds words rather than numbers, and what of a trial."""

    heading: str
    words: bool = False
    field: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the value behind it as JSON has it."""

    text: str
    value: Any = None


@dataclass(frozen=True)
class Line:
    """A line; in the leaderboard with a trial's number, and what else the trial is."""

    cells: Sequence[Cell]
    trial: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    columns: Sequence[Column]
    lines: Sequence[Line]


def leaders(report: Report) -> Table:
    """Return the leaderboard, with the exact values as ``qa-hpo leaderboard --json`` has them."""
    searched = searched_columns(report.file)
    words = {"start", "scheduler", "retention.method"}
    several = any(row.seeds_f1 is not None for row in report.board.trials)
    old_task = report.file.evaluation.old_task is not None
    columns = [
        Column("trial", field="number"),
        Column("ended", words=True, field="ended"),
        *(Column(COLUMNS[name], name in words, f"params.{name}") for name in searched),
        Column("epoch", field="best_epoch"),
        *([Column("mean of seeds", field="seeds_f1")] if several else []),
        Column("best F1", field="best_f1"),
        Column("95% interval", field="best_f1_interval"),
        Column("cross-fit", field="crossfit_f1"),
        Column("F1 at 0", field="f1"),
        Column("threshold", field="threshold"),
        *([Column("P(best)", field="probability_best")] if report.sure else []),
        *([Column("old-task F1", field="old_task_f1")] if old_task else []),
        *([Column("forgotten", field="old_task_drop")] if old_task else []),
        Column("validation loss per epoch", words=True, field="val_loss"),
    ]
    return Table(
        "Leaderboard", columns, [_line(report, row, columns) for row in report.board.trials]
    )


def on_the_front(report: Report) -> Table:
    """Return the trials of which none other is better in best F1 and old-task F1."""
    most = report.file.constraints.max_forgetting
    columns = [
        Column("trial", field="number"),
        Column("best F1", field="best_f1"),
        Column("old-task F1", field="old_task_f1"),
        Column("forgotten", field="old_task_drop"),
        *([Column("allowed", words=True, field="allowed")] if most is not None else []),
        Column("start", words=True, field="params.start"),
        Column("learning rate", field="params.learning_rate"),
        Column("ended", words=True, field="ended"),
    ]
    lines = [_line(report, row, columns) for row in front(report.measured)]
    return Table("Best F1 and old-task F1", columns, lines)


def _line(report: Report, row: Row, columns: Iterable[Column]) -> Line:
    values = json.loads(row.model_dump_json())
    values["ended"] = [row.state, row.stop_reason]
    too_much = forgets_too_much(row, report.file.constraints.max_forgetting)
    values["allowed"] = "no: it forgets too much" if too_much else "yes"
    if report.sure is not None:
        values["probability_best"] = report.sure.probability_best.get(row.number)
    marks = [
        what
        for what, other in (("winner", report.board.winner), ("baseline", report.board.baseline))
        if other is not None and other.number == row.number
    ]
    cells = [_cell(row, column.field, values) for column in columns]
    return Line(cells, row.number, ", ".join(marks))


def _cell(row: Row, field: str, values: dict[str, Any]) -> Cell:
    section, _, name = field.partition(".")
    # A strength is there where the method has one.
    value = values["params"].get(name) if name else values[section]
    return Cell(_shown(row, field, value), value)


def _shown(row: Row, field: str, value: Any) -> str:
    if field == "ended":
        return row.state + (f", {row.stop_reason}" if row.stop_reason else "")
    if field == "best_epoch":
        return f"{value or _NONE} of {row.params['epochs']}"
    if field == "val_loss":
        return " ".join(_NONE if loss is None else f"{loss:.3f}" for loss in value)
    if value is None:
        return _NONE
    if field == "best_f1_interval":
        return f"{value[0]:.2f} to {value[1]:.2f}"
    digits = ".2g" if field.startswith("params.") else ".2f"
    text = f"{value:{digits}}" if isinstance(value, float) else str(value)
    return f"{text} ({row.seeds})" if field == "seeds_f1" else text


def time(report: Report) -> Table:
    """Return where the training time went, by start, with a last line for all of it."""
    columns = [
        Column("start", words=True),
        *(Column(heading) for heading in ("trials", "epochs", "minutes", "share")),
        *(Column(heading) for heading in ("evaluation", "stopped early")),
    ]
    whole = sum(spending.seconds for spending in report.spending)
    lines = [_time(spending, whole) for spending in report.spending]
    if len(lines) > 1:
        lines.append(_time(_sum("all", report.spending), whole))
    return Table("Training time", columns, lines)


def _sum(name: str, parts: Sequence[Spending]) -> Spending:
    return Spending(
        start=name,
        trials=sum(part.trials for part in parts),
        epochs=sum(part.epochs for part in parts),
        seconds=sum(part.seconds for part in parts),
        evaluation=sum(part.evaluation for part in parts),
        stopped=sum(part.stopped for part in parts),
    )


def _time(spending: Spending, whole: float) -> Line:
    own = spending.seconds
    numbers = [
        f"{spending.trials}",
        f"{spending.epochs}",
        f"{own / 60:,.1f}",
        f"{own / (whole or 1):.0%}",
        f"{spending.evaluation / (own or 1):.0%}",
        f"{spending.stopped / (own or 1):.0%}",
    ]
    return Line([Cell(spending.start), *map(Cell, numbers)])


def starts(report: Report) -> Table:
    """Return what the starts are."""
    prints = report.origin.fingerprints
    return _words(
        "Starts",
        ["start", "what it is", "fingerprint"],
        [
            [name, start_in_words(report, name), _fingerprint(prints.get(f"starts.{name}"))]
            for name in report.file.starts
        ],
    )


def origin(report: Report) -> Table:
    """Return on what data, with what and when the study ran."""
    data, known = report.file.data, report.origin
    questions = [] if known.questions is None else [f"{known.questions:,} questions"]
    if known.unanswerable is not None:
        questions.append(f"{known.unanswerable:,} of them unanswerable")
    if known.articles is not None:
        questions.append(f"{known.articles:,} articles")
    limit = [] if data.train_limit is None else [f"at most {data.train_limit:,} questions"]
    train = _of_print("data.train", known.fingerprints)
    validation = _of_print("data.validation", known.fingerprints)
    commits = [f"{name} at {commit[:10]}" for name, commit in known.commits.items()]
    rows = [
        ["training data", "; ".join([data.train, *limit, *train])],
        ["validation data", "; ".join([data.validation, *questions, *validation])],
        *([] if data.test is None else [["test data", data.test]]),
        *([["from the hub", "; ".join(commits)]] if commits else []),
        ["first trial began", _when(known.begun)],
        ["last trial ended", _when(known.ended)],
        ["workers", f"{known.workers}"],
        ["budget", _budget(report)],
        ["failed trials", f"{len(known.failures) or 'none'}"],
        ["failures tried again", f"{known.retried or 'none'}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in known.versions.items())],
    ]
    return _words("Data and versions", ["", ""], rows)


def failures(report: Report) -> Table:
    """Return the trials that failed for good."""
    rows = [
        [f"{failure.number}", failure.start, failure.cause, failure.error]
        for failure in report.origin.failures
    ]
    return _words("Failed trials", ["trial", "start", "cause", "error"], rows)


def _budget(report: Report) -> str:
    budget, spent = report.file.budget, report.origin.spent
    parts = []
    if budget.trials is not None:
        parts.append(f"{spent.trials} of {budget.trials} trials")
    if budget.epochs is not None:
        parts.append(f"{spent.epochs} of {budget.epochs} epochs")
    if budget.hours is not None:
        parts.append(f"{budget.hours:g} hours")
    return ", ".join(parts)


def _of_print(key: str, known: Any) -> list[str]:
    return [f"fingerprint {_fingerprint(known[key])}"] if key in known else []


def _fingerprint(whole: str | None) -> str:
    return _NONE if whole is None else whole[:16]


def _when(moment: datetime | None) -> str:
    return _NONE if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _words(name: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    columns = [Column(heading, words=True) for heading in headings]
    return Table(name, columns, [Line([Cell(text) for text in row]) for row in rows])
