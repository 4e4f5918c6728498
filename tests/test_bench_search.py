"""The search benchmark's sides do the search that was asked for, and its figures are theirs."""

import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import report, search
from bench.training_data import TrainingMaterial

from qa_hpo.demo import BASE, write_demo

PAIRS, TRIALS = 2, 2


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A few questions of the demo, in windows so short that some contexts take several."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return TrainingMaterial(
        "the demo",
        str(BASE),
        str(folder / "train-v2.json"),
        str(folder / "validation-v2.json"),
        train_limit=24,
        validation_limit=12,
        max_length=96,
        doc_stride=24,
        learning_rate=5e-4,
    )


def settings():
    return torch.get_num_threads(), optuna.logging.get_verbosity()


@pytest.fixture(scope="module")
def contest(material, tmp_path_factory):
    before = settings()
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        patch.setenv("QA_HPO_CACHE", str(scratch / "not this one"))
        done = search.compete(material, PAIRS, TRIALS, threads=1)
        assert os.environ["QA_HPO_CACHE"] == str(scratch / "not this one")
    assert settings() == before
    assert list(scratch.iterdir()) == []
    return done


def test_both_sides_run_the_trials_asked_for(contest):
    for side in (contest.theirs, contest.ours):
        assert [outcome.trials for outcome in side] == [TRIALS] * PAIRS
        assert [outcome.epochs for outcome in side] == [search.EPOCHS * TRIALS] * PAIRS
    for watches in (contest.comparison.baseline, contest.comparison.ours):
        assert all(watch.total > 0 for watch in watches)


def test_answers_compared_are_those_of_the_searches_best_trials(contest):
    for outcome in contest.ours:
        assert outcome.f1.mean() == pytest.approx(outcome.best, abs=1e-6)
    for outcome in contest.theirs:
        # The official sweep may part questions of one margin, and credits no empty span.
        assert outcome.f1.mean() == pytest.approx(outcome.best, abs=100 / 12)


def test_the_finding(material, contest, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(search, "compete", lambda *_: contest)
    finding = search.run(PAIRS, material=material, trials=TRIALS, threads=1)

    fields = finding.fields
    assert set(fields) == {
        *("median", "min", "max", "pairs"),
        *("best_f1_difference", "best_f1_interval"),
    }
    assert 0 < fields["min"] <= fields["median"] <= fields["max"]
    assert fields["pairs"] == PAIRS
    assert fields["best_f1_difference"] == pytest.approx(
        np.mean([o.f1.mean() for o in contest.ours])
        - np.mean([t.f1.mean() for t in contest.theirs]),
        abs=0.01,
    )
    low, high = fields["best_f1_interval"]
    assert low <= high
    verdict = "ours is not lower beyond" if high >= 0 else "ours is lower beyond"
    assert verdict in finding.body
    assert finding.body.startswith("## search_vs_trainer\n")
    assert not re.search(r"(?<![\w.])/\w+/", finding.body), "an absolute path"
    report.write_finding(tmp_path, "search_vs_trainer", finding)
    assert "search_vs_trainer on the demo" in capsys.readouterr().out


# ---------------------------------------------------------------------------- the bootstrap


GROUPS = np.array([7, 7, 7, 2, 2, 5])


@pytest.mark.parametrize("shift", [0.0, 12.5, -0.25])
def test_a_constant_difference_is_certain(shift):
    found = search.bootstrap(np.full(6, shift), GROUPS)
    assert (found.mean, found.low, found.high) == (shift, shift, shift)


def test_articles_are_drawn_whole():
    """Two articles of 1 and 3 questions: a draw has both, or one of them twice."""
    differences, groups = np.array([4.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 1])
    found = search.bootstrap(differences, groups)
    # Means of 4 (a quarter of the draws), of 1 (half) and of 0 (a quarter).
    assert (found.mean, found.low, found.high) == (1.0, 0.0, 4.0)


def test_an_interval_is_that_of_the_articles_means():
    """Of many articles of one size, the mean's standard error, from their spread."""
    draws = np.random.default_rng(3).normal(1.0, 2.0, size=(400, 1))
    found = search.bootstrap(np.repeat(draws, 5), np.repeat(np.arange(400), 5))
    error = 1.96 * draws.std() / np.sqrt(400)
    assert found.low == pytest.approx(found.mean - error, abs=0.15 * error)
    assert found.high == pytest.approx(found.mean + error, abs=0.15 * error)


def test_the_interval_decides():
    assert search.Difference(-1.0, -2.0, 0.0).verdict == "ours is not lower beyond the interval"
    assert search.Difference(-1.0, -2.0, -0.1).verdict == "ours is lower beyond the interval"
