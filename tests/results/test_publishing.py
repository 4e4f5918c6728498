"""What workers publish is what the dashboard reads: all of it, at once, and nobody else's."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from made_studies import MadeStudy, OwnPostgres, made_answers
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import save_note, save_plotly_graph_object
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._note import (
    get_note_from_system_attrs,
    save_note_with_version,
    version_is_incremented,
)
from plotly.graph_objects import Figure

from qa_hpo.errors import ArtifactError
from qa_hpo.results import publishing
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.results.notes import study_note, trial_note
from qa_hpo.results.plots import f1_by_start, f1_by_threshold, loss_curves
from qa_hpo.results.publishing import PUBLISHED, Publisher, judge
from qa_hpo.search.keeping import read_answers
from qa_hpo.squad.answered import Answered
from qa_hpo.workers.worker import _Worker

_studies = itertools.count()


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    server = OwnPostgres()
    yield server.url("published")
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MadeStudy]:
    """A study in either database."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    artifacts = {"folder": f"{tmp_path}/artifacts", "keep": 2}
    name = {"name": f"made {next(_studies)}"}
    study = MadeStudy(tmp_path, url, artifacts=artifacts, study=name)
    yield study
    study.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[MadeStudy]:
    study = MadeStudy(tmp_path)
    yield study
    study.close()


def answers(seed: int, questions: int = 60) -> Answered:
    rng = np.random.default_rng(seed)
    return made_answers(rng.random(questions), np.arange(questions) // 5)


def trials(made: MadeStudy) -> list[FrozenTrial]:
    return made.joined.optuna_study.get_trials(deepcopy=False)


def attributes(made: MadeStudy) -> dict[str, Any]:
    return made.joined.storage.rdb.get_study_system_attrs(made.joined.key)


def note(made: MadeStudy, trial: FrozenTrial | None = None) -> str:
    key = None if trial is None else trial._trial_id
    return str(get_note_from_system_attrs(attributes(made), key)["body"])


def plots(made: MadeStudy) -> dict[str, Any]:
    found = get_plotly_graph_objects(attributes(made))
    return {name: json.loads(text, parse_constant=pytest.fail) for name, text in found.items()}


def pieces(made: MadeStudy, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in attributes(made))


def shown_trials(made: MadeStudy) -> set[int]:
    """The trials that the plot of the losses shows."""
    traces = plots(made)["validation-loss"]["data"]
    return {
        number for trace in traces for number in trace.get("customdata", []) if number is not None
    }


# ---------------------------------------------------------------------------- whole


def test_the_dashboard_reads_what_was_written(made: MadeStudy):
    for number in range(60):
        start = ("base", "v1", "v2")[number % 3]
        made.add(answers=answers(number) if number < 4 else None, start=start, worker="w" * 300)
    last = trials(made)[-1]
    Publisher(made.joined).trial_finished(last)

    board = leaderboard(made.joined)
    assert note(made, last) == trial_note(made.joined, last)
    assert note(made) == study_note(made.joined, board)
    leading = {
        f"trial {row.number}": read_answers(made.joined, trials(made)[row.number])
        for row in board.trials[:2]
    }
    assert plots(made) == {
        "validation-loss": json.loads(loss_curves(board.trials).to_json()),
        "f1-by-start": json.loads(f1_by_start(board.trials).to_json()),
        "f1-by-threshold": json.loads(f1_by_threshold(leading).to_json()),
    }
    assert shown_trials(made) == set(range(60))
    # What is long is in several pieces.
    assert pieces(made, "dashboard:note_str:") > 1
    assert pieces(made, "dashboard:plot_data:validation-loss:") > 1


def test_what_gets_shorter_leaves_nothing_behind(made: MadeStudy, monkeypatch: pytest.MonkeyPatch):
    made.add()
    publisher = Publisher(made.joined)
    for length, count in ((9000, 5), (4090, 2), (4091, 3), (10, 1)):
        monkeypatch.setattr(publishing, "study_note", lambda *_, text="n" * length: text)
        figure = Figure(layout={"title": {"text": "t" * length}})
        monkeypatch.setattr(publishing, "loss_curves", lambda _, figure=figure: figure)
        publisher.study()
        assert note(made) == "n" * length
        assert pieces(made, "dashboard:note_str:") == count
        assert plots(made)["validation-loss"]["layout"]["title"]["text"] == "t" * length
    assert pieces(made, "dashboard:plot_data:validation-loss:") < 6


def test_of_a_study_without_trials_there_is_a_note(made: MadeStudy):
    Publisher(made.joined).study()
    assert note(made) == study_note(made.joined, leaderboard(made.joined))
    assert set(plots(made)) == {"validation-loss", "f1-by-start"}


def test_a_failed_trials_note_tells_so(sqlite: MadeStudy):
    sqlite.add([], state=TrialState.FAIL, cause="oom", error="no memory left")
    Publisher(sqlite.joined).trial_finished(trials(sqlite)[0])
    assert "**Failed after 0 of 1 epochs** (oom): no memory left" in note(sqlite, trials(sqlite)[0])


def test_a_trial_that_was_lost_has_no_note_yet(sqlite: MadeStudy):
    """Another worker runs it, and tells of it in the end."""
    sqlite.add(state=TrialState.RUNNING)
    Publisher(sqlite.joined).trial_finished(trials(sqlite)[0])
    assert not attributes(sqlite).keys() & {"dashboard:1:note_ver", "dashboard:note_ver"}


# ---------------------------------------------------------------------------- other people's


def test_a_note_that_somebody_changed_is_theirs_and_the_plots_go_on(made: MadeStudy):
    publisher = Publisher(made.joined)
    for number in range(3):
        made.add()
        publisher.study()
        assert shown_trials(made) == set(range(number + 1))
    # A dashboard lets somebody save who has begun to edit before the last times.
    assert version_is_incremented(attributes(made), None, 2)
    save_note(made.joined.optuna_study, "Mine. " * 1000)
    theirs = {name: text for name, text in attributes(made).items() if "note" in name}
    for number in range(3, 5):
        made.add()
        Publisher(made.joined).study()
        assert shown_trials(made) == set(range(number + 1))
    assert note(made) == "Mine. " * 1000
    assert {name: text for name, text in attributes(made).items() if "note" in name} == theirs
    save_note(made.joined.optuna_study, "Shorter.")
    publisher.study()
    assert note(made) == "Shorter."


def test_a_note_that_was_there_first_stays(made: MadeStudy):
    save_note(made.joined.optuna_study, "Why this study.")
    made.add(state=TrialState.RUNNING)
    running = trials(made)[0]
    rdb, key = made.joined.storage.rdb, made.joined.key
    save_note_with_version(rdb, key, running._trial_id, 1, "It is slow.")
    rdb.set_trial_state_values(running._trial_id, TrialState.COMPLETE, [50.0])
    Publisher(made.joined).trial_finished(running)
    assert note(made) == "Why this study."
    assert note(made, running) == "It is slow."
    assert "f1-by-start" in plots(made)


def test_a_plot_of_somebody_elses_stays(made: MadeStudy):
    made.add()
    figure = Figure(layout={"title": {"text": "x" * 5000}})
    for name in ("mine", "validation-loss-of-mine", "f1"):
        save_plotly_graph_object(made.joined.optuna_study, figure, graph_object_id=name)
    for _ in range(2):
        Publisher(made.joined).study()
    found = plots(made)
    assert set(found) == {
        "mine", "validation-loss-of-mine", "f1", "validation-loss", "f1-by-start"
    }  # fmt: skip
    for name in ("mine", "validation-loss-of-mine", "f1"):
        assert found[name] == json.loads(figure.to_json())


# ---------------------------------------------------------------------------- at once


def test_readers_see_the_old_or_the_new_and_never_a_mix(
    made: MadeStudy, monkeypatch: pytest.MonkeyPatch
):
    """Whenever they look: after each statement of the writer, a reader does."""
    lengths = {"old": 9000, "new": 5000}
    now = "old"
    monkeypatch.setattr(publishing, "study_note", lambda *_: now * lengths[now])
    for name in ("loss_curves", "f1_by_start"):
        monkeypatch.setattr(
            publishing,
            name,
            lambda *_, **__: Figure(layout={"title": {"text": now * lengths[now]}}),
        )
    publisher = Publisher(made.joined)
    publisher.study()
    reader = sqlalchemy.create_engine(made.joined.storage.url)
    seen: list[set[str]] = []

    def read(*_: Any) -> None:
        # As a dashboard does: all attributes with one statement.
        query = "SELECT key, value_json FROM study_system_attributes WHERE study_id = :key"
        with reader.connect() as connection:
            rows = connection.execute(sqlalchemy.text(query), {"key": made.joined.key})
            stored = {name: json.loads(value) for name, value in rows}
        texts = [get_note_from_system_attrs(stored, None)["body"]]
        for text in get_plotly_graph_objects(stored).values():
            texts.append(json.loads(text)["layout"]["title"]["text"])
        assert len(texts) == 3
        seen.append(set(texts))

    engine = made.joined.storage.rdb.engine
    sqlalchemy.event.listen(engine, "after_cursor_execute", read)
    for content in ("new", "old", "new"):
        now = content
        publisher.study()
        read()
    sqlalchemy.event.remove(engine, "after_cursor_execute", read)
    reader.dispose()
    whole = [{name * length} for name, length in lengths.items()]
    assert all(texts in whole for texts in seen)
    assert sum(before != after for before, after in pairwise(seen)) == 3
    assert len(seen) > 12


def test_workers_that_publish_at_the_same_time(made: MadeStudy):
    for number in range(8):
        made.add(answers=answers(number))
    failures: list[BaseException] = []

    def publish(publisher: Publisher) -> None:
        try:
            for _ in range(8):
                publisher.study()
        except BaseException as error:  # noqa: BLE001  (told below)
            failures.append(error)

    workers = [Publisher(made.joined_again()) for _ in range(3)]
    threads = [threading.Thread(target=publish, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert note(made) == study_note(made.joined, leaderboard(made.joined))
    assert set(plots(made)) == {"validation-loss", "f1-by-start", "f1-by-threshold"}


# ---------------------------------------------------------------------------- not too often


def test_what_is_fresh_is_left_to_whoever_wrote_it(made: MadeStudy):
    first, second = Publisher(made.joined), Publisher(made.joined_again())
    made.add()
    first.trial_finished(trials(made)[0])
    made.add()
    second.trial_finished(trials(made)[1])
    assert note(made, trials(made)[1]) == trial_note(made.joined, trials(made)[1])
    assert shown_trials(made) == {0}
    second.study()  # the end of the study, say
    assert shown_trials(made) == {0, 1}
    made.add()
    first.trial_finished(trials(made)[2])
    assert shown_trials(made) == {0, 1}


def test_what_is_no_longer_fresh_is_written_by_whoever_comes_next(sqlite: MadeStudy):
    first, second = Publisher(sqlite.joined), Publisher(sqlite.joined_again())
    sqlite.add()
    first.study()
    sqlite.joined.optuna_study.set_user_attr(PUBLISHED, time.time() - 11)
    sqlite.add()
    first.trial_finished(trials(sqlite)[1])  # not itself, for the sake of its own time
    assert shown_trials(sqlite) == {0}
    second.trial_finished(trials(sqlite)[1])
    assert shown_trials(sqlite) == {0, 1}


def test_a_publisher_that_is_slow_publishes_seldom(
    sqlite: MadeStudy, monkeypatch: pytest.MonkeyPatch
):
    """Never more than a twentieth of a worker's time: after 2 s not before another 40."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    publisher = Publisher(sqlite.joined)
    monkeypatch.setattr(publishing, "study_note", lambda *_: str(clock.__setitem__(0, 1002.0)))
    sqlite.add()
    publisher.study()
    monkeypatch.undo()
    assert publisher._next == pytest.approx(1042.0)


# ---------------------------------------------------------------------------- what goes wrong


def test_answers_that_are_gone_cost_a_line_of_one_plot(sqlite: MadeStudy):
    for number in range(2):
        sqlite.add(answers=answers(number))
    gone = sqlite.store.keys(sqlite.joined.uid)
    assert len(gone) == 2
    sqlite.store.remove(key for key in gone if int(key.split("-")[1]) == 1)
    Publisher(sqlite.joined).study()
    names = [trace["name"] for trace in plots(sqlite)["f1-by-threshold"]["data"]]
    assert names == ["trial 0", "tuned threshold"]


def test_a_failed_trials_answers_are_not_among_the_leading_ones(sqlite: MadeStudy):
    """It may have left some, and a score, before it failed."""
    sqlite.add(answers=answers(0))
    sqlite.add(answers=answers(1), state=TrialState.FAIL, best_f1=99.0)
    board = leaderboard(sqlite.joined)
    assert [row.best_f1 for row in board.trials][1:] == [99.0]
    assert list(publishing.leading_answers(sqlite.joined, board)) == [0]


def test_answers_are_read_once(sqlite: MadeStudy, monkeypatch: pytest.MonkeyPatch):
    sqlite.add(answers=answers(0))
    publisher = Publisher(sqlite.joined)
    publisher.study()
    read = monkeypatch.setattr(publishing, "read_answers", lambda *_: pytest.fail("again"))
    publisher.study()
    assert list(publisher.known) == [0]
    assert read is None


def test_a_store_that_refuses_costs_no_more_than_a_plot(
    sqlite: MadeStudy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    sqlite.add(answers=answers(0))
    Publisher(sqlite.joined).study()
    before = plots(sqlite)["f1-by-threshold"]

    def refuses(*_: Any) -> Any:
        raise ArtifactError("s3://bucket: not now")

    sqlite.add()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(publishing, "read_answers", refuses)
        Publisher(sqlite.joined).study()
    assert "s3://bucket: not now" in caplog.text
    assert note(sqlite) == study_note(sqlite.joined, leaderboard(sqlite.joined))
    assert shown_trials(sqlite) == {0, 1}
    assert plots(sqlite)["f1-by-threshold"] == before


@pytest.fixture
def worker(sqlite: MadeStudy) -> _Worker:
    """As much of a worker as it takes to publish."""
    worker = _Worker.__new__(_Worker)
    worker.publisher = Publisher(sqlite.joined)
    return worker


def test_a_worker_publishes_a_trial_and_a_study(sqlite: MadeStudy, worker: _Worker):
    sqlite.add()
    worker._publish(trials(sqlite)[0])
    assert note(sqlite, trials(sqlite)[0]) == trial_note(sqlite.joined, trials(sqlite)[0])
    sqlite.add()
    worker._publish(None)
    assert shown_trials(sqlite) == {0, 1}


def test_a_worker_that_cannot_publish_goes_on_and_no_trial_fails(
    sqlite: MadeStudy,
    worker: _Worker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    sqlite.add(answers=answers(0))

    def fails(*_: Any) -> Any:
        raise RuntimeError("it slipped")

    for name in ("trial_note", "study_note"):
        monkeypatch.setattr(publishing, name, fails)
    with caplog.at_level(logging.WARNING):
        worker._publish(trials(sqlite)[0])
        worker._publish(None)
    assert caplog.text.count("the dashboard's notes are not written: it slipped") == 2
    assert [trial.state for trial in trials(sqlite)] == [TrialState.COMPLETE]
    assert note(sqlite) == note(sqlite, trials(sqlite)[0]) == ""


def test_a_worker_whose_artifact_folder_is_broken_still_publishes(
    sqlite: MadeStudy, worker: _Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    sqlite.add(answers=answers(0))
    (tmp_path / "artifacts").rename(tmp_path / "elsewhere")
    (tmp_path / "artifacts").write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        worker._publish(trials(sqlite)[0])
    assert "a plot is made of what is known" in caplog.text
    assert note(sqlite) == study_note(sqlite.joined, leaderboard(sqlite.joined))
    assert set(plots(sqlite)) == {"validation-loss", "f1-by-start"}


def test_of_a_study_that_was_deleted_nothing_is_left(
    sqlite: MadeStudy, worker: _Worker, caplog: pytest.LogCaptureFixture
):
    sqlite.add()
    trial = trials(sqlite)[0]
    optuna.delete_study(study_name="made", storage=sqlite.joined.storage.rdb)
    with caplog.at_level(logging.WARNING):
        worker._publish(trial)
        worker._publish(None)
    assert caplog.text.count("the dashboard's notes are not written") == 2
    with sqlite.joined.storage.rdb.engine.connect() as connection:
        query = sqlalchemy.text("SELECT count(*) FROM study_system_attributes")
        assert connection.execute(query).scalar() == 0


# ---------------------------------------------------------------------------- an interval


def test_a_trials_interval_holds_its_f1():
    rng = np.random.default_rng(3)
    one = made_answers(rng.random(200), np.arange(200) // 10)
    told = judge(one)
    low, high = told["best_f1_interval"]
    assert low < 100 * one.f1.mean() < high
    json.dumps(told)  # it is stored as JSON
    assert judge(made_answers([0.5, 0.6], [1, 1])) == {}


# ---------------------------------------------------------------------------- one transaction


def test_attributes_are_set_and_others_removed(made: MadeStudy):
    rdb, key = made.joined.storage.rdb, made.joined.key
    before = attributes(made)
    rdb.write_study(key, {"a:0": "x", "a:1": "y", "b": [1, {"z": None}]}, prefixes=["a:"])
    rdb.write_study(key, {"a:0": "ünïcode ☃", "c": 1}, prefixes=["a:"])
    assert attributes(made) == {**before, "a:0": "ünïcode ☃", "b": [1, {"z": None}], "c": 1}
    rdb.write_study(key, {"c": 2}, prefixes=["a:", "b"])
    assert attributes(made) == {**before, "c": 2}
    rdb.write_study(key, {"c": 3}, prefixes=["c"])  # what is written is not removed
    assert attributes(made) == {**before, "c": 3}


@pytest.mark.parametrize("prefix", ["a_b%", "a%", "100%_", "\\", "a/b", "it's"])
def test_no_character_of_a_prefix_stands_for_others(made: MadeStudy, prefix: str):
    rdb, key = made.joined.storage.rdb, made.joined.key
    others = ["aXbY", "ab", "a", "100 percent", "100%X", "slash", "/", "it''s", "A_B%C", "IT'S"]
    rdb.write_study(key, dict.fromkeys(others, 1), prefixes=["nothing"])
    before = attributes(made)
    rdb.write_study(key, {f"{prefix}{n}": n for n in range(3)}, prefixes=[prefix])
    assert len(attributes(made)) == len(before) + 3
    rdb.write_study(key, {f"{prefix}0": 7}, prefixes=[prefix])
    assert attributes(made) == {**before, f"{prefix}0": 7}


def test_another_studys_attributes_are_not_touched(made: MadeStudy):
    name = {"name": f"beside {made.joined.file.study.name}"}
    beside = MadeStudy(made.folder, made.url, study=name)
    rdb = made.joined.storage.rdb
    for study in (made, beside):
        rdb.write_study(study.joined.key, {"a:0": "x", "a:1": "y"}, prefixes=["a:"])
    before = attributes(beside)
    rdb.write_study(made.joined.key, {"a:0": "z"}, prefixes=["a:", "dashboard:"])
    assert attributes(beside) == before
    assert attributes(made)["a:0"] == "z"
    assert "a:1" not in attributes(made)
    Publisher(made.joined).study()
    assert attributes(beside) == before
    beside.close()


def test_all_is_written_or_nothing(made: MadeStudy):
    rdb, key = made.joined.storage.rdb, made.joined.key
    rdb.write_study(key, {"a:0": "x", "a:1": "y"}, prefixes=["a:"])
    before = attributes(made)

    def fails(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE"):
            raise RuntimeError("the network is gone")

    sqlalchemy.event.listen(rdb.engine, "before_cursor_execute", fails)
    with pytest.raises(RuntimeError, match="the network is gone"):
        rdb.write_study(key, {"a:0": "z"}, prefixes=["a:"])
    sqlalchemy.event.remove(rdb.engine, "before_cursor_execute", fails)
    assert attributes(made) == before
