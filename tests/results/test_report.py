"""Reports: every number is the study's, every sentence true, and names are nothing but names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from optuna.trial import TrialState

from cli_helpers import Ended, run_cli
from qa_hpo.results.certainty import certainty
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.results.notes import study_note
from qa_hpo.results.plots import f1_by_start
from qa_hpo.results.report import study_report, to_html, to_markdown
from qa_hpo.results.report_words import answer, standing
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.trials import fail
from report_study import HOSTILE, ReportStudy, answers, full_study

ROUNDED = ("best_f1", "f1", "crossfit_f1", "threshold", "probability_best")


@dataclass
class Page(HTMLParser):
    """What a page consists of."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[int, dict[str, tuple[str, Any]]] = field(default_factory=dict)
    winners: list[int] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    row: int | None = None
    cell: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self.texts.setdefault(tag, []).append("")
        if tag not in {"meta", "img", "br", "link"}:
            self.within.append(tag)
        if tag == "tr":
            number = given.get("data-trial")
            self.row = None if number is None else int(number)
            if self.row is not None:
                self.rows[self.row] = {}
                self.winners += [self.row] if given.get("class") == "winner" else []
        if tag == "td" and self.row is not None:
            value = json.loads(given["data-value"] or "", parse_constant=pytest.fail)
            self.rows[self.row][given["data-field"] or ""] = ("", value)
            self.cell = (given["data-field"] or "", value)

    def handle_endtag(self, tag: str) -> None:
        assert self.within.pop() == tag
        self.cell = None if tag == "td" else self.cell

    def handle_data(self, data: str) -> None:
        if self.within:
            self.texts[self.within[-1]][-1] += data
        if self.cell is not None and self.row is not None and self.within[-1] == "td":
            name, value = self.cell
            self.rows[self.row][name] = (self.rows[self.row][name][0] + data, value)

    @classmethod
    def of(cls, html: str) -> Page:
        page = cls()
        page.feed(html)
        page.close()
        assert page.within == []
        return page


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    opened = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportStudy]:
    """The study with everything in it and hostile names; no test changes it."""
    folder = tmp_path_factory.mktemp("full")
    opened = open_storage(f"sqlite:///{folder}/study.db", create=True)
    yield full_study(opened, folder / "artifacts", names=HOSTILE)
    opened.close()


@pytest.fixture(scope="module")
def html(full: ReportStudy) -> str:
    return to_html(study_report(full.joined))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page.of(html)


def words(joined: JoinedStudy) -> dict[str, str]:
    return {part.title: part.text for part in answer(study_report(joined))}


# ---------------------------------------------------------------------------- numbers


def test_every_number_of_the_leaderboard_is_that_of_its_json(full: ReportStudy, page: Page):
    board = json.loads(leaderboard(full.joined).to_json())
    assert list(page.rows) == [row["number"] for row in board["trials"]]
    assert page.winners == [board["winner"]["number"]] == [1]
    found = certainty(full.joined, leaderboard(full.joined))
    assert found is not None
    for row in board["trials"]:
        cells = {name: value for name, (_, value) in page.rows[row["number"]].items()}
        params = {name.partition(".")[2]: cells.pop(name) for name in [*cells] if "." in name}
        assert params == {name: row["params"][name] for name in params}
        assert set(params) == {"start", "learning_rate", "weight_decay", "dropout"}
        assert cells.pop("ended") == [row["state"], row["stop_reason"]]
        assert cells.pop("probability_best") == found.probability_best.get(row["number"])
        assert cells == {name: row[name] for name in cells}
        assert {*ROUNDED[:-1], "number", "best_epoch", "seeds_f1", "val_loss"} <= cells.keys()
    assert [page.rows[number]["probability_best"][1] for number in (4, 8)] == [None, None]


def test_what_is_shown_is_the_value_in_short(full: ReportStudy, page: Page):
    for row in leaderboard(full.joined).trials:
        shown = page.rows[row.number]
        for name in ROUNDED:
            text, value = shown[name]
            assert text == "–" if value is None else abs(float(text) - value) <= 0.005001
        for name in ("learning_rate", "weight_decay"):
            text, value = shown[f"params.{name}"]
            assert float(text) == pytest.approx(value, rel=0.05)
        assert shown["best_epoch"][0] == f"{row.best_epoch or '–'} of {row.params['epochs']}"
        losses = shown["val_loss"][0].split()
        assert losses == ["–" if loss is None else f"{loss:.3f}" for loss in row.val_loss]
        assert shown["params.dropout"][0] == "0.25"
    low, high = page.rows[1]["best_f1_interval"][1]
    assert page.rows[1]["best_f1_interval"][0] == f"{low:.2f} to {high:.2f}"
    assert page.rows[1]["number"][0] == "1"
    assert page.rows[2]["ended"][0] == "PRUNED, overfitting"
    assert page.rows[8]["ended"][0] == "FAIL, data"


def test_the_words_numbers_worked_out_from_the_answers(full: ReportStudy):
    said = words(full.joined)
    other = HOSTILE["script"]
    f1 = {number: 100 * float(own.f1.mean()) for number, own in full.answers.items()}
    own, base = full.answers[1], full.answers[0]
    mean, deviation = statistics.fmean([f1[1], f1[2]]), statistics.stdev([f1[1], f1[2]])
    assert said["The winner"] == (
        f"Trial 1 wins. The 2 runs of its configuration, with different seeds, have F1 {mean:.2f}% "
        f"on average, with a standard deviation of {deviation:.2f} points. Trial 1 fine-tunes the "
        f"start {other} (base trained on {HOSTILE['quotes']}) with learning rate 0.000123, epochs "
        f"4, weight decay 0.05. Its best epoch is 4 of 4: F1 {f1[1]:.2f}% at the no-answer "
        f"threshold {own.threshold:.2f}. It trained all its epochs (COMPLETE). Its checkpoint, of "
        "this single run, is what is exported, and what the interval, the probability to be the "
        "best and the comparison with the baseline are of."
    )
    at_zero = 100 * float(own.scores.at(0.0)[1].mean())
    assert said["Its F1"].startswith(f"At the threshold 0 it is {at_zero:.2f}%. With ")
    assert said["Other seeds"] == (
        "Means over seeds decide only when all finalists have run with all their seeds; until "
        "then, the highest F1 of a single run does."
    )
    gain = 100 * float(np.mean(own.f1 - base.f1))
    assert said["Against the baseline"].startswith(
        f"The baseline {HOSTILE['dollar']} (trial 0: start base, learning rate 5e-05, epochs 3, "
        f"weight decay 0.125) has F1 {f1[0]:.2f}%. The winner has {gain:+.2f} points (95% interval "
    )
    assert said["Against the baseline"].endswith("): the winner's checkpoint scores higher.")
    beside = 100 * float(np.mean(own.f1 - full.answers[5].f1))
    assert (
        f"base (5 trials, best F1 {f1[5]:.2f}%): {beside:+.2f} points"
        in (said["Does the start matter?"])
    )
    assert said["Does the start matter?"].startswith(f"The best trial from {other} (2 trials), ")
    assert f"The highest F1 of all trials is {max(f1.values()):.2f}%." in said["What choosing adds"]


def test_probabilities(full: ReportStudy):
    found = certainty(full.joined, leaderboard(full.joined))
    assert found is not None
    assert found.rescored is not None
    said = words(full.joined)
    own, alike = found.probability_best[1], found.probability_best[1] + found.probability_best[2]
    assert 0.02 < own < alike < 0.99, "else there is nothing to tell apart"
    assert said["Is it the best?"].startswith(
        f"Of 7 trials compared, trial 1 is truly the best with probability {own:.0%}; that it is "
        f"a run of its configuration, {alike:.0%}. Next is trial 2 with "
    )
    assert f"F1 is {found.rescored.honest:.2f}%. Where many" in said["What choosing adds"]


def test_what_pruning_saved_and_cost_by_hand(full: ReportStudy):
    """The pruned: 4 of 4 epochs less 3, less 2, and less 1. The controls: 0, 1, 5, 6 and 7."""
    assert words(full.joined)["What pruning saved and cost"] == (
        "3 trials of 9 ended early (2 overfitting, 1 diverged), which saved 6 of 25 epochs (24%). "
        "5 trials were controls, which are never pruned: pruning would have ended 1 of them early, "
        # Trial 0 after epoch 2 of 3, where it had 3 points less.
        "saved 1 of their 13 epochs, and cost 0.60 points of F1 on average; the best F1 among them "
        "would be the same."
    )


def test_where_the_time_went_and_what_it_ran_on(page: Page):
    cells = page.texts["td"]
    other = HOSTILE["script"]
    # An epoch takes a minute, of which evaluation takes six seconds; 4, 3 and 1 epochs from the
    # other start, of which 3 and 1 were of pruned trials, and 3, 2, 2, 2 and 2 from base.
    first = next(k for k in range(len(cells)) if cells[k : k + 2] == [other, "3"])
    assert cells[first : first + 7] == [other, "3", "8", "8.0", "42%", "10%", "50%"]
    assert cells[first + 7 : first + 14] == ["base", "5", "11", "11.0", "58%", "10%", "18%"]
    assert cells[first + 14 : first + 21] == ["all", "8", "19", "19.0", "100%", "10%", "32%"]
    (validation,) = [cell for cell in cells if cell.startswith(f"{HOSTILE['pipe']}; ")]
    unanswerable = int((~answers(0.5).scores.has_answer).sum())
    assert validation == (
        f"a|b; 240 questions; {unanswerable} of them unanswerable; 12 articles; fingerprint bbbb"
    )
    assert cells[cells.index("workers") + 1] == "2"
    assert cells[cells.index("budget") + 1] == "8 of 50 trials"


# ---------------------------------------------------------------------------- sentences


def test_nothing_yet(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    report = study_report(study.joined)
    assert standing(report) == (
        "0 trials. The search goes on: 0 running, 1 waiting. What follows may change."
    )
    assert words(study.joined) == {"The winner": "No trial has been measured yet."}
    page = Page.of(to_html(report))
    assert page.rows == {}
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "div"] == ["scroll", "scroll"]
    assert "script" not in page.texts
    assert "Leaderboard" not in page.texts["h2"]
    study.fail("data", "no such file")
    study.ask({"start": "base", "learning_rate": 1e-4, "epochs": 1})
    assert words(study.joined) == {
        "The winner": "No trial has been measured yet. 1 trial failed; the causes are below."
    }
    assert standing(study_report(study.joined)).startswith("1 trial: 1 failed. The search goes on")
    to_html(study_report(study.joined))


def test_without_answers_controls_and_most_scores(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    study.end([1.0, 0.9, 0.8], answers(0.5), keep=False)
    params = {"start": "v1", "learning_rate": 1e-4, "epochs": 2}
    study.end([1.0, 0.9], answers(0.9), params, keep=False)
    said = words(study.joined)
    f1 = [100 * float(answers(share).f1.mean()) for share in (0.5, 0.9)]
    lost = "what the winner answered is not kept"
    assert said["Is it the best?"] == f"How probable that is cannot be told: {lost}."
    assert said["Against the baseline"] == (
        "The baseline notebook (trial 0: start base, learning rate 5e-05, epochs 3) has F1 "
        f"{f1[0]:.2f}%. The winner has {f1[1] - f1[0]:+.2f} points; how sure that is, is not "
        f"known: {lost}."
    )
    assert said["Does the start matter?"] == (
        "The best trial from v1 (1 trial), beside the best from each other start: base (1 trial, "
        f"best F1 {f1[0]:.2f}%): how far they differ is not known, {lost}."
    )
    assert said["What pruning saved and cost"] == (
        "No trial was pruned. What it cost is not known: there are no controls (set "
        "pruning.control_fraction)."
    )
    assert "What choosing adds" not in said
    assert "Other seeds" not in said
    page = Page.of(to_html(study_report(study.joined)))
    assert "probability_best" not in page.rows[1]
    assert "seeds_f1" not in page.rows[1]


def test_one_article_and_no_control_that_has_ended(storage: StudyStorage, tmp_path: Path):
    pruning = {"across": "none", "control_fraction": 1e-9}
    study = ReportStudy(storage, tmp_path / "artifacts", pruning=pruning)
    study.end([1.0], answers(0.5, articles=1))
    said = words(study.joined)
    one = "the validation questions are of one article"
    assert said["Its F1"].endswith(f"There is no interval: {one}.")
    assert said["Is it the best?"] == f"How probable that is cannot be told: {one}."
    assert said["Against the baseline"] == (
        "The baseline notebook (trial 0) is the winner: the search found nothing better."
    )
    assert said["Does the start matter?"] == "No trial from v1 has been measured."
    assert said["What pruning saved and cost"] == (
        "No trial was pruned. What it cost is not known: no control, a trial that is never pruned, "
        "has ended."
    )


PARAMS = {"start": "base", "learning_rate": 1e-4, "epochs": 4}


def test_baselines_that_say_nothing(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    first = study.ask()
    study.end([1.0] * 4, answers(0.6), PARAMS)
    said = words(study.joined)
    assert said["Against the baseline"] == "The baseline has not been measured yet."
    assert said["Is it the best?"] == "No other trial can be compared with it."
    fail(study.joined, first.trial, "oom", "out of memory")
    assert words(study.joined)["Against the baseline"] == (
        "The baseline notebook (trial 0) failed: oom."
    )


def test_a_baseline_without_an_epoch_and_none_at_all(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    study.end([None], state=TrialState.PRUNED, stop_reason="diverged")
    study.end([1.0] * 4, answers(0.6), PARAMS)
    assert words(study.joined)["Against the baseline"] == (
        "The baseline notebook (trial 0) ended before an epoch could be measured."
    )
    single = {name: {"low": 1e-5, "high": 1e-3} for name in ("learning_rate",)}
    other = ReportStudy(
        storage, tmp_path / "artifacts", study={"name": "other"}, baseline=None,
        starts={"only": "some/base"}, search=single,
    )  # fmt: skip
    other.end([1.0, 0.5], answers(0.6), {"learning_rate": 1e-4})
    said = words(other.joined)
    assert said["Against the baseline"] == "The study has no baseline."
    assert said["Does the start matter?"] == "There is one start, only."


def test_the_winner_is_the_baseline_with_another_seed(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    study.end([1.0, 0.9, 0.8], answers(0.5))
    study.end(
        [1.0, 0.9, 0.8],
        answers(0.7),
        {"start": "base", "learning_rate": 5e-5, "epochs": 3},
        repeat_of=0,
    )
    f1 = 100 * float(answers(0.5).f1.mean())
    assert words(study.joined)["Against the baseline"] == (
        f"The baseline notebook (trial 0, F1 {f1:.2f}%) is the winner's configuration with another "
        "seed: the search found nothing better."
    )


def test_differences_that_are_none(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    study.end([1.0, 0.9, 0.8], answers(0.60, seed=5))
    study.end([1.0] * 4, answers(0.61, seed=6), {**PARAMS, "start": "v1"})
    said = words(study.joined)
    unsure = "which of them scores higher is not certain."
    assert said["Against the baseline"].endswith(f"): {unsure}")
    assert re.search(rf"\d\), {unsure}", said["Does the start matter?"])
    assert said["The winner"].startswith("Trial 1 wins. It fine-tunes the start v1 (")


def test_where_finals_decide_the_best_of_a_start_is_still_that_of_its_f1(
    storage: StudyStorage, tmp_path: Path
):
    sections = {"evaluation": {"seeds": 2, "finalists": 2}, "baseline": None}
    study = ReportStudy(storage, tmp_path / "artifacts", **sections)
    base, v1 = ({**PARAMS, "start": start} for start in ("base", "v1"))
    mean = {**v1, "learning_rate": 2e-4}
    lucky = study.end([1.0] * 4, answers(0.80, seed=1), v1)
    study.end([1.0] * 4, answers(0.75, seed=2), mean)
    study.end([1.0] * 4, answers(0.50, seed=3), base)
    study.end([1.0] * 4, answers(0.50, seed=4), v1, repeat_of=0)
    study.end([1.0] * 4, answers(0.76, seed=5), mean, repeat_of=1)
    report = study_report(study.joined)
    assert report.board.winner is not None
    assert (report.board.winner.params, report.board.winner.number) != (v1, lucky)
    assert report.board.winner.params["learning_rate"] == 2e-4
    said = {part.title: part.text for part in answer(report)}["Does the start matter?"]
    gain = 100 * float(np.mean(study.answers[lucky].f1 - study.answers[2].f1))
    assert said.startswith("The best trial from v1, trial 0 (4 trials), beside the best from each ")
    assert f"): {gain:+.2f} points (95% interval " in said
    assert "the best checkpoint from v1 scores higher." in said
    note = study_note(study.joined, report.board)
    assert "| v1 | 4 | [trial 0](" in note
    plot = json.loads(f1_by_start(report.board.trials).to_json())
    (best,) = [trace for trace in plot["data"] if trace["name"].startswith("best of its start")]
    assert sorted(best["customdata"]) == [lucky, 2]


def test_articles_may_be_contexts_is_said_once(full: ReportStudy, html: str):
    said = "(contexts, where the corpus names no articles)"
    assert html.count(said) == 1
    assert to_markdown(study_report(full.joined)).count(said) == 1


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (
            "overfitting",
            "its validation loss was more than 0.02 above its best for 2 epochs in a row",
        ),
        ("hopeless", "Hyperband preferred other trials"),
        ("diverged", "its validation loss was worse than that of guessing"),
        ("budget", "the study's budget was spent"),
    ],
)
def test_why_the_winner_ended(storage: StudyStorage, tmp_path: Path, reason: str, sentence: str):
    pruning = {"across": "hyperband", "patience": 2, "min_delta": 0.02}
    study = ReportStudy(storage, tmp_path / "artifacts", pruning=pruning, baseline=None)
    study.end([1.0, 2.0], answers(0.6), PARAMS, state=TrialState.PRUNED, stop_reason=reason)
    assert words(study.joined)["The winner"].endswith(
        f"It was stopped after epoch 2 (PRUNED, {reason}): {sentence}."
    )


def test_test_questions(storage: StudyStorage, tmp_path: Path):
    data = {"train": "train.json", "validation": "validation.json", "test": "test.json"}
    study = ReportStudy(storage, tmp_path / "artifacts", data=data)
    study.end([1.0, 0.9, 0.8], answers(0.5))
    assert words(study.joined)["On test questions"] == (
        "The winner has not been measured on test.json; qa-hpo export does that."
    )
    scores = {"f1": 61.234, "f1_interval": [58.0, 64.5], "total": 1234, "exact": 55.0}
    study.joined.optuna_study.set_user_attr("tested", {"0": scores})
    assert words(study.joined)["On test questions"] == (
        "On 1,234 questions of test.json, which had no part in the search, trial 0 has F1 61.23% "
        "at the same threshold (95% interval 58.00% to 64.50%)."
    )


# ---------------------------------------------------------------------------- names are inert


def test_the_page_loads_nothing_and_runs_its_own_scripts_alone(html: str, page: Page):
    for tag, attrs in page.tags:
        loading = {"src", "href", "srcset", "data", "action", "poster", "background", "style"}
        assert not loading & attrs.keys(), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer"),
        *("h1", "h2", "h3", "p", "dl", "dt", "dd", "div", "figure", "figcaption", "noscript"),
        *("table", "thead", "tbody", "tr", "th", "td", "span", "pre", "script"),
    }
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(
        attrs["content"] or ""
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    figures, *scripts = page.texts["script"]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall("'sha256-(.*?)'", policy) == hashes
    assert len(hashes) == 2
    drawn = json.loads(figures, parse_constant=pytest.fail)
    plots = [attrs["id"] for tag, attrs in page.tags if attrs.get("class") == "plot"]
    assert plots == ["losses", "starts", "thresholds", "history", "time"]
    assert set(drawn) == set(plots)
    assert '<html lang="en">' in html
    assert html.startswith("<!DOCTYPE html>")


def test_names_are_shown_as_they_are(page: Page):
    text = "".join(data for parts in page.texts.values() for data in parts)
    for name in ("script", "pipe", "dollar", "image", "link", "quotes"):
        assert HOSTILE[name] in text, name
    assert "hunter2" not in text
    assert "postgresql://me:***@db.example/qa_hpo" in text


def test_the_storage_and_its_secrets_are_not_told(full: ReportStudy, html: str):
    markdown = to_markdown(study_report(full.joined))
    for text in (html, markdown):
        assert "study.db" not in text
        assert "hunter2" not in text
    (toml,) = Page.of(html).texts["pre"]
    file = tomllib.loads(toml)
    own = {"name": "demo", "seed": 3, "objectives": ["best_f1"], "learn_from": []}
    assert file["study"] == own
    assert file["starts"]["base"] == HOSTILE["link"]


def test_the_markdown_says_the_same(full: ReportStudy, page: Page):
    markdown = to_markdown(study_report(full.joined))
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    kinds = [inner.type for token in tokens for inner in [token, *(token.children or [])]]
    assert not {"html_inline", "link_open", "image", "code_inline", "em_open"} & set(kinds)
    assert [token.content for token in tokens if token.type == "html_block"] == [
        "<!-- qa-hpo report -->\n"
    ]
    inline = [
        "".join(inner.content for inner in token.children or [])
        for token in tokens
        if token.type == "inline"
    ]
    for part in answer(study_report(full.joined)):
        assert f"{part.title} {' '.join(part.text.split())}" in inline
    cells = inline[inline.index("trial") :]
    for number, row in page.rows.items():
        texts = [text for text, _ in row.values()]
        marked = {0: "0 (baseline)", 1: "1 (winner)"}.get(number, str(number))
        place = cells.index(marked)
        assert cells[place + 1 : place + len(texts)] == texts[1:]
    (fence,) = [token.content for token in tokens if token.type == "fence"]
    assert fence.strip() == page.texts["pre"][0].strip()


def test_names_that_are_no_text(storage: StudyStorage, tmp_path: Path):
    study = ReportStudy(storage, tmp_path / "artifacts")
    study.fail("data", "a name with an undecodable byte: \udcff\nand a second line")
    report = study_report(study.joined)
    assert "an undecodable byte: ?" in to_html(report).encode().decode()
    assert "an undecodable byte: ? and a second line" in to_markdown(report).encode().decode()


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def command(full: ReportStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def report(*options: str) -> Ended:
        return run_cli("report", "demo", "--storage", full.joined.storage.url, *options)

    return report


def test_the_command_and_its_forms(command: Any):
    for options, name, form in (
        ([], "report.html", "html"),
        (["--format", "md"], "report.md", "md"),
        (["--out", "new/a.MD"], "new/a.MD", "md"),
        (["--out", "b.htm"], "b.htm", "html"),
        (["--out", "c.txt", "--format", "html"], "c.txt", "html"),
    ):
        ended = command(*options)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"{name}: ")
        begins = Path(name).read_text(encoding="utf-8").startswith
        assert begins("<!DOCTYPE html>" if form == "html" else "<!-- qa-hpo report -->\n\n# demo")
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "b.htm", "c.txt", "new", "report.html", "report.md"
    ]  # fmt: skip


def test_a_file_that_is_no_report_stays(command: Any):
    path = Path("report.html")
    path.write_text("<p>mine", encoding="utf-8")
    ended = command()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: report.html: exists and is no report; choose another name, or --force\n"
    )
    assert path.read_text(encoding="utf-8") == "<p>mine"
    assert command("--force").code == 0
    written = path.read_bytes()
    assert len(written) > 4_000_000
    assert command().code == 0  # its own report
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "report"], "report: ends in neither .html nor .md; give --format html or md"),
        (["--format", "pdf"], "--format pdf: must be html or md"),
        (["--out", "folder.html"], "folder.html: is a folder"),
        (["--out", "folder.html", "--force"], "folder.html: is a folder"),
        (["--out", "file/report.html"], "file/report.html: cannot be written: file is no folder"),
    ],
)
def test_places_where_it_cannot_be(command: Any, options: list[str], message: str):
    Path("folder.html").mkdir()
    Path("file").write_text("a file", encoding="utf-8")
    ended = command(*options)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["file", "folder.html"]


def test_a_study_that_is_not_there(command: Any):
    ended = run_cli("report", "none", "--storage", "sqlite:///none.db")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert not Path("report.html").exists()
