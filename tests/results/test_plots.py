from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from plotly.graph_objects import Figure

from qa_hpo.config import Parameters, StudyFile
from qa_hpo.results.leaderboard import Row
from qa_hpo.results.plots import (
    f1_by_start,
    f1_by_threshold,
    history,
    importance_of,
    importances,
    loss_curves,
    start_colours,
    time_by_reason,
)
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import REPEAT_OF
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.scoring import QuestionScores


def row(number: int, best_f1: float | None = 60.0, **more: Any) -> Row:
    start = more.pop("start", "base")
    given = {
        "state": "COMPLETE", "stop_reason": None, "best_epoch": 1, "f1": None, "exact": None,
        "best_exact": None, "threshold": None, "crossfit_f1": None, "val_loss": [1.0],
        "train_seconds": 60.0, "worker": None,
    } | more  # fmt: skip
    params = Parameters(start=start).model_dump()
    return Row(number=number, best_f1=best_f1, params=params, **given)


def read(figure: Figure) -> dict[str, Any]:
    """The figure as the dashboard gets it."""
    text = figure.to_json()
    assert "bdata" not in text
    plot: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    assert Figure(plot).to_json() == text
    return plot


def named(plot: dict[str, Any], name: str) -> dict[str, Any]:
    (trace,) = [trace for trace in plot["data"] if trace["name"] == name]
    return dict(trace)


def title(plot: dict[str, Any]) -> str:
    text = plot["layout"]["title"]["text"].replace("<br>", " ")
    for mark in ("<b>", "</b>", "</span>", '<span style="font-size:12px">'):
        text = text.replace(mark, "")
    return str(text)


# ---------------------------------------------------------------------------- losses


def test_a_line_for_each_trial_and_a_ring_where_its_loss_turned():
    rows = [
        row(7, 70.0, start="v1", val_loss=[1.25, 1.123456, 1.2]),
        row(2, 65.0, val_loss=[1.5, None, 1.4]),
        row(4, 60.0, start="v1", val_loss=[1.75, 1.5]),
        row(5, None, state="FAIL", val_loss=[]),
    ]
    plot = read(loss_curves(rows))
    assert [trace["name"] for trace in plot["data"]] == [
        "base", "v1", "winner: trial 7", "lowest loss"
    ]  # fmt: skip
    base, v1 = named(plot, "base"), named(plot, "v1")
    assert (base["x"], base["y"]) == ([1, 2, 3], [1.5, None, 1.4])
    assert v1["x"] == [1, 2, 3, None, 1, 2]
    assert v1["y"] == [1.25, 1.123, 1.2, None, 1.75, 1.5]
    assert v1["customdata"] == [7, 7, 7, None, 4, 4]
    winner = named(plot, "winner: trial 7")
    assert winner["y"] == [1.25, 1.123, 1.2]
    assert winner["line"]["color"] == v1["line"]["color"] != base["line"]["color"]
    assert winner["line"]["width"] > v1["line"]["width"]
    ring = named(plot, "lowest loss")
    assert (ring["x"], ring["y"]) == ([2], [1.123])
    assert "rises again in 1 of 3 trials" in title(plot)
    axes = [plot["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert axes == ["epoch", "validation loss<br>(nats per window)"]


@pytest.mark.parametrize(
    ("losses", "turn"),
    [
        ([1.2, 1.0, 1.1], 2),
        ([1.2, 1.0], None),
        ([1.2], None),
        ([1.0, None], 1),  # a loss that is not a number is above every other
        ([None, 1.0], None),
        ([1.0, 1.0], None),
        ([2.0, 1.0, 1.0, 1.5], 3),  # the last epoch before the rise
        ([1.0, 1.5, 0.9], None),
        ([1.0, 1.5, 0.9, 0.95], 3),
    ],
)
def test_the_epoch_of_the_ring(losses: list[float | None], turn: int | None):
    plot = read(loss_curves([row(0, val_loss=losses)]))
    rings = [trace["x"] for trace in plot["data"] if trace["name"] == "lowest loss"]
    assert rings == ([] if turn is None else [[turn]])


def test_of_many_trials_the_best_200():
    rows = [row(k, 90.0 - k / 10, val_loss=[1.0 + k / 1000, 0.9]) for k in range(230)]
    plot = read(loss_curves(rows))
    assert set(named(plot, "base")["customdata"]) == {*range(200), None}
    assert "Of 230 trials, the best 200 are shown." in title(plot)
    assert "shown" not in title(read(loss_curves(rows[:200])))


def test_a_diverged_trial_leaves_the_others_room():
    rows = [row(k, val_loss=[1.3, 1.2 + k / 100]) for k in range(9)]
    assert "range" not in read(loss_curves(rows))["layout"]["yaxis"]
    plot = read(loss_curves([*rows, row(9, val_loss=[9.0])]))
    low, high = plot["layout"]["yaxis"]["range"]
    assert low < 1.2
    assert 1.3 < high < 2
    assert "Higher than what is shown: 1 point." in title(plot)
    assert 9.0 in named(plot, "base")["y"]  # it is there when somebody looks for it


# ---------------------------------------------------------------------------- F1


def test_every_trial_stands_by_its_start():
    rows = [
        row(3, 71.238, start="v2", best_f1_interval=(70.0, 72.5)),
        row(5, 70.0, start="v2", state="PRUNED", stop_reason="overfitting"),
        row(1, 66.0, start="v1"),
        row(0, 62.0, best_f1_interval=(61.0, 62.5)),
        row(2, 61.0),
        row(4, 99.0, state="FAIL"),
    ]
    plot = read(f1_by_start(rows, baseline=rows[3]))
    assert plot["layout"]["xaxis"]["tickvals"] == [0, 1, 2]
    ticks = ["base<br>2 trials", "v1<br>1 trial", "v2<br>2 trials"]
    assert plot["layout"]["xaxis"]["ticktext"] == ticks
    for place, (name, numbers, values) in enumerate(
        [("base", [0, 2], [62.0, 61.0]), ("v1", [1], [66.0]), ("v2", [3, 5], [71.24, 70.0])]
    ):
        trace = named(plot, name)
        assert (trace["customdata"], trace["y"]) == (numbers, values)
        assert all(abs(x - place) <= 0.301 for x in trace["x"])
        assert trace["showlegend"] is False
    star, diamond = named(plot, "winner: trial 3"), named(plot, "baseline: trial 0")
    assert (star["marker"]["symbol"], star["y"]) == ("star", [71.24])
    assert (diamond["marker"]["symbol"], diamond["y"]) == ("diamond", [62.0])
    assert star["x"] == named(plot, "v2")["x"][:1]
    best = named(plot, "best of its start, 95% interval")
    assert best["customdata"] == [0, 3]  # those whose interval is known
    assert best["error_y"]["array"] == [0.5, 1.262]
    assert best["error_y"]["arrayminus"] == [1.0, 1.238]
    assert "The winner, trial 3, starts from v2 F1 71.24%." in title(plot)


def test_where_finals_decide_the_best_of_a_start_has_the_highest_f1():
    """The winner comes first, by the mean over seeds."""
    rows = [row(2, 70.0, start="v1"), row(0, 72.0, start="v1"), row(1, 60.0)]
    rows = [one.model_copy(update={"best_f1_interval": (50.0, 80.0)}) for one in rows]
    plot = read(f1_by_start(rows))
    assert named(plot, "best of its start, 95% interval")["customdata"] == [1, 0]
    assert named(plot, "winner: trial 2")["y"] == [70.0]


def test_the_jitter_parts_neighbours_and_is_the_same_each_time():
    rows = [row(k, 60.0) for k in range(30)]
    figure = f1_by_start(rows)
    assert figure.to_json() == f1_by_start(rows).to_json()
    x = sorted(named(read(figure), "base")["x"])
    assert min(right - left for left, right in pairwise(x)) > 0.005


def test_a_start_has_the_same_colour_in_all_plots():
    rows = [row(k, 60.0 + k, start=start) for k, start in enumerate(["v1", "base", "v2", "v1"])]
    colours = start_colours(reversed(rows))
    assert list(colours) == ["base", "v1", "v2"]
    assert len(set(colours.values())) == 3
    for start, colour in colours.items():
        assert named(read(loss_curves(rows)), start)["line"]["color"] == colour
        assert named(read(f1_by_start(rows)), start)["marker"]["color"] == colour
        assert named(read(history(rows)), start)["marker"]["color"] == colour


def test_a_start_without_f1_keeps_its_place():
    plot = read(f1_by_start([row(0, start="v1"), row(1, None, state="PRUNED")]))
    assert plot["layout"]["xaxis"]["ticktext"] == ["base<br>0 trials", "v1<br>1 trial"]
    assert abs(named(plot, "v1")["x"][0] - 1) <= 0.301


def test_the_best_so_far():
    pruned = {"state": "PRUNED", "stop_reason": "hopeless"}
    rows = [
        row(4, 70.0), row(2, 65.0), row(0, 60.0), row(3, 62.0), row(1, 58.0, **pruned),
        row(6, 57.0), row(5, None, state="FAIL"),
    ]  # fmt: skip
    plot = read(history(rows, baseline=rows[2]))
    line = named(plot, "best so far")
    assert (line["x"], line["y"]) == ([0, 2, 4, 6], [60.0, 65.0, 70.0, 70.0])
    assert line["line"]["shape"] == "hv"
    points = named(plot, "base")
    # The legend shows the first symbol, so complete trials come first.
    assert points["x"] == [0, 2, 3, 4, 6, 1]
    assert points["y"] == [60.0, 65.0, 62.0, 70.0, 57.0, 58.0]
    assert points["marker"]["symbol"] == [*["circle"] * 5, "circle-open"]
    assert named(plot, "winner: trial 4")["y"] == [70.0]
    (ruler,) = plot["layout"]["shapes"]
    assert (ruler["y0"], ruler["y1"], ruler["xref"]) == (60.0, 60.0, "paper")
    assert "Highest F1 so far: 70.00% (trial 4)" in title(plot)
    assert "5 complete" in title(plot)
    assert "1 pruned" in title(plot)


def test_the_winner_by_seeds_need_not_have_the_highest_f1():
    rows = [row(1, 69.0), row(0, 70.0)]
    assert named(read(history(rows)), "winner: trial 1")["y"] == [69.0]
    assert "70.00% (trial 0)" in title(read(history(rows)))


def test_a_failed_baseline_is_not_marked():
    rows = [row(1), row(0, None, state="FAIL")]
    for plot in (read(f1_by_start(rows, baseline=rows[1])), read(history(rows, baseline=rows[1]))):
        assert not any("baseline" in trace["name"] for trace in plot["data"])


# ---------------------------------------------------------------------------- thresholds


def answered(margins: list[float], span_f1: list[float], has_answer: list[bool]) -> Answered:
    null = (~np.array(has_answer)).astype(np.float64)
    span = np.array(span_f1, dtype=np.float64)
    margin = np.array(margins, dtype=np.float64)
    nowhere = np.zeros(len(margins), dtype=np.int32)
    scores = QuestionScores(span, span, null, null, np.array(has_answer), margin)
    return Answered(nowhere, nowhere, scores, nowhere)


def slow_f1(of: Answered, threshold: float) -> float:
    """F1 in percent, question by question."""
    scores = of.scores
    total = 0.0
    for margin, span, null in zip(scores.null_margin, scores.span_f1, scores.null_f1, strict=True):
        total += null if margin > threshold else span
    return 100 * total / len(scores.null_margin)


questions = st.lists(
    st.tuples(
        st.integers(-20, 20).map(lambda n: n / 4), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()
    ),
    min_size=1,
    max_size=40,
)


@given(questions)
@settings(max_examples=30, deadline=None)
def test_each_step_is_f1_at_its_threshold(drawn: list[tuple[float, float, bool]]):
    margins, spans, has_answer = (list(column) for column in zip(*drawn, strict=True))
    one = answered(margins, spans, has_answer)
    plot = read(f1_by_threshold({"trial 3": one}))
    line, tuned = named(plot, "trial 3"), named(plot, "tuned threshold")
    assert line["x"] == [min(margins) - 1, *sorted(set(margins))]
    assert line["y"] == pytest.approx([slow_f1(one, at) for at in line["x"]], rel=1e-3)
    assert line["line"]["shape"] == "hv"
    assert tuned["x"] == [one.threshold]
    highest = max(slow_f1(one, at) for at in line["x"])
    assert tuned["y"] == pytest.approx([highest], rel=1e-3)
    low, high = plot["layout"]["xaxis"]["range"]
    assert low <= min(0.0, one.threshold)
    assert high >= max(0.0, one.threshold)


def many(size: int, seed: int, shift: float = 0.0) -> Answered:
    rng = np.random.default_rng(seed)
    has_answer = rng.random(size) < 0.5
    margins = rng.standard_normal(size) * 3 + np.where(has_answer, -2.0, 2.0) + shift
    return answered(margins.tolist(), np.where(has_answer, rng.random(size), 0.0).tolist(),
                    has_answer.tolist())  # fmt: skip


def test_thinning_keeps_ends_and_maximum_and_moves_no_point():
    one = many(1000, 1, shift=1.5)
    plot = read(f1_by_threshold({"trial 3": one}))
    line = named(plot, "trial 3")
    assert 150 <= len(line["x"]) <= 200
    assert line["x"] == sorted(line["x"])
    margins = np.sort(one.scores.null_margin)
    assert line["x"][0] == pytest.approx(margins[0] - 1, rel=1e-3)
    assert line["x"][-1] == pytest.approx(margins[-1], rel=1e-3)
    # Thresholds were rounded, which is why the reference is asked at the margin that was meant.
    for x, y in zip(line["x"], line["y"], strict=True):
        meant = margins[np.abs(margins - x) <= 6e-4 * max(abs(x), 1)]
        candidates = [slow_f1(one, at) for at in [*meant, x]]
        assert min(abs(y - candidate) for candidate in candidates) < 0.02, x
    best = max(slow_f1(one, at) for at in margins)
    assert max(line["y"]) == pytest.approx(best, abs=0.01)
    assert named(plot, "tuned threshold")["y"] == pytest.approx([best], abs=0.01)
    at_zero = slow_f1(one, 0.0)
    assert f"takes trial 3 from F1 {at_zero:.2f}% to {best:.2f}%" in title(plot)
    (ruler,) = plot["layout"]["shapes"]
    assert (ruler["x0"], ruler["x1"], ruler["yref"]) == (0.0, 0.0, "paper")


def test_five_lines_that_can_be_told_apart():
    trials = {f"trial {k}": many(300, k) for k in range(7)}
    plot = read(f1_by_threshold(trials))
    lines = [trace for trace in plot["data"] if trace["mode"] == "lines"]
    assert [line["name"] for line in lines] == [f"trial {k}" for k in range(5)]
    colours = [line["line"]["color"] for line in lines]
    assert len(set(colours)) == 5
    starts = start_colours([row(k, start=start) for k, start in enumerate(["a", "b", "c"])])
    assert not set(colours) & set(starts.values())
    assert named(plot, "tuned threshold")["marker"]["color"] == colours
    assert "Shown: 5 of 7 trials." in title(plot)


# ---------------------------------------------------------------------------- what matters


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[JoinedStudy]:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    file = {
        "study": {"name": "demo"},
        "data": {"train": "train.json", "validation": "validation.json"},
        "starts": {"base": "some/base", "v1": "some/v1"},
        "search": {
            "start": {"choices": ["base", "v1"]},
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "weight_decay": {"low": 0.0, "high": 0.1},
            "dropout": {"low": 0.0, "high": 0.3, "when": {"start": "base"}},
        },
        "budget": {"trials": 50},
    }
    study = StudyFile.model_validate_json(json.dumps(file))
    yield create_study(study, storage, fingerprints={"train": "a", "validation": "b"})
    storage.close()


def add(joined: JoinedStudy, count: int, f1: Callable[[dict[str, Any]], float]) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        params: dict[str, Any] = {
            "start": ["base", "v1"][int(rng.integers(2))],
            "learning_rate": float(10 ** rng.uniform(-5, -3)),
            "weight_decay": float(rng.uniform(0, 0.1)),
        }
        if params["start"] == "base":
            params["dropout"] = float(rng.uniform(0, 0.3))
        trial = create_trial(
            state=TrialState.PRUNED if number % 2 else TrialState.COMPLETE,
            params=params,
            distributions={name: joined.space.distributions[name] for name in params},
            value=f1(params),
            user_attrs={"best_f1": f1(params)},
        )
        joined.optuna_study.add_trial(trial)


def test_what_decides_is_found(joined: JoinedStudy):
    add(joined, 40, lambda params: 70 - 5 * abs(np.log10(params["learning_rate"]) + 4))
    found = importance_of(joined)
    assert found is not None
    assert next(iter(found)) == "learning_rate"
    assert found["learning_rate"] > 0.7
    assert set(found) == {"start", "learning_rate", "weight_decay"}  # dropout is conditional
    assert sum(found.values()) == pytest.approx(1)
    assert len(joined.optuna_study.get_trials()) == 40  # nothing was written


def test_pruned_trials_tell_what_matters_too(joined: JoinedStudy):
    add(joined, 40, lambda params: 70 - 5 * abs(np.log10(params["learning_rate"]) + 4))
    both = importance_of(joined)
    only = create_study(
        joined.file.model_copy(update={"study": joined.file.study.model_copy(
            update={"name": "complete"})}),
        joined.storage,
        fingerprints={"train": "a", "validation": "b"},
    )  # fmt: skip
    for trial in joined.optuna_study.get_trials(states=(TrialState.COMPLETE,)):
        only.optuna_study.add_trial(trial)
    complete = importance_of(only)
    assert both is not None
    assert complete is not None
    assert both["learning_rate"] != complete["learning_rate"]


def test_runs_with_other_seeds_are_not_trials_of_their_own(joined: JoinedStudy):
    add(joined, 20, lambda params: 70 - 5 * abs(np.log10(params["learning_rate"]) + 4))
    before = importance_of(joined)
    first = joined.optuna_study.get_trials()[7]
    for lucky in (80.0, 81.0, 82.0):
        again = create_trial(
            params=first.params,
            distributions=first.distributions,
            value=lucky,
            user_attrs={"best_f1": lucky, REPEAT_OF: first.number},
        )
        joined.optuna_study.add_trial(again)
    assert before is not None
    assert importance_of(joined) == before


@pytest.mark.parametrize(("count", "told"), [(9, False), (10, True)])
def test_few_trials_tell_nothing(joined: JoinedStudy, count: int, told: bool):
    add(joined, count, lambda params: 60 + params["weight_decay"])
    assert (importance_of(joined) is not None) is told


def test_equal_trials_tell_nothing(joined: JoinedStudy):
    assert importance_of(joined) is None
    add(joined, 20, lambda params: 60.0)
    assert importance_of(joined) is None


def test_bars_of_importances():
    plot = read(importances({"start": 0.25, "learning_rate": 0.75}))
    (bars,) = plot["data"]
    assert (bars["y"], bars["x"]) == (["learning rate", "start"], [75.0, 25.0])
    assert bars["text"] == ["75%", "25%"]
    assert plot["layout"]["yaxis"]["autorange"] == "reversed"  # the first on top
    assert "What matters most: learning rate (75%)" in title(plot)


def test_time_by_how_trials_ended():
    pruned = {"state": "PRUNED", "stop_reason": "overfitting"}
    rows = [
        row(0, train_seconds=90.0),
        row(1, train_seconds=30.0),
        row(2, train_seconds=60.0, **pruned),
        row(3, train_seconds=12.0, **pruned),
        row(4, None, train_seconds=8.0, state="PRUNED", stop_reason="diverged"),
        row(5, None, train_seconds=40.0, state="FAIL", stop_reason="oom"),
        row(6, None, train_seconds=None, state="FAIL", stop_reason="worker died"),
    ]
    plot = read(time_by_reason(rows))
    (bars,) = plot["data"]
    assert bars["y"] == ["complete (2)", "overfitting (2)", "diverged (1)", "failed (1)"]
    assert bars["x"] == [2.0, 1.2, 0.1333, 0.6667]
    # (72 + 8) of (120 + 72 + 8 + 40) seconds
    assert "33% of 4.0 minutes went into trials that were stopped early" in title(plot)
    assert "The time of 1 trial is not known." in title(plot)


# ---------------------------------------------------------------------------- all of them


def figures(rows: list[Row]) -> dict[str, Figure]:
    return {
        "losses": loss_curves(rows),
        "starts": f1_by_start(rows, baseline=rows[-1] if rows else None),
        "history": history(rows, baseline=rows[-1] if rows else None),
        "time": time_by_reason(rows),
    }


def test_a_hundred_trials_are_small():
    rng = np.random.default_rng(0)
    rows = [
        row(
            k,
            60 + float(rng.random()),
            start=["base", "v1", "v2"][k % 3],
            val_loss=rng.random(4).tolist(),
            best_f1_interval=(59.123456, 61.123456),
        )
        for k in range(100)
    ]
    sizes = {name: len(figure.to_json()) for name, figure in figures(rows).items()}
    sizes["thresholds"] = len(
        f1_by_threshold({f"trial {k}": many(3000, k) for k in range(5)}).to_json()
    )
    assert max(sizes.values()) < 20_000, sizes


def test_with_nothing_to_show():
    for figure in [*figures([]).values(), f1_by_threshold({}), importances({})]:
        assert "Nothing to show yet" in title(read(figure))
        assert len(read(figure)["data"]) == 0
    for figure in figures([row(0, None, state="FAIL", val_loss=[], train_seconds=None)]).values():
        assert "Nothing to show yet" in title(read(figure))


def test_names_from_outside_are_shown_as_they_are():
    evil = "<a href='https://example.com'>x</a>"
    rows = [row(0, start=evil), row(1, start="x" * 50)]
    everything = [*figures(rows).values(), f1_by_threshold({evil: many(50, 1)})]
    for figure in [*everything, importances({evil: 1.0})]:
        shown = json.dumps(read(figure), ensure_ascii=False)
        assert "<a" not in shown
        assert "x" * 18 not in shown
    for figure in everything[:3]:
        shown = json.dumps(read(figure), ensure_ascii=False)
        assert "&lt;a href='https:" in shown
        assert f"{'x' * 17}…" in shown
