"""What results tell of a study that promotes its trials, worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_studies import MadeStudy
from optuna.trial import TrialState

from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.results.notes import study_note, trial_note
from qa_hpo.results.pruning_price import Control, pruning_price
from qa_hpo.results.report_data import study_report
from qa_hpo.results.report_words import answer, standing
from qa_hpo.search.trials import STOP_REASON

SEARCH = {
    "start": {"choices": ["base", "v1", "v2"]},
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "epochs": {"value": 4},
}


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MadeStudy]:
    """A study with rungs after 1 and 2 of 4 epochs, and the share of controls of the test."""
    pruning = {"across": "promote", "reduction_factor": 2, "control_fraction": request.param}
    study = MadeStudy(tmp_path, search=SEARCH, pruning=pruning)
    yield study
    study.close()


def hopeless(made: MadeStudy, *f1: float) -> int:
    reason: dict[str, Any] = {STOP_REASON: "hopeless"}
    return made.add(f1, epochs=4, state=TrialState.PRUNED, **reason)


@pytest.mark.parametrize("made", [1.0], indirect=True)
def test_what_promotion_would_have_cost_its_controls(made: MadeStudy):
    made.add([50.0, 60.0, 61.0, 66.0])
    made.add([55.0, 56.0, 57.0, 58.0])
    made.add([40.0, 70.0, 71.0, 80.0])
    made.add([45.0, 46.0, 47.0, 48.0])
    # After 1 epoch the better half is 1 and 0; after 2, of all four, 2 and 0.
    assert pruning_price(made.joined).controls == (
        Control(0, epochs=4, stop=None, reason=None, f1=66.0, f1_lost=0.0),
        Control(1, epochs=4, stop=2, reason="hopeless", f1=58.0, f1_lost=2.0),
        Control(2, epochs=4, stop=1, reason="hopeless", f1=80.0, f1_lost=40.0),
        Control(3, epochs=4, stop=1, reason="hopeless", f1=48.0, f1_lost=3.0),
    )
    # One more with 52 after an epoch: the best two of five are 1 and that one.
    hopeless(made, 52.0)
    # And one of another kind, whose loss rises before its rung says anything.
    made.add([90.0, 91.0, 92.0, 93.0], [1.0, 1.5, 0.9, 0.8])
    price = pruning_price(made.joined)
    assert [(c.stop, c.reason) for c in price.controls] == [
        (1, "hopeless"),  # 90, 55 and 52 are ahead
        (2, "hopeless"),
        (1, "hopeless"),
        (1, "hopeless"),
        (2, "overfitting"),
    ]
    assert price.f1_lost == (16.0 + 2.0 + 40.0 + 3.0 + 2.0) / 5
    assert (price.pruned, price.epochs_saved) == (1, 3)


@pytest.mark.parametrize("made", [0.0], indirect=True)
def test_the_words_of_what_ended_at_a_rung(made: MadeStudy):
    first, second = hopeless(made, 61.0), hopeless(made, 51.0, 52.0)
    trials = made.joined.optuna_study.trials
    for number, epochs in ((first, "1 epoch"), (second, "2 epochs")):
        assert (
            f"it was hopeless. Too many other trials were ahead of it after {epochs}. It competes"
        ) in trial_note(made.joined, trials[number])
    (winner,) = [p.text for p in answer(study_report(made.joined)) if p.title == "The winner"]
    assert winner.endswith(
        "It was stopped after epoch 1 (PRUNED, hopeless): "
        "too many other trials were ahead after 1 epoch."
    )


@pytest.mark.parametrize("made", [0.0], indirect=True)
def test_who_waits_at_a_rung_is_told(made: MadeStudy):
    made.add([50.0, 51.0, 52.0, 53.0])
    for f1 in ([61.0], [62.0], [63.0, 64.0], [65.0, 66.0, 67.0]):
        made.add(f1, epochs=4, state=TrialState.WAITING)
    assert standing(study_report(made.joined)) == (
        "1 trial: 1 complete. The search goes on: 0 running, 1 waiting, 3 waiting at a rung. "
        "What follows may change."
    )
    note = study_note(made.joined, leaderboard(made.joined))
    assert "Failed: 0, running: 0, waiting: 1, at a rung: 3." in note
