"""The front of best F1 and old-task F1, and everything that shows it or goes by it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from cli_helpers import Ended, run_cli
from qa_hpo import api
from qa_hpo.results.certainty import certainty
from qa_hpo.results.leaderboard import Leaderboard, Row, contenders, leaderboard
from qa_hpo.results.notes import study_note, trial_note
from qa_hpo.results.pareto import front, start_f1, trade_off
from qa_hpo.results.publishing import Publisher
from qa_hpo.results.report import study_report, to_html, to_markdown
from qa_hpo.results.report_words import answer
from qa_hpo.search.storage import StudyStorage, open_storage
from told_study import TWO, ToldStudy

BOUND = {"max_forgetting": 5.0}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    yield storage
    storage.close()


@pytest.fixture
def two(storage: StudyStorage, tmp_path: Path) -> ToldStudy:
    """Two objectives: trials 0, 1 and 4 are on the front, 1 was pruned, 3 failed."""
    study = ToldStudy(storage, tmp_path, study=TWO)
    fill(study)
    return study


def fill(study: ToldStudy) -> None:
    study.end(80.0, 40.0, 20.0)
    study.end(75.0, 50.0, 10.0, state=TrialState.PRUNED, losses=[1.0, 1.1])
    study.end(70.0, 45.0, 15.0)
    study.end(99.0, 99.0, -39.0, state=TrialState.FAIL)
    study.end(60.0, 55.5, None, start="base")
    study.end(None, state=TrialState.PRUNED, stop_reason="diverged")


def row(number: int, best_f1: float | None, old: float | None, state: str = "COMPLETE") -> Row:
    empty = dict.fromkeys(name for name, of in Row.model_fields.items() if of.is_required())
    given = {"number": number, "state": state, "params": {"start": "v1"}, "val_loss": []}
    return Row(**{**empty, **given, "best_f1": best_f1, "old_task_f1": old})


# ---------------------------------------------------------------------------- the front


@pytest.mark.parametrize("seed", range(50))
def test_the_front_is_what_its_definition_says(seed: int):
    """Beside the definition, pair by pair; of few different numbers, so that many are equal."""
    some = random.Random(seed)
    scores = [*range(some.choice([3, 8, 60])), None]
    states = ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    rows = [
        row(number, some.choice(scores), some.choice(scores), some.choice(states))
        for number in range(some.choice([0, 1, 2, 40]))
    ]

    def beats(one: Row, other: Row) -> bool:
        first, second = (one.best_f1, one.old_task_f1), (other.best_f1, other.old_task_f1)
        return all(a >= b for a, b in zip(first, second, strict=True)) and first != second

    measured = [
        one
        for one in rows
        if one.state != "FAIL" and one.best_f1 is not None and one.old_task_f1 is not None
    ]
    expected = {one.number for one in measured if not any(beats(other, one) for other in measured)}
    found = front(rows)
    assert {one.number for one in found} == expected
    assert len(found) == len(expected)
    falling = [one.best_f1 for one in found]
    assert falling == sorted(falling, reverse=True)


def test_rows_say_whether_they_are_on_it(two: ToldStudy):
    board = leaderboard(two.joined)
    on_front = {one.number: one.on_front for one in board.trials}
    assert on_front == {0: True, 1: True, 2: False, 3: False, 4: True, 5: False}
    assert [one.number for one in front(board.trials)] == [0, 1, 4]
    assert list(json.loads(board.to_json())["winner"])[-1] == "on_front"


def test_with_one_objective_rows_do_not_say_it(storage: StudyStorage, tmp_path: Path):
    study = ToldStudy(storage, tmp_path)
    fill(study)
    board = leaderboard(study.joined)
    assert {one.on_front for one in board.trials} == {None}
    assert [one.number for one in front(board.trials)] == [0, 1, 4]


# ---------------------------------------------------------------------------- the bound


def bounded(storage: StudyStorage, tmp_path: Path, *ends: tuple[float, float, float | None],
            **sections: Any) -> tuple[ToldStudy, Leaderboard]:  # fmt: skip
    study = ToldStudy(storage, tmp_path, constraints=BOUND, **sections)
    for best_f1, old, drop in ends:
        study.end(best_f1, old, drop)
    return study, leaderboard(study.joined)


ENDS = ((80.0, 40.0, 20.0), (70.0, 55.0, 5.0), (72.0, 54.0, 6.0), (60.0, 10.0, None))


@pytest.mark.parametrize("study", [{"name": "demo"}, TWO], ids=["one", "two"])
def test_trials_that_keep_to_the_bound_rank_first(
    storage: StudyStorage, tmp_path: Path, study: dict[str, Any]
):
    _, board = bounded(storage, tmp_path, *ENDS, study=study)
    assert [one.number for one in board.trials] == [1, 3, 2, 0]
    assert board.winner == board.trials[0]
    assert [one.number for one in contenders(board.trials, 5.0)] == [1, 3]
    assert len(contenders(board.trials, None)) == 4


def test_where_none_keeps_to_it_the_one_that_forgets_least_wins(
    storage: StudyStorage, tmp_path: Path
):
    study, board = bounded(storage, tmp_path, ENDS[0], ENDS[2])
    assert [one.number for one in board.trials] == [1, 0]
    assert len(contenders(board.trials, 5.0)) == 2
    assert (
        "**No trial keeps to that at most 5 points of F1 on the old task may be forgotten.** Trial "
        "1 leads because it forgets the least, 6.00 points."
    ) in study_note(study.joined, board)
    words = {part.title: part.text for part in answer(study_report(study.joined))}
    assert words["What may be forgotten"] == (
        "The study allows that 5 points of F1 on the old task are forgotten. No trial keeps to "
        "that: trial 1 is named as the winner because it forgets the least, 6.00 points."
    )


def test_the_report_tells_who_cannot_win(storage: StudyStorage, tmp_path: Path):
    study, board = bounded(storage, tmp_path, *ENDS)
    words = {part.title: part.text for part in answer(study_report(study.joined))}
    assert words["What may be forgotten"] == (
        "The study allows that 5 points of F1 on the old task are forgotten. 2 trials of 4 forget "
        "more, and cannot win; trial 0 among them, which has F1 80.00% and forgets 20.00 points."
    )
    assert words["The winner"].startswith("Trial 1 wins.")
    note = study_note(study.joined, board)
    assert "It leads those that keep to the study's bound: at most 5 points of F1" in note
    assert certainty(study.joined, board) is None  # no answers are kept here


def test_a_start_that_forgets_too_much_has_no_best_trial_to_compare(
    storage: StudyStorage, tmp_path: Path
):
    study, _ = bounded(storage, tmp_path, *ENDS[:1])
    study.end(60.0, 10.0, None, start="base")
    words = {part.title: part.text for part in answer(study_report(study.joined))}
    assert words["Does the start matter?"] == "All trials from v1 forget more than is allowed."


def test_a_study_all_of_whose_trials_keep_to_it(storage: StudyStorage, tmp_path: Path):
    study, _ = bounded(storage, tmp_path, ENDS[1], ENDS[3])
    words = {part.title: part.text for part in answer(study_report(study.joined))}
    assert words["What may be forgotten"].endswith("forgotten. All trials keep to that.")


# ---------------------------------------------------------------------------- the plot


def traces(figure: Any) -> dict[str, Any]:
    return {trace["name"]: trace for trace in json.loads(figure.to_json())["data"]}


def test_the_plot_shows_trials_front_and_starts(two: ToldStudy):
    rows = leaderboard(two.joined).trials
    assert start_f1(rows) == {"v1": 60.0}  # 40 + 20; base has not learnt it
    figure = trade_off(rows)
    drawn = traces(figure)
    assert list(drawn) == [
        "v1 itself: 60.00%", "the front", "base", "v1", "on the front", "winner: trial 0"
    ]  # fmt: skip
    assert (drawn["v1"]["x"], drawn["v1"]["y"]) == ([80, 75, 70], [40, 50, 45])
    assert drawn["v1"]["customdata"] == [0, 1, 2]
    assert (drawn["base"]["x"], drawn["base"]["y"]) == ([60], [55.5])
    assert drawn["on the front"]["customdata"] == [0, 1, 4]
    assert (drawn["the front"]["x"], drawn["the front"]["y"]) == ([80, 75, 60], [40, 50, 55.5])
    assert drawn["v1 itself: 60.00%"]["y"] == [60, 60]
    layout = json.loads(figure.to_json())["layout"]
    assert layout["xaxis"]["title"]["text"] == "best F1 (%)"
    assert layout["yaxis"]["title"]["text"] == "old-task F1 (%)"
    assert "3 trials of 4 on the front" in re.sub(r"<[^>]*>", " ", layout["title"]["text"]).replace(
        "  ", " "
    )


def test_the_plot_crosses_what_forgets_too_much(storage: StudyStorage, tmp_path: Path):
    _, board = bounded(storage, tmp_path, *ENDS)
    figure = trade_off(board.trials, most=5.0)
    own = traces(figure)["v1"]
    by_number = dict(zip(own["customdata"], own["marker"]["symbol"], strict=True))
    assert by_number == {0: "x", 1: "circle", 2: "x", 3: "circle"}
    title = re.sub(r"<[^>]*>", " ", figure.layout.title.text)
    assert "A cross: it forgets more than 5 points." in " ".join(title.split())


def test_where_no_old_task_was_measured_there_is_nothing_to_draw():
    assert not trade_off([]).data
    assert not trade_off([row(0, 50.0, None)]).data


# ---------------------------------------------------------------------------- the pages


SECTION = "Best F1 and old-task F1"


@pytest.mark.parametrize("study", [{"name": "demo"}, TWO], ids=["one", "two"])
def test_reports_have_the_front(storage: StudyStorage, tmp_path: Path, study: dict[str, Any]):
    told = ToldStudy(storage, tmp_path, study=study)
    fill(told)
    report = study_report(told.joined)
    text = to_markdown(report)
    section = text.split(f"## {SECTION}\n\n")[1].split("\n\n## ")[0]
    lines = section.splitlines()
    assert lines[0].startswith(
        "3 trials of 4 are on the front: no other trial is better in both best F1 and old-task F1"
    )
    assert (
        "From trial 0 to trial 4, best F1 falls from 80.00% to 60.00%, and old-task F1 rises from "
        "40.00% to 55.50%."
    ) in lines[0]
    assert "starts that had learnt the task was: v1 60.00%." in lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0][:5] == ["trial", "best F1", "old-task F1", "forgotten", "start"]
    assert [line[:5] for line in cells[2:]] == [
        ["**0** (winner)", "80.00", "40.00", "20.00", "v1"],
        ["**1**" if "**" in cells[3][0] else "1", "75.00", "50.00", "10.00", "v1"],
        ["4", "60.00", "55.50", "–", "base"],
    ]
    page = to_html(report)
    assert f"<h2>{SECTION}</h2>" in page
    assert '<div class="plot" id="front"></div>' in page
    figures = json.loads(re.findall(r'id="figures">(.*?)</script>', page, flags=re.DOTALL)[0])
    drawn = json.loads(trade_off(report.board.trials).to_json())
    assert figures["front"] == drawn


def test_reports_without_an_old_task_have_no_such_section(storage: StudyStorage, tmp_path: Path):
    told = ToldStudy(storage, tmp_path, evaluation={})
    told.end(70.0)
    report = study_report(told.joined)
    assert SECTION not in to_markdown(report)
    assert SECTION not in to_html(report)


def test_the_reports_table_says_what_is_allowed(storage: StudyStorage, tmp_path: Path):
    study, _ = bounded(storage, tmp_path, *ENDS)
    text = to_markdown(study_report(study.joined))
    section = text.split(f"## {SECTION}\n\n")[1].split("\n\n## ")[0]
    allowed = {
        line.split("|")[1].strip(): line.split("|")[5].strip() for line in section.splitlines()[4:]
    }
    assert allowed == {
        "0": "no: it forgets too much",
        "2": "no: it forgets too much",
        "**1** (winner)": "yes",
    }


def test_notes_have_the_front(two: ToldStudy):
    note = study_note(two.joined, leaderboard(two.joined))
    section = note.split(f"## {SECTION}\n\n")[1].split("\n\n## ")[0]
    key = two.joined.key
    link = f"/dashboard/studies/{key}/trials?numbers="
    assert section.splitlines()[2:] == [
        "| trial | start | best F1 (%) | old-task F1 (%) | forgotten (points) |",
        "| :--- | :--- | :--- | :--- | :--- |",
        f"| [trial 0]({link}0) | v1 | 80.00 | 40.00 | 20.00 |",
        f"| [trial 1]({link}1) | v1 | 75.00 | 50.00 | 10.00 |",
        f"| [trial 4]({link}4) | base | 60.00 | 55.50 | – |",
    ]
    assert "- There are two **objectives**, both to be high." in note
    assert "Objective 1, `old_task_f1`, is the F1 of the same checkpoint on the old task" in note
    assert "There are no intermediate values" in note
    trial = two.joined.optuna_study.get_trials()[1]
    text = trial_note(two.joined, trial)
    assert "| on the old task, at the same threshold | 50.00, 10.00 less than its start |" in text


def test_with_one_objective_the_note_has_no_front(storage: StudyStorage, tmp_path: Path):
    study = ToldStudy(storage, tmp_path)
    fill(study)
    note = study_note(study.joined, leaderboard(study.joined))
    assert SECTION not in note
    assert "- The **objective** is the best F1 in percent" in note


@pytest.mark.parametrize("study", [{"name": "demo"}, TWO], ids=["one", "two"])
def test_the_dashboard_has_the_plot(storage: StudyStorage, tmp_path: Path, study: dict[str, Any]):
    told = ToldStudy(storage, tmp_path, study=study)
    fill(told)
    Publisher(told.joined).study()
    attributes = storage.rdb.get_study_system_attrs(told.joined.key)
    plots = get_plotly_graph_objects(attributes)
    board = leaderboard(told.joined)
    assert json.loads(plots["old-task-f1-by-best-f1"]) == json.loads(
        trade_off(board.trials).to_json()
    )


# ---------------------------------------------------------------------------- the exports


def export(study: ToldStudy, out: Path, *options: str) -> Ended:
    return run_cli("export", "demo", out, "--storage", study.joined.storage.url, *options)


def metrics(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_text()))


def card(out: Path) -> str:
    return " ".join((out / "README.md").read_text().split())


@pytest.mark.parametrize(
    ("rule", "number", "words"),
    [
        ("best_f1", 0, "the winner of the leaderboard, which goes by the F1 on the new task."),
        ("old_task_f1", 4, "the one with the highest F1 on the old task."),
        (
            "forgetting<=10",
            1,
            "the best of those that forget at most 10 points of F1 on the old task.",
        ),
    ],
)
@pytest.mark.parametrize("objectives", [1, 2])
def test_a_rule_chooses_what_is_exported(
    storage: StudyStorage, tmp_path: Path, rule: str, number: int, words: str, objectives: int
):
    study = ToldStudy(storage, tmp_path, study={"name": "demo"} if objectives == 1 else TWO)
    fill(study)
    out = tmp_path / "out"
    ended = export(study, out, "--prefer", rule)
    assert (ended.code, ended.err) == (0, "")
    assert f"now holds trial {number} of study 'demo'" in ended.out
    assert ended.out.strip().endswith(f"; chosen by {rule}")
    assert (metrics(out)["trial"], metrics(out)["rule"]) == (number, rule)
    assert f"it was chosen by the rule `{rule}`: {words}" in card(out)
    assert (out / "model.safetensors").read_text() == f"of trial {number}"
    again = export(study, out, "--prefer", rule)
    assert (again.code, "holds trial" in again.out) == (0, True)
    from_python = api.export(
        "demo", tmp_path / "again", prefer=rule, storage=study.joined.storage.url
    )
    assert metrics(from_python) == metrics(out)


def test_without_a_rule_it_is_the_winner_and_two_objectives_are_told_of_others(
    two: ToldStudy, tmp_path: Path
):
    ended = export(two, tmp_path / "out")
    assert ended.out.strip().endswith(
        "; chosen by best_f1 (--prefer best_f1, old_task_f1 or forgetting<=X (X in points of F1, "
        "at least 0) chooses otherwise)"
    )
    assert (metrics(tmp_path / "out")["trial"], metrics(tmp_path / "out")["rule"]) == (0, "best_f1")
    assert "chosen by" not in export(two, tmp_path / "other", "--trial", "1").out
    assert "rule" not in metrics(tmp_path / "other")


def test_with_one_objective_nothing_is_said_of_rules(storage: StudyStorage, tmp_path: Path):
    study = ToldStudy(storage, tmp_path)
    fill(study)
    assert "chosen by" not in export(study, tmp_path / "out").out
    assert "rule" not in metrics(tmp_path / "out")
    assert "chosen by" not in card(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--prefer", "best_f1", "--trial", "1"],
            "--prefer chooses a trial, and so does --trial: give one of them",
        ),
        (
            ["--prefer", "f1"],
            "--prefer 'f1': valid: best_f1, old_task_f1 or forgetting<=X (X in points of F1, at "
            "least 0)",
        ),
    ],
)
def test_what_cannot_be_chosen_is_told_in_one_line(
    two: ToldStudy, tmp_path: Path, options: list[str], line: str
):
    ended = export(two, tmp_path / "out", *options)
    assert ended.code == 2
    assert ended.err.strip().endswith(line)
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_bound_that_no_trial_keeps_to_names_the_least(storage: StudyStorage, tmp_path: Path):
    study, _ = bounded(storage, tmp_path, ENDS[0], ENDS[2])
    ended = export(study, tmp_path / "out", "--prefer", "forgetting<=2")
    assert ended.code == 2
    assert ended.err.strip().endswith(
        "--prefer forgetting<=2: no finished trial forgets so little; the least is 6.00 points of "
        "F1, of trial 1"
    )
    # Without it, the winner is exported, and its card says that it keeps to no bound.
    assert export(study, tmp_path / "out").code == 0
    assert metrics(tmp_path / "out")["max_forgetting"] == 5.0
    text = "Trials of its study were to forget at most 5 points of F1 with their threshold; it"
    assert f"{text} forgets more." in card(tmp_path / "out")
    assert export(study, tmp_path / "all", "--prefer", "forgetting<=20").code == 0
    assert metrics(tmp_path / "all")["trial"] == 0


# ---------------------------------------------------------------------------- the command line


def test_the_leaderboard_marks_the_front(two: ToldStudy):
    ended = run_cli("leaderboard", "demo", "--storage", two.joined.storage.url)
    head, *lines = ended.out.splitlines()
    assert "old-task F1" in head
    at = re.search(r"\bfront\b", head)
    assert at is not None
    marked = {
        int(line.split()[0])
        for line in lines
        if line.split()[:1] and line.split()[0].isdigit() and "*" in line[at.start() : at.end()]
    }
    assert marked == {0, 1, 4}
    assert (
        "On the front of best F1 and old-task F1 (*): trials 0, 1, 4. 'qa-hpo export' takes the "
        "winner; --prefer old_task_f1 or --prefer 'forgetting<=X' another one."
    ) in ended.out


def test_the_leaderboard_tells_of_the_bound(storage: StudyStorage, tmp_path: Path):
    study, _ = bounded(storage, tmp_path, ENDS[0], ENDS[2])
    url = study.joined.storage.url
    none = run_cli("leaderboard", "demo", "--storage", url).out
    assert (
        "No trial keeps to constraints.max_forgetting, 5 points of F1 on the old task: trial 1 is "
        "the winner because it forgets the least, 6.00 points."
    ) in none
    assert none.count("(too much)") == 2
    study.end(50.0, 57.0, 3.0)
    some = run_cli("leaderboard", "demo", "--storage", url).out
    assert "It is the best of those that keep to constraints.max_forgetting, 5 points" in some
    assert "Winner: trial 2" in some
