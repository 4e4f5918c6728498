"""Trials that are looked at within epochs: what ends them there, and what is left of them."""

import contextlib
import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import Runtime
from qa_hpo.finetune import trainer as trainer_module
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.finetune.records import EpochRecord, Look
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import RunPaths
from qa_hpo.results.select import exported_trial, run_config
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.budget import spent
from qa_hpo.search.keeping import _epoch_table
from qa_hpo.search.objective import Objective, _EpochTeller
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import epoch_records, record_epoch
from tiny import study_file

# A few questions, learnt by heart: the validation loss falls, and rises within the fourth epoch.
BY_HEART: dict[str, Any] = {
    "data": {"train_limit": 24},
    "search": {"learning_rate": {"value": 5e-3}, "epochs": {"value": 8}},
    "training": {"batch_size": 8},
}


@pytest.fixture
def objective(tiny: Path, inputs: Inputs, tmp_path: Path) -> Iterator[Any]:
    """Makes objectives on studies in a real database."""
    with contextlib.ExitStack() as stack:

        def made(name: str = "tiny", **sections: Any) -> Objective:
            sections = {"study": {"name": name}, **sections}
            if "pruning" in sections:
                rules = {"across": "median", "min_delta": 0.0}
                sections["pruning"] = {**rules, **sections["pruning"]}
            file = study_file(tiny, tmp_path / "artifacts", **sections)
            storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
            stack.callback(storage.close)
            joined = create_study(file, storage, fingerprints=fingerprints(file, inputs))
            return Objective(joined, inputs, Runtime(cpu_threads=1))

        yield made


def take(objective: Objective) -> Asked:
    asked = ask(objective.joined, worker="me")
    assert isinstance(asked, Asked)
    return asked


def run(objective: Objective) -> FrozenTrial:
    asked = take(objective)
    objective.run(asked)
    objective.collect()
    return objective.joined.optuna_study.trials[asked.trial.number]


def measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in r.items() if "seconds" not in key} for r in records]


def curve(trial: FrozenTrial) -> list[tuple[float, float]]:
    """Position and loss of each evaluation of a trial, in their order."""
    return [
        (position, loss)
        for record in epoch_records(trial)
        for position, loss in [*record.get("looks", ()), (record["epoch"], record["val_loss"])]
    ]


def end(points: list[tuple[float, float]], in_a_row: int) -> float:
    """Where so many losses in a row are above the best before them."""
    best, above = math.inf, 0
    for position, loss in points:
        above = above + 1 if loss > best else 0
        best = min(best, loss)
        if above == in_a_row:
            return position
    raise AssertionError(points)


# ---------------------------------------------------------------------------- overfitting


def test_overfitting_within_an_epoch(objective: Any) -> None:
    pruning = {"evaluations_per_epoch": 3}
    control = run(objective("control", **BY_HEART, pruning={"control_fraction": 1.0, **pruning}))
    assert control.state is TrialState.COMPLETE
    assert "looks" not in control.user_attrs
    points = curve(control)
    assert len(points) == 8 * 3

    blind = run(objective("blind", **BY_HEART))
    at_ends = end([point for point in points if point[0] % 1 == 0], 1)
    assert [record["epoch"] for record in epoch_records(blind)][-1] == at_ends

    some = objective("seeing", **BY_HEART, pruning=pruning)
    trial = run(some)
    where = end(points, 3)
    done = int(where)
    assert done < where < at_ends  # within an epoch, before it shows at an epoch's end
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs["stop_reason"] == "overfitting"
    assert measured(epoch_records(trial)) == measured(epoch_records(control))[:done]
    # The epoch that was cut off is told of, and is none that was trained.
    cut = [list(point) for point in points if done < point[0] <= where]
    assert trial.user_attrs["looks"] == cut
    assert spent(some.joined.optuna_study).epochs == done
    assert set(trial.intermediate_values) == set(range(1, done + 1))
    assert trial.value == max(record["best_f1"] for record in epoch_records(trial))
    with exported_trial(some.joined, trial.number) as export:
        assert [record.epoch for record in export.records] == list(range(1, done + 1))

    # Its table has a row for each epoch, and no place for looks.
    table = _epoch_table([EpochRecord.from_dict(record) for record in epoch_records(trial)])
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, done + 1)]
    assert "looks" not in rows[0]


def test_a_trial_with_looks_can_be_run_again(
    objective: Any, inputs: Inputs, tmp_path: Path
) -> None:
    some = objective(**BY_HEART, pruning={"evaluations_per_epoch": 2})
    trial = run(some)
    config = run_config(some.joined, trial)
    assert config.run.evaluations_per_epoch == 2
    again = fine_tune(config, tmp_path / "again", inputs=inputs)
    assert measured([r.as_dict() for r in again.records]) == measured(epoch_records(trial))


def seen(*losses: list[float | None]) -> list[EpochRecord]:
    """Records of epochs with these losses, the last of each at its end."""
    return [
        EpochRecord(
            epoch, 1.0, 1.0, 1.0, own[-1], {},
            tuple(Look(epoch - 1 + n / len(own), loss) for n, loss in enumerate(own[:-1], 1)),
        )
        for epoch, own in enumerate(losses, 1)
    ]  # fmt: skip


def looks(*losses: float | None, after: int = 2) -> list[Look]:
    return [Look(after + n / 10, loss) for n, loss in enumerate(losses, 1)]


def test_patience_is_in_epochs(objective: Any) -> None:
    some = objective(pruning={"evaluations_per_epoch": 2})
    asked, rules = take(some), some.rules
    # Two in a row, of which the first is at an epoch's end.
    before = seen([3.0, 2.0], [1.5, 1.6])
    assert rules.reason(asked, before) is None
    assert rules.at_look(asked, before, looks(1.7)) == "overfitting"
    assert rules.at_look(asked, before, looks(1.5)) is None
    # ... and at an epoch's end, of which both are within it.
    assert rules.reason(asked, seen([3.0, 2.0], [2.1, 2.2])) == "overfitting"
    assert rules.reason(asked, seen([3.0, 2.0], [2.1, 1.95])) is None
    # A loss that was low within an epoch does not put off what the ends of epochs show.
    assert rules.reason(asked, seen([3.0, 2.0], [1.9, 2.2])) == "overfitting"
    assert rules.reason(asked, seen([3.0, 2.0], [1.9, 2.0])) is None
    # A trial's first epoch is never too much.
    assert rules.at_look(asked, [], looks(1.0, after=0)) is None
    assert rules.at_look(asked, [], looks(1.0, 2.0, after=0)) is None


def test_an_epoch_of_few_steps_has_the_patience_of_its_own(objective: Any) -> None:
    some = objective(pruning={"evaluations_per_epoch": 50})
    asked, rules = take(some), some.rules
    assert rules.at_look(asked, seen([3.0, 2.0], [1.5, 1.6]), looks(1.7)) == "overfitting"
    assert rules.reason(asked, seen([2.0], [2.1])) == "overfitting"


def test_a_control_is_only_ended_where_it_diverges(objective: Any) -> None:
    some = objective(pruning={"evaluations_per_epoch": 2, "control_fraction": 1.0})
    asked, rules = take(some), some.rules
    before = seen([3.0, 2.0], [1.5, 1.6])
    assert rules.at_look(asked, before, looks(1.7)) is None
    assert rules.at_look(asked, before, looks(math.nan)) == "diverged"
    assert rules.at_look(asked, before, looks(3.7)) == "diverged"  # ln(40) is 3.689


def test_the_budget_is_a_matter_of_epochs_ends(objective: Any) -> None:
    some = objective(budget={"hours": 1e-9}, pruning={"evaluations_per_epoch": 2})
    asked = take(some)
    before = seen([3.0, 2.0])
    assert some.rules.at_look(asked, before, looks(1.9, after=1)) is None
    assert some.rules.reason(asked, before) == "budget"


# ---------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence_at_once(
    objective: Any, loss: float | None
) -> None:
    some = objective(pruning={"evaluations_per_epoch": 2})
    asked = take(some)
    assert some.rules.at_look(asked, [], looks(loss, after=0)) == "diverged"


def test_a_fresh_head_may_be_worse_than_guessing_within_its_first_epoch(objective: Any) -> None:
    some = objective(pruning={"evaluations_per_epoch": 2})
    asked = take(some)
    assert some.rules.at_look(asked, [], looks(3.7, after=0)) is None  # ln(40) is 3.689
    assert some.rules.at_look(asked, seen([3.7, 3.0]), looks(3.7, after=1)) == "diverged"
    assert some.rules.at_look(asked, seen([3.7, 3.0]), looks(3.68, after=1)) is None


def test_a_trial_that_diverges_within_an_epoch(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = objective(budget={"epochs": 9}, pruning={"evaluations_per_epoch": 2})
    own = trainer_module.mean_loss
    calls = 0

    def poisoned(*arguments: Any, **options: Any) -> float:
        nonlocal calls
        calls += 1
        return own(*arguments, **options) * (math.nan if calls > 1 else 1)

    monkeypatch.setattr(trainer_module, "mean_loss", poisoned)
    late, early = run(some), run(some)
    assert [late.user_attrs["stop_reason"], early.user_attrs["stop_reason"]] == ["diverged"] * 2
    assert late.state is early.state is TrialState.PRUNED
    assert [record["epoch"] for record in epoch_records(late)] == [1]
    assert late.value == late.user_attrs["best_f1"]
    ((position, loss),) = late.user_attrs["looks"]
    assert 1 < position < 2
    assert loss is None
    # Within its first epoch: there is nothing to compete with.
    assert (epoch_records(early), early.value) == ([], None)
    assert "best_f1" not in early.user_attrs
    assert calls == 3


# ---------------------------------------------------------------------------- going on


class EnoughError(Exception):
    pass


def test_a_trial_that_goes_on_ends_where_it_would_have_ended(objective: Any) -> None:
    """After an interruption within an epoch the rule sees the losses that it would have seen."""
    pruning = {"evaluations_per_epoch": 3}
    whole = run(objective("whole", **BY_HEART, pruning=pruning))
    some = objective("interrupted", **BY_HEART, pruning=pruning)
    asked = take(some)
    looked: list[float] = []
    own = some.rules.at_look

    def at_look(asked: Asked, records: Any, looks: Any) -> str | None:
        looked.append(looks[-1].position)
        reason: str | None = own(asked, records, looks)
        return reason

    def check() -> None:
        if looked and looked[-1] > 2.5:
            raise EnoughError

    some.rules.at_look, some.check = at_look, check
    with pytest.raises(EnoughError):
        some.run(asked)
    some.check = lambda: None
    now = some.joined.optuna_study.trials[asked.trial.number]
    assert [record["epoch"] for record in epoch_records(now)] == [1, 2]
    looked.clear()
    some.run(Asked(**{**vars(asked), "trial": now}))
    assert min(looked) > 2
    trial = some.joined.optuna_study.trials[asked.trial.number]
    assert trial.user_attrs["stop_reason"] == whole.user_attrs["stop_reason"] == "overfitting"
    assert measured(epoch_records(trial)) == measured(epoch_records(whole))
    assert trial.user_attrs["looks"] == whole.user_attrs["looks"]


def test_looks_of_epochs_that_are_known_decide_nothing(objective: Any, tmp_path: Path) -> None:
    """A trial whose resume state is gone begins anew, with its records at hand."""
    some = objective(pruning={"evaluations_per_epoch": 2})
    asked = take(some)
    for record in seen([3.0, 2.0], [1.9, 1.8]):
        record_epoch(some.joined, asked.trial, record.as_dict())
    now = some.joined.optuna_study.trials[asked.trial.number]
    teller = _EpochTeller(some, Asked(**{**vars(asked), "trial": now}), RunPaths(tmp_path))
    assert teller.records == seen([3.0, 2.0], [1.9, 1.8])
    assert [teller.look(Look(position, math.nan)) for position in (0.5, 1.5, 2.5)] == [
        None, None, "diverged"
    ]  # fmt: skip
    assert [look.position for look in teller.looks] == [2.5]
