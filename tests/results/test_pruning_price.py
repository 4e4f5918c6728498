"""What pruning saved and cost, on loss curves for which it is worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_studies import MadeStudy
from optuna.trial import TrialState

from qa_hpo.results.pruning_price import Control, pruning_price
from qa_hpo.search.pruning import is_control
from qa_hpo.search.trials import BASELINE, REPEAT_OF, STOP_REASON

# What a trial fails with.
FAILED: dict[str, Any] = {"state": TrialState.FAIL, "cause": "oom", "error": "no memory"}


@contextmanager
def study(folder: Path, seed: int = 0, **pruning: Any) -> Iterator[MadeStudy]:
    """A study in which all trials are controls and no trial is hopeless, unless told otherwise."""
    pruning = {"control_fraction": 1.0, "across": "none", "min_delta": 0.0, **pruning}
    made = MadeStudy(folder, study={"name": "made", "seed": seed}, pruning=pruning)
    yield made
    made.close()


def pruned(made: MadeStudy, reason: str, losses: list[float], epochs: int, **more: Any) -> int:
    f1 = [50.0] * len(losses)
    attrs = {STOP_REASON: reason, **more}
    return made.add(f1, losses, epochs=epochs, state=TrialState.PRUNED, **attrs)


# ---------------------------------------------------------------------------- controls


def test_controls_that_would_have_ended_as_overfitting(tmp_path: Path):
    with study(tmp_path) as made:
        # After 3 of 5 epochs, for 1.1 is above 1.0; its best F1 by then is 60, and 66 in the end.
        made.add([50.0, 60.0, 58.0, 66.0, 64.0], [1.2, 1.0, 1.1, 0.9, 0.8])
        # After 2 of 3 epochs, which cost nothing: the first epoch was the best.
        made.add([62.0, 61.0, 60.0], [1.0, 1.5, 2.0])
        # Its loss rises in the last epoch only, where there is nothing left to save.
        made.add([40.0, 50.0, 55.0], [1.0, 0.9, 1.3])
        made.add([52.0], [1.0])
        price = pruning_price(made.joined)
    assert price.controls == (
        Control(0, epochs=5, stop=3, reason="overfitting", f1=66.0, f1_lost=6.0),
        Control(1, epochs=3, stop=2, reason="overfitting", f1=62.0, f1_lost=0.0),
        Control(2, epochs=3, stop=None, reason=None, f1=55.0, f1_lost=0.0),
        Control(3, epochs=1, stop=None, reason=None, f1=52.0, f1_lost=0.0),
    )
    assert [control.epochs_saved for control in price.controls] == [2, 1, 0, 0]
    assert price.f1_lost == 1.5
    # Trial 1's 62 is what they all reach when pruned, and 66 is the best of them.
    assert price.best_lost == 4.0
    assert (price.pruned, price.epochs_trained, price.epochs_saved) == (0, 12, 0)
    assert price.share_saved == 0.0


@pytest.mark.parametrize(
    ("pruning", "losses", "stop"),
    [
        ({}, [1.0, 1.1, 0.95, 1.0, 1.05], 2),
        ({"min_delta": 0.09}, [1.0, 1.1, 0.95, 1.0, 1.05], 2),
        ({"min_delta": 0.15}, [1.0, 1.1, 0.95, 1.0, 1.05], None),
        ({"patience": 2}, [1.0, 1.1, 0.95, 1.0, 1.05, 0.9], 5),  # 0.95 was a new best
        ({"patience": 2}, [1.0, 1.1, 0.95, 1.0, 1.05], None),  # after the last epoch
    ],
)
def test_the_rule_is_that_of_the_study(
    tmp_path: Path, pruning: dict[str, Any], losses: list[float], stop: int | None
):
    with study(tmp_path, **pruning) as made:
        made.add([50.0 + epoch for epoch in range(len(losses))], losses)
        (control,) = pruning_price(made.joined).controls
    assert (control.epochs, control.stop) == (len(losses), stop)
    assert control.f1_lost == (0.0 if stop is None else len(losses) - stop)


def test_a_loss_that_is_not_finite_is_above_every_other(tmp_path: Path):
    with study(tmp_path) as made:
        made.add([50.0, 0.0, 60.0, 61.0], [1.0, None, 0.9, 0.8])
        made.add([0.0, 50.0, 60.0], [None, 1.0, 0.9])  # nothing is known to be better yet
        made.add([50.0, 60.0, 0.0], [1.0, 0.9, None])  # the last one needs no rule
        price = pruning_price(made.joined)
    assert [control.stop for control in price.controls] == [2, None, None]
    assert price.controls[0].f1_lost == 11.0


def test_controls_that_would_have_ended_at_a_look(tmp_path: Path):
    f1, losses = [50.0, 60.0, 61.0, 66.0], [1.2, 1.0, 0.9, 0.8]
    with study(tmp_path, evaluations_per_epoch=2) as made:
        # 1.1 and 1.0 are above 0.95, the loss in the middle of the second epoch; so that it would
        # have ended within the third one, with the two before, whose best F1 is 60.
        made.add(f1, losses, looks=[[1.3], [0.95], [1.1], [0.7]])
        # After the third one, as both of its losses are above 1.0.
        made.add(f1, [1.2, 1.0, 1.1, 0.8], looks=[[1.3], [1.1], [1.05], [0.7]])
        # Within the last one, which a loss at its end alone could not have saved.
        made.add(f1, [1.2, 1.0, 1.1, 0.8], looks=[[1.3], [1.1], [0.9], [None]])
        made.add(f1, losses, looks=[[1.3], [1.1], [0.95], [0.85]])
        price = pruning_price(made.joined)
    assert [(c.stop, c.reason, c.f1_lost) for c in price.controls] == [
        (2, "overfitting", 6.0),
        (3, "overfitting", 5.0),
        (3, "overfitting", 5.0),
        (None, None, 0.0),
    ]
    assert [control.epochs_saved for control in price.controls] == [2, 1, 1, 0]


def test_hopeless_at_an_epochs_end_comes_before_the_looks_after_it(tmp_path: Path):
    pruning = {"across": "median", "startup_trials": 1, "evaluations_per_epoch": 2}
    f1 = [50.0, 55.0, 58.0]
    with study(tmp_path, **pruning, warmup_epochs=1) as made:
        made.add(f1, [1.0, 0.5, 0.4], looks=[[1.1], [0.7], [0.45]])
        made.add(f1, [1.0, 0.9, 0.8], looks=[[1.1], [0.85], [1.0]])  # 1.0 and 0.9 are above 0.85
        price = pruning_price(made.joined)
    assert [(c.stop, c.reason) for c in price.controls] == [(None, None), (2, "hopeless")]


def test_controls_that_would_have_been_hopeless_beside_the_others(tmp_path: Path):
    """Of 3-epoch trials the losses after 2 epochs are 0.5, 0.8 and 0.9."""
    with study(tmp_path, across="median", startup_trials=2, warmup_epochs=1) as made:
        f1 = [50.0, 55.0, 58.0]
        made.add(f1, [1.0, 0.5, 0.4])
        # Its best is worse than 0.7, the median of 0.5 and 0.9. Counted among its own measures it
        # would be the median, and go on.
        made.add(f1, [1.0, 0.8, 0.7])
        made.add(f1, [1.0, 0.9, 0.8])  # worse than 0.65
        # Other horizons are no measure, and of those there is only this one.
        made.add([50.0, 55.0, 58.0, 59.0], [2.0, 1.9, 1.8, 1.7])
        price = pruning_price(made.joined)
    assert [(c.stop, c.reason) for c in price.controls] == [
        (None, None),
        (2, "hopeless"),
        (2, "hopeless"),
        (None, None),
    ]
    assert [control.f1_lost for control in price.controls] == [0.0, 3.0, 3.0, 0.0]
    assert [control.epochs_saved for control in price.controls] == [0, 1, 1, 0]
    assert price.best_lost == 0.0


def test_pruned_trials_are_no_measure_and_some_must_have_finished(tmp_path: Path):
    with study(tmp_path, across="median", startup_trials=2, warmup_epochs=1) as made:
        for _ in range(2):
            pruned(made, "overfitting", [0.1, 0.1], 3)
        made.add([50.0, 55.0, 58.0], [1.0, 0.9, 0.8])
        made.add([50.0, 55.0, 58.0], [1.0, 0.5, 0.4])
        stops = [control.stop for control in pruning_price(made.joined).controls]
        assert stops == [None, None]  # beside either there is one
        made.add([50.0, 55.0, 58.0], [1.0, 0.6, 0.4])
        stops = [control.stop for control in pruning_price(made.joined).controls]
    # Beside it 0.5 and 0.6; beside the last one 0.9 and 0.5.
    assert stops == [2, None, None]


def test_controls_climb_hyperbands_rungs_as_trials_do(tmp_path: Path):
    """Of the study's 8 epochs at most, the rungs are after epochs 1 and 3.

    Trials 0, 1, 5 and 7 are in the bracket that has both, the others in that which has the latter.
    Of three at a rung one goes on, of two the better one.
    """
    with study(tmp_path, across="hyperband", patience=8) as made:
        rungs = [(-0.6, -0.3), (-0.7,), (-0.1,), (), ()]
        for reached in rungs:
            attrs = {f"completed_rung_{rung}": value for rung, value in enumerate(reached)}
            pruned(made, "hopeless", [1.0], 4, system_attrs=attrs)
        f1 = [50.0, 51.0, 52.0, 53.0]
        # The best after epoch 1; epoch 2 is no rung; after epoch 3 worse than trial 0.
        made.add(f1, [0.5, 0.9, 0.4, 0.3])
        made.add(f1, [9.0, 9.0, 0.2, 0.1])  # after epoch 3 worse than trial 2
        made.add(f1, [0.65, 0.1, 0.1, 0.1])  # after epoch 1 worse than trial 0
        stored = [trial.system_attrs for trial in made.joined.optuna_study.get_trials()]
        price = pruning_price(made.joined)
        study_again = made.joined_again().optuna_study
        assert [trial.system_attrs for trial in study_again.get_trials()] == stored
    assert [(control.number, control.stop) for control in price.controls] == [
        (5, 3),
        (6, 3),
        (7, 1),
    ]
    assert {control.reason for control in price.controls} == {"hopeless"}
    assert [control.f1_lost for control in price.controls] == [1.0, 1.0, 3.0]


# ---------------------------------------------------------------------------- which are controls


def test_a_fraction_of_the_trials_are_controls(tmp_path: Path):
    controls = [number for number in range(6) if is_control(5, number, 0.5)]
    assert 0 < len(controls) < 6  # else the seed is of no use here
    with study(tmp_path, seed=5, control_fraction=0.5) as made:
        for _ in range(6):
            made.add([50.0, 60.0, 55.0], [1.0, 1.1, 0.9])
        price = pruning_price(made.joined)
    assert [control.number for control in price.controls] == controls


def test_without_controls_nothing_is_known_of_the_cost(tmp_path: Path):
    with study(tmp_path, control_fraction=0.0) as made:
        made.add([50.0, 60.0], [1.0, 0.9])
        pruned(made, "overfitting", [1.0, 1.1], 5)
        price = pruning_price(made.joined)
    assert price.controls == ()
    assert (price.f1_lost, price.best_lost) == (None, None)
    assert (price.pruned, price.epochs_saved, price.epochs_trained) == (1, 3, 4)


def test_of_an_empty_study_nothing_is_saved(tmp_path: Path):
    with study(tmp_path) as made:
        price = pruning_price(made.joined)
    assert (price.pruned, price.epochs_trained, price.epochs_saved) == (0, 0, 0)
    assert (price.share_saved, price.f1_lost) == (0.0, None)


def test_failed_and_running_trials_and_repeats_are_no_controls(tmp_path: Path):
    rising = ([50.0, 60.0, 55.0], [1.0, 1.1, 0.9])
    with study(tmp_path) as made:
        made.add(*rising, **FAILED)
        made.add(*rising, state=TrialState.RUNNING)
        first = made.add(*rising, **{BASELINE: "notebook"})
        made.add(*rising, **{REPEAT_OF: first})
        price = pruning_price(made.joined)
    assert [control.number for control in price.controls] == [first]
    assert price.epochs_trained == 6  # those of the finished trials


def test_a_retry_is_a_control_where_its_first_attempt_was(tmp_path: Path):
    assert [is_control(3, number, 0.5) for number in range(4)] == [True, False, False, True]
    with study(tmp_path, seed=3, control_fraction=0.5) as made:
        for _ in range(2):
            made.add([50.0], [1.0], **FAILED)
        for first in range(2):
            attrs = {"failed_trial": first}
            made.add([50.0, 60.0], [1.0, 0.9], system_attrs=attrs)
        price = pruning_price(made.joined)
    assert [control.number for control in price.controls] == [2]


# ---------------------------------------------------------------------------- what was saved


def test_the_epochs_that_pruned_trials_had_left_are_saved(tmp_path: Path):
    with study(tmp_path) as made:
        pruned(made, "overfitting", [1.0, 0.9, 1.1], 8)  # 5 left
        pruned(made, "hopeless", [1.0, 0.9], 3)  # 1
        pruned(made, "diverged", [9.0], 4)  # 3
        pruned(made, "budget", [1.0, 0.9], 8)  # not for its losses
        made.add([50.0] * 4)
        made.add([50.0] * 5, epochs=8, **FAILED)
        price = pruning_price(made.joined)
    assert price.pruned == 3
    assert price.epochs_saved == 9
    assert price.epochs_trained == 3 + 2 + 1 + 2 + 4
    assert price.share_saved == 9 / 21
    assert [control.number for control in price.controls] == [4]
