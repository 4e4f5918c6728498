"""Recorded curves, and searches replayed on them: by hand, and as on a real database."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import strategies
from bench.curves.memory import open_memory
from bench.curves.record import record
from bench.curves.simulate import Curves, Strategy, simulate
from bench.curves.table import Curve, grid, read_curves, write_rows
from bench.curves.top_k import random_curves, top_k
from bench.price import price_table, prices, stop_of

from qa_hpo.config import StudyFile
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.search.pruning import OverfittingRule
from qa_hpo.search.storage import open_storage

EPOCHS = 4
FULL = {"across": "none", "patience": 99}


def study(**search) -> StudyFile:
    return StudyFile.from_dict(
        {
            "study": {"name": "made-up", "seed": 1},
            "data": {"train": "t.json", "validation": "v.json", "max_length": 384},
            "starts": {"base": "b", "v1": "v"},
            "search": {
                "start": {"choices": ["base", "v1"]},
                "learning_rate": {"choices": [1e-4, 1e-3, 1e-2]},
                **search,
            },
            "training": {"epochs": EPOCHS},
            "budget": {"trials": 1},
        }
    )


def curve(point, f1, *, seed=0, seconds=1.0, losses=None) -> Curve:
    """A run with these scores, one for each epoch."""
    losses = losses or [1.0] * len(f1)
    names = ("f1", "exact", "best_exact", "best_f1_thresh", "crossfit_f1")
    records = tuple(
        EpochRecord(n, 0.5, seconds, 0.1, loss, {**dict.fromkeys(names, 1.0), "best_f1": score})
        for n, (score, loss) in enumerate(zip(f1, losses, strict=True), start=1)
    )
    return Curve(point, seed, records)


def made_up(seconds: float = 1.0) -> Curves:
    """Six points whose scores rise; the best is v1 with the middle learning rate."""
    file = study()
    best = dict(zip(grid(file), (50, 60, 40, 55, 80, 45), strict=True))
    return Curves(
        file,
        [
            curve(point, [top - 9, top - 6, top - 3, top], seconds=seconds)
            for point, top in best.items()
        ],
    )


def test_a_table_is_read_as_it_was_written(tmp_path):
    file = study()
    points = grid(file)
    assert len(points) == 6
    assert dict(points[1]) == {"start": "base", "learning_rate": 1e-3}
    curves = [curve(points[1], [50.0, 60.5]), curve(points[4], [70.25], seed=1)]
    path = tmp_path / "table.csv"
    for one in curves:
        write_rows(path, file, [one])
    assert read_curves(path, file) == curves
    other = study(warmup={"choices": [0.0, 0.1]})
    with pytest.raises(ValueError, match=r"table.csv: line 2: not of the grid"):
        read_curves(path, other)
    with pytest.raises(ValueError, match=r"search.dropout: .* not of a range"):
        grid(study(dropout={"low": 0.0, "high": 0.1}))


def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(
        """
study = { name = "tiny", seed = 3 }
data = { train = "storage/demo/train-v2.json", validation = "storage/demo/validation-v2.json", \
max_length = 128, train_limit = 16, validation_limit = 30 }
starts = { base = "storage/demo/base" }
search.learning_rate.choices = [1e-4, 1e-3]
training = { epochs = 2, doc_stride = 32 }
evaluation = { doc_stride = 32 }
budget = { trials = 1 }
"""
    )
    path, table = tmp_path / "study.toml", tmp_path / "table.csv"
    record(path, table, seeds=2, processes=1)
    file = StudyFile.from_toml(path)
    whole = read_curves(table, file)
    assert {(dict(c.point)["learning_rate"], c.seed) for c in whole} == {
        (rate, seed) for rate in (1e-4, 1e-3) for seed in (0, 1)
    }
    assert all([r.epoch for r in c.records] == [1, 2] for c in whole)
    assert len({c.records[1].val_loss for c in whole}) == 4
    # All but the last run, as if it had been interrupted there.
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-2]))
    record(path, table, seeds=2, processes=1)
    again = read_curves(table, file)
    assert [(c.point, c.seed, [r.val_loss for r in c.records]) for c in again] == [
        (c.point, c.seed, [r.val_loss for r in c.records]) for c in whole
    ]


def test_workers_for_which_nothing_is_left_are_not_idle():
    # Three workers, four trials of four epochs of one second: the last trial is handed out at 4 s.
    curves = made_up()
    strategy = Strategy("grid", FULL, "grid")
    trace = simulate(curves, strategy, seed=0, workers=3, epochs=16)
    assert trace.steps[-1].seconds == pytest.approx(8.0)
    assert trace.utilisation == pytest.approx(1.0)


def test_points_are_found_by_the_nearest_learning_rate():
    curves = made_up()

    def found(rate):
        return dict(curves.near({"start": "base", "learning_rate": rate}, 0).point)["learning_rate"]

    assert [found(rate) for rate in (1e-4, 3.1e-4, 3.2e-4, 5e-3)] == [1e-4, 1e-4, 1e-3, 1e-2]


def test_all_epochs_of_every_point_by_hand():
    # Two workers, six trials of four epochs of one second: the clock ends at 12 s, both busy.
    curves = made_up()
    trace = simulate(curves, Strategy("grid", FULL, "grid"), seed=0, workers=2, epochs=24)
    assert len(trace.steps) == 24
    assert trace.steps[-1].seconds == pytest.approx(12.0)
    assert {step.trial for step in trace.steps} == set(range(6))
    assert trace.utilisation == pytest.approx(1.0)
    assert trace.steps[-1].best_f1 == 80
    reached = trace.epochs_to(79.9)
    assert trace.steps[int(reached) - 1].best_f1 == 80
    assert trace.steps[int(reached) - 2].best_f1 < 79.9
    assert trace.epochs_to(80.1) == math.inf
    assert trace.best_after(24) == trace.best_after(99) == 80


def test_promotion_by_hand():
    curves = made_up()
    pruning = {"across": "promote", "reduction_factor": 3, "patience": 99}
    strategy = Strategy("promote", pruning, "grid")
    trace = simulate(curves, strategy, seed=0, workers=1, epochs=12)
    # The order of chance begins with what comes to 55, 45 and 50 in the end, or 9 less after an
    # epoch. The best third of three, the first, goes on to epoch 3, and so do the fourth (60), the
    # best of four, and the sixth (80), the best of six.
    assert [step.trial for step in trace.steps] == [0, 1, 2, 0, 0, 3, 3, 3, 4, 5, 5, 5]
    assert trace.steps[-1].best_f1 == 77  # of the best point, after three epochs


@pytest.mark.parametrize("across", ["none", "median", "hyperband", "promote"])
def test_a_search_in_memory_is_that_on_a_real_database(tmp_path, across):
    curves = made_up()
    strategy = Strategy("some", {"across": across, "min_delta": 0.02})
    opened = []

    def database():
        opened.append(open_storage(f"sqlite:///{tmp_path}/{len(opened)}.db", create=True))
        return opened[-1]

    def memory():
        opened.append(open_memory())
        return opened[-1]

    def searched(storage):
        return simulate(curves, strategy, seed=3, workers=3, epochs=36, opened=storage)

    assert searched(database) == searched(memory)
    trials = [
        [(t.state, t.params, t.values, t.user_attrs.get("stop_reason")) for t in each]
        for each in (s.rdb.get_all_trials(s.rdb.get_all_studies()[0]._study_id) for s in opened)
    ]
    assert trials[0] == trials[1]
    assert {trial[0] for trial in trials[0]} <= {TrialState.COMPLETE, TrialState.PRUNED}
    opened[0].close()


def test_one_epoch_then_the_best_by_hand():
    curves = made_up(seconds=2.0)
    # Eight points for an epoch, then the best one for three more; two workers.
    trace = top_k(random_curves(curves, 4, 11), 1, horizon=4, workers=2, epochs=11)
    assert len(trace.steps) == 11
    assert trace.steps[7].seconds == 8.0
    assert trace.steps[-1].seconds == 8.0 + 6.0
    assert trace.steps[-1].best_f1 == trace.steps[7].best_f1 + 9
    assert trace.utilisation == pytest.approx(22 / 28)


def test_what_the_rule_costs_by_hand():
    file = study()
    first, second = grid(file)[:2]
    falling = curve(first, [50, 55, 60, 70], losses=[1.0, 0.9, 0.8, 0.7])
    rising = curve(second, [60, 62, 61, 66], losses=[1.0, 1.3, 1.05, 1.4])
    assert [stop_of(c, OverfittingRule(1, 0.1)) for c in (falling, rising)] == [4, 2]
    assert [stop_of(c, OverfittingRule(2, 0.0)) for c in (falling, rising)] == [4, 3]
    curves = Curves(file, [falling, rising])
    price = {(p.patience, p.min_delta): p for p in prices(curves)}[1, 0.1]
    assert (price.stopped, price.share_saved) == (0.5, pytest.approx(2 / 8))
    assert price.f1_lost == pytest.approx((66 - 62) / 2)
    assert price.best_lost == 0  # the best run is the other one
    (default,) = (p for p in prices(curves) if p.is_default)
    assert f"| {default.patience} (default) |" in price_table(prices(curves), curves)


def test_ratios_of_medians():
    epochs = np.arange(1, 61)
    ours = np.array([epochs >= first for first in (10, 20, 30)])
    theirs = np.array([epochs >= first for first in (40, 40, math.inf)])
    ratio, low, high = strategies.median_ratio(ours, theirs)
    assert ratio == 0.5
    assert low <= ratio <= high


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "EPOCHS", 36)
    monkeypatch.setattr(strategies, "RANDOM_EPOCHS", 60)
    monkeypatch.setattr(strategies, "BUDGETS", (12, 24))
    monkeypatch.setattr(strategies, "TOP_K_BUDGETS", (12, 24, 36))
    monkeypatch.setattr(strategies, "PLOT", tmp_path / "images" / "search.svg")
    curves = made_up()
    monkeypatch.setattr(strategies, "_curves", lambda: curves)
    outcomes = {
        (name, 2): strategies._outcome([strategies._search((name, n, 2)) for n in (0, 1)], 80.0)
        for name in (
            *(s.name for s in strategies.STRATEGIES),
            *(f"one epoch, then top {k}" for k in strategies.TOP_K),
        )
    }
    fields = {**strategies._fields(outcomes, [2]), "utilisation_64": 0.987}
    page = strategies._body(outcomes, fields, [2], curves)
    assert "98.7%" in page
    assert fields["strategy"] in strategies.OURS
    assert fields["best_peer"] in strategies.PEERS
    assert f"{fields['epochs_vs_random_full']:.2f} times" in page
    strategies.draw(outcomes, [2])
    assert "<svg" in strategies.PLOT.read_text()
