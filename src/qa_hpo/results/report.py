"""One page on what a study found: HTML that needs no network, or Markdown."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from qa_hpo import __version__
from qa_hpo.config import to_toml
from qa_hpo.errors import InputError
from qa_hpo.legible import mask
from qa_hpo.paths import write_text
from qa_hpo.results import report_tables as tables
from qa_hpo.results.pareto import trade_off
from qa_hpo.results.plots import (
    f1_by_start,
    f1_by_threshold,
    history,
    importances,
    loss_curves,
    time_by_reason,
)
from qa_hpo.results.report_data import Report, study_report
from qa_hpo.results.report_forgetting import on_the_front
from qa_hpo.results.report_words import answer, standing

__all__ = ["Report", "check_place", "study_report", "to_html", "to_markdown", "write_report"]

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}
_MARKS = {"html": '<meta name="generator" content="qa-hpo report">', "md": "<!-- qa-hpo report -->"}
_MARKED_BYTES = 1000  # a report has its mark within these

_TERMS = (
    "A trial is one fine-tuning run, and a start is the checkpoint that it begins with. Every "
    "epoch is measured on all validation questions with the official SQuAD F1; a trial counts "
    "with its best epoch, at the no-answer threshold that is best on these questions. Pruned "
    "trials were stopped early, and compete with what they had reached."
)
_DIFFERENCES = (
    "Differences are paired by question, and their intervals are of a bootstrap by articles "
    "(contexts, where the corpus names no articles). They do not allow for the trials' "
    "having been chosen for their F1; the probability to be the best does."
)
_COLUMNS = (
    "F1 is in percent. Epoch: the best one, of those planned. Best F1: at the tuned threshold, "
    "above which the score of no answer, less that of the best span (logits), means no answer. "
    "Cross-fit: the threshold tuned on one half of the articles and used on the other. P(best): "
    "the probability that the trial is truly the best of those compared."
)
_TIME = (
    "Training time of the trials, evaluation included. What it took to build starts and to load "
    "data is not in it."
)
# Draws the plots; the page's policy lets this script and plotly.js run, and no other.
_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
// Where nothing hovers, the buttons would always be there, and in the way.
const buttons = matchMedia("(hover: hover)").matches ? "hover" : false;
const settings = {responsive: true, displaylogo: false, displayModeBar: buttons};
for (const [name, figure] of Object.entries(figures)) {
  Plotly.newPlot(name, figure.data, figure.layout, settings);
}
"""


@dataclass(frozen=True)
class _Plot:
    """A plot, and what it is for."""

    name: str
    figure: Figure
    caption: str


def write_report(
    report: Report, path: Path, *, form: str | None = None, force: bool = False
) -> None:
    """Write a report to a file, whole or not at all.

    Args:
        report: What it tells.
        path: The file. A report that is there is replaced.
        form: ``html`` or ``md``; told by the file's name if left out.
        force: Replace another file, too.

    Raises:
        InputError: The file is something else, or cannot be written, or its name tells no form.
    """
    form = check_place(path, form, force=force)
    try:
        write_text(path, to_html(report) if form == "html" else to_markdown(report))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def check_place(path: Path, form: str | None = None, *, force: bool = False) -> str:
    """Return the form of the report that is to be written to a file, ``html`` or ``md``.

    Raises:
        InputError: As :func:`write_report` does.
    """
    if form is None:
        form = _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{path}: ends in neither .html nor .md; give --format html or md")
    if form not in _MARKS:
        raise InputError(f"--format {form}: must be html or md")
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder")
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir():
            raise InputError(f"{path}: cannot be written: {above.name} is no folder")
        if path.exists() and not force and not _is_report(path):
            raise InputError(f"{path}: exists and is no report; choose another name, or --force")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return form


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_MARKED_BYTES)
    return any(mark.encode() in head for mark in _MARKS.values())


# ---------------------------------------------------------------------------- HTML


def to_html(report: Report) -> str:
    """Return the report as one page of HTML, with its plots and all that draws them."""
    plots = [plot for plot in _plots(report) if plot.figure.data]
    front = _front_plot(report)
    drawn = [*plots, *([] if front is None else [front])]
    library = get_plotlyjs()
    page = _template().render(
        generator=Markup(_MARKS["html"]),
        version=__version__,
        policy=_policy(library, _SCRIPT) if drawn else _policy(),
        library=Markup(library),
        script=Markup(_SCRIPT),
        plots=plots,
        figures={plot.name: json.loads(plot.figure.to_json()) for plot in drawn},
        front_words=on_the_front(report),
        front_plot=front,
        front=tables.on_the_front(report),
        study=report.board.study,
        standing=standing(report),
        terms=_TERMS,
        paragraphs=answer(report),
        differences=_DIFFERENCES if report.sure else "",
        leaders=tables.leaders(report),
        columns=_COLUMNS,
        time=tables.time(report),
        time_note=_TIME,
        facts=[tables.origin(report), tables.starts(report), tables.failures(report)],
        toml=_study_file(report),
    )
    return _encodable(page)


def _plots(report: Report) -> Iterator[_Plot]:
    board = report.board
    yield _Plot(
        "losses",
        loss_curves(board.trials),
        "Where a line rises, more training made the model's loss worse, though not always its F1.",
    )
    yield _Plot(
        "starts",
        f1_by_start(board.trials, baseline=board.baseline),
        "How far starts lie apart, beside how far the trials of one start do.",
    )
    yield _Plot(
        "thresholds",
        f1_by_threshold({f"trial {number}": own for number, own in report.answers.items()}),
        "A flat top means that the exact threshold matters little.",
    )
    yield _Plot(
        "history",
        history(board.trials, baseline=board.baseline),
        "Whether the search still found better trials at its end.",
    )
    if report.importance:
        yield _Plot(
            "importances",
            importances(report.importance),
            "Which parameters tell the best trials from the others; of few trials, only a hint.",
        )
    yield _Plot(
        "time",
        time_by_reason(board.trials),
        "What the trials cost, those that were stopped early beside the others.",
    )


def _front_plot(report: Report) -> _Plot | None:
    """Return the plot of best F1 and old-task F1; None where no old task was measured."""
    drawn = trade_off(report.board.trials, most=report.file.constraints.max_forgetting)
    caption = "What a higher F1 on the new task costs of the old one."
    return _Plot("front", drawn, caption) if drawn.data else None


def _policy(*scripts: str) -> str:
    """Return a content security policy: no network, and no other scripts than these."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("qa_hpo.results").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


# ---------------------------------------------------------------------------- Markdown


def to_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown: the same words and tables, without plots."""
    parts = [_MARKS["md"], f"# {_escaped(report.board.study)}", _escaped(standing(report))]
    parts.append(_escaped(_TERMS))
    parts += [f"**{_escaped(part.title)}** {_escaped(part.text)}" for part in answer(report)]
    parts += [_escaped(_DIFFERENCES)] if report.sure else []
    if on_the_front(report):
        parts += ["## Best F1 and old-task F1", _escaped(on_the_front(report))]
        parts.append(_table(tables.on_the_front(report)))
    parts += ["## Leaderboard", _table(tables.leaders(report)), _escaped(_COLUMNS)]
    if report.spending:
        parts += ["## Where the time went", _table(tables.time(report)), _escaped(_TIME)]
    parts.append("## Data and versions")
    parts.append(_table(tables.origin(report)))
    for table in (tables.starts(report), tables.failures(report)):
        parts += [f"### {table.name}", _table(table)] if table.lines else []
    parts += ["### Study file", _fenced(_study_file(report))]
    return _encodable("\n\n".join(parts) + "\n")


def _table(table: tables.Table) -> str:
    lines = [[_escaped(column.heading) for column in table.columns]]
    lines.append([":---" if column.words else "---:" for column in table.columns])
    for line in table.lines:
        first, *others = [_escaped(cell.text) for cell in line.cells]
        lines.append([f"**{first}** ({line.mark})" if line.mark else first, *others])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """Return text as Markdown that shows it as it is, on one line, without links."""
    plain = re.sub(r"([\\`*_{}\[\]<>|~&#!$@])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(:)(?=//)|(?<=www)(\.)", r"\\\1\2", plain, flags=re.IGNORECASE)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}toml\n{text.strip()}\n{fence}"


# ---------------------------------------------------------------------------- both


def _study_file(report: Report) -> str:
    return mask(to_toml(report.file))


def _encodable(text: str) -> str:
    """Return text without what UTF-8 has not: names of files may hold undecodable bytes."""
    return text.encode(errors="replace").decode()
