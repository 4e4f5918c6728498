import contextlib
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import Runtime
from qa_hpo.errors import ArtifactError, CheckpointError, InputError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.finetune.run import fine_tune
from qa_hpo.results.export import write_export
from qa_hpo.results.progress import snapshot
from qa_hpo.results.select import exported_trial, run_config
from qa_hpo.search.artifacts import owner
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.keeping import read_answers
from qa_hpo.search.objective import Objective
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import LostTrialError, epoch_records, finish, kept, record_epoch
from tiny import study_file

# A few questions, learnt by heart: the validation loss falls, and rises before the last epoch.
BY_HEART: dict[str, Any] = {
    "data": {"train_limit": 24},
    "search": {"learning_rate": {"value": 5e-3}, "epochs": {"value": 8}},
    "training": {"batch_size": 8},
}


@pytest.fixture
def objective(tiny: Path, inputs: Inputs, tmp_path: Path) -> Iterator[Any]:
    """Makes objectives on studies in a real database."""
    with contextlib.ExitStack() as stack:

        def made(**sections: Any) -> Objective:
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
    """Take a trial, run it, and return what the study then says of it."""
    asked = take(objective)
    objective.run(asked)
    objective.collect()
    return objective.joined.optuna_study.trials[asked.trial.number]


def losses(trial: FrozenTrial) -> list[float]:
    return [record["val_loss"] for record in epoch_records(trial)]


def first_rise(values: list[float]) -> int:
    """The first epoch whose loss is above one before."""
    return next(n + 1 for n in range(1, len(values)) if values[n] > min(values[:n]))


def measured(records: Any) -> list[dict[str, Any]]:
    flat = [r.as_dict() if isinstance(r, EpochRecord) else r for r in records]
    return [{key: value for key, value in r.items() if "seconds" not in key} for r in flat]


def stored(objective: Objective) -> list[tuple[int, int]]:
    """Trial and epoch of all that is in the artifact store."""
    keys = objective.store.keys(objective.joined.uid)
    return sorted((owner(key), int(key.split("-")[2])) for key in keys)


def test_an_overfitting_trial_is_pruned_and_competes(objective: Any) -> None:
    control = run(objective(**BY_HEART, pruning={"control_fraction": 1.0}))
    assert control.state is TrialState.COMPLETE
    assert "stop_reason" not in control.user_attrs
    assert len(losses(control)) == 8
    end = first_rise(losses(control))
    assert 2 < end < 8

    some = objective(**BY_HEART, study={"name": "pruned"})
    trial = run(some)
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs["stop_reason"] == "overfitting"
    assert measured(epoch_records(trial)) == measured(epoch_records(control))[:end]

    # Reports are minus the losses, the value is the best epoch's F1.
    assert trial.intermediate_values == {
        step: -loss for step, loss in enumerate(losses(trial), start=1)
    }
    best = max(epoch_records(trial), key=lambda record: (record["best_f1"], -record["epoch"]))
    assert trial.value == best["best_f1"] > 30
    attributes = trial.user_attrs
    assert {name: attributes[name] for name in ("f1", "exact", "best_f1", "best_exact")} == {
        name: best[name] for name in ("f1", "exact", "best_f1", "best_exact")
    }
    assert attributes["best_epoch"] == best["epoch"]
    assert attributes["threshold"] == best["best_f1_thresh"]
    assert attributes["crossfit_f1"] == best["crossfit_f1"]
    assert attributes["worker"] == "me"
    assert attributes["cpu_threads"] == 1
    assert 50 < attributes["peak_memory_mib"] < 100_000
    seconds = [record["seconds"] for record in epoch_records(trial)]
    assert attributes["train_seconds"] == pytest.approx(sum(seconds))
    # The best epoch's weights, answers and predictions are kept and the table of all epochs, and
    # nothing to go on from.
    last = len(losses(trial))
    assert stored(some) == sorted([*[(0, best["epoch"])] * 3, (0, last)])
    answered = read_answers(some.joined, trial)
    assert answered is not None
    assert 100 * answered.f1.mean() == pytest.approx(trial.value, abs=1e-9)
    assert answered.threshold == attributes["threshold"]
    assert list(some.inputs.cache.runs.glob("run-*")) == []


@pytest.mark.parametrize(("patience", "min_delta"), [(2, 0.0), (1, 0.15), (1, 50.0)])
def test_patience_and_min_delta(objective: Any, patience: int, min_delta: float) -> None:
    control = losses(run(objective(**BY_HEART, pruning={"control_fraction": 1.0})))
    pruning = {"patience": patience, "min_delta": min_delta}
    trial = run(objective(**BY_HEART, study={"name": "patient"}, pruning=pruning))
    end, above, best = 8, 0, control[0]
    for epoch, loss in enumerate(control, start=1):
        above = above + 1 if loss > best + min_delta else 0
        best = min(best, loss)
        if above == patience:
            end = epoch
            break
    assert losses(trial) == control[:end]
    assert trial.state is (TrialState.PRUNED if end < 8 else TrialState.COMPLETE)


def test_a_complete_trial_can_be_run_again_without_the_study(
    objective: Any, inputs: Inputs, tmp_path: Path
) -> None:
    some = objective()
    first, second = run(some), run(some)
    for trial in (first, second):
        assert trial.state is TrialState.COMPLETE
        config = run_config(some.joined, trial)
        assert config.parameters.learning_rate == trial.params["learning_rate"]
        again = fine_tune(config, tmp_path / f"again-{trial.number}", inputs=inputs)
        assert measured(again.records) == measured(epoch_records(trial))
    assert first.params != second.params


def test_a_pruned_trial_can_be_run_again_as_far_as_it_went(
    objective: Any, inputs: Inputs, tmp_path: Path
) -> None:
    some = objective(**BY_HEART)
    trial = run(some)
    config = run_config(some.joined, trial)
    assert config.run.stop_after_epochs == len(epoch_records(trial)) < config.parameters.epochs
    again = fine_tune(config, tmp_path / "again", inputs=inputs)
    assert measured(again.records) == measured(epoch_records(trial))


def test_the_budget_of_epochs_ends_a_trial(objective: Any) -> None:
    some = objective(budget={"epochs": 4})
    whole, cut = run(some), run(some)
    assert (whole.state, len(losses(whole))) == (TrialState.COMPLETE, 3)
    assert (cut.state, len(losses(cut))) == (TrialState.PRUNED, 1)
    assert cut.user_attrs["stop_reason"] == "budget"
    assert cut.value == cut.user_attrs["best_f1"]
    assert (cut.number, 1) in stored(some)
    answer = ask(some.joined)
    assert answer.step is BudgetStep.SPENT
    assert answer.spent.epochs == 4


def test_the_hours_end_a_trial_after_its_epoch(objective: Any) -> None:
    trial = run(objective(budget={"hours": 1e-6}))  # they begin with the trial
    assert (trial.state, len(losses(trial))) == (TrialState.PRUNED, 1)
    assert trial.user_attrs["stop_reason"] == "budget"


def test_a_diverging_trial(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from qa_hpo.finetune import trainer

    some = objective(budget={"epochs": 9})
    own = trainer.span_loss
    calls = 0

    def poisoned(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return own(*arguments, **options) * (float("nan") if calls > 30 else 1)

    monkeypatch.setattr(trainer, "span_loss", poisoned)
    late, early = run(some), run(some)
    assert [late.user_attrs["stop_reason"], early.user_attrs["stop_reason"]] == ["diverged"] * 2
    assert (late.state, len(losses(late)), late.value) == (
        TrialState.PRUNED, 1, late.user_attrs["best_f1"]
    )  # fmt: skip
    assert (early.state, losses(early), early.value) == (TrialState.PRUNED, [], None)
    assert "best_f1" not in early.user_attrs


def test_a_loss_above_guessing_is_divergence(objective: Any) -> None:
    some = objective()
    asked = take(some)
    record = EpochRecord(1, 1.0, 1.0, 1.0, 3.7, {"best_f1": 1.0})  # ln(40) is 3.689
    assert some.rules.reason(asked, [record]) == "diverged"
    assert some.rules.reason(asked, [EpochRecord(1, 1.0, 1.0, 1.0, 3.68, {})]) is None
    # The last epoch needs no reason.
    assert some.rules.reason(asked, [EpochRecord(3, 1.0, 1.0, 1.0, 99.0, {})]) is None


def test_the_first_trial_diverging_at_once_does_not_stop_the_display(objective: Any) -> None:
    some = objective(budget={"epochs": 9})
    finish(some.joined, take(some).trial, state=TrialState.PRUNED, stop_reason="diverged", attrs={})
    take(some)
    now = snapshot(some.joined)
    assert (now.share, now.seconds_left, now.spent.trials) == (0.0, None, 1)


def test_an_epoch_without_a_score_does_not_stop_the_display(objective: Any) -> None:
    some = objective(training={"epochs": 3})
    trial = take(some).trial
    for epoch, score in ((1, 40.0), (2, math.nan)):
        record = EpochRecord(epoch, 1.0, 1.0, 1.0, 2.0, {"best_f1": score})
        record_epoch(some.joined, trial, record.as_dict())
    (busy,) = snapshot(some.joined).busy
    assert (busy.epoch, busy.f1) == (2, 40.0)


def test_only_the_leading_trials_checkpoints_are_kept(objective: Any, tmp_path: Path) -> None:
    some = objective(artifacts={"keep": 2}, training={"epochs": 1})
    trials = [run(some) for _ in range(4)]
    ranked = sorted(trials, key=lambda trial: (-trial.value, trial.number))
    leading = {trial.number for trial in ranked[:2]}
    # Of the others, answers and the table of epochs.
    pieces = {number: 4 if number in leading else 2 for number in range(4)}
    assert stored(some) == [(number, 1) for number in range(4) for _ in range(pieces[number])]
    offered = set()
    for trial in some.joined.storage.rdb.get_all_trials(1):
        own = {name for name in trial.system_attrs if name.startswith("artifacts:")}
        assert (f"artifacts:{kept(trial).checkpoint}" in own) == (trial.number in leading)
        offered |= {name.removeprefix("artifacts:") for name in own}
    # What dashboards offer is there, and nothing else is.
    assert some.store.keys(some.joined.uid) == offered
    gone = ranked[-1].number
    with (
        pytest.raises(
            InputError,
            match=rf"trial {gone}: its checkpoint is not kept \(artifacts\.keep is 2\); kept",
        ),
        exported_trial(some.joined, gone),
    ):
        pass
    with (
        pytest.raises(InputError, match="--trial: 17 is not a finished trial; valid: "),
        exported_trial(some.joined, 17),
    ):
        pass

    with exported_trial(some.joined, None) as export:
        assert export.facts["trial"] == ranked[0].number
        write_export(export, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not export.checkpoint.exists()
    shutil.rmtree(tmp_path / "artifacts")
    with (
        pytest.raises(ArtifactError, match="a checkpoint that should be there is not"),
        exported_trial(some.joined, None),
    ):
        pass


@pytest.mark.parametrize("error", [MemoryError("no room\nat all"), ValueError(), KeyError("x")])
def test_what_cannot_be_judged_is_a_trial_all_the_same(
    objective: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    some = objective(training={"epochs": 1}, search={"learning_rate": {"value": 1e-3}})

    def judge(_: Any) -> dict[str, Any]:
        raise error

    some.judge = judge
    with caplog.at_level(logging.WARNING, logger="qa_hpo.search.objective"):
        trial = run(some)
    assert trial.state is TrialState.COMPLETE
    assert trial.user_attrs["best_f1"] is not None
    assert "best_f1_interval" not in trial.user_attrs
    (record,) = [r for r in caplog.records if r.name == "qa_hpo.search.objective"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"trial 0 is not judged: {type(error).__name__}")
    assert len(record.getMessage().splitlines()) == 1


def test_no_trial_has_finished(objective: Any) -> None:
    some = objective()
    take(some)
    with (
        pytest.raises(InputError, match="study 'tiny': no trial has finished yet"),
        exported_trial(some.joined, None),
    ):
        pass


def test_a_trial_that_another_worker_finished_is_dropped(objective: Any) -> None:
    some = objective()
    asked = take(some)
    finish(some.joined, asked.trial, state=TrialState.FAIL, attrs={})
    with pytest.raises(LostTrialError):
        some.run(asked)
    assert epoch_records(some.joined.optuna_study.trials[0]) == []


def test_a_trial_that_another_worker_finishes_meanwhile_is_dropped(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = objective()
    asked = take(some)

    def taken(*_: Any) -> None:
        finish(some.joined, asked.trial, state=TrialState.FAIL, attrs={})

    monkeypatch.setattr(some.rules, "reason", taken)
    with pytest.raises(LostTrialError, match="trial 0 was finished by another worker"):
        some.run(asked)
    trial = some.joined.optuna_study.trials[0]
    assert trial.state is TrialState.FAIL
    assert len(epoch_records(trial)) == 1
    state = kept(trial)  # whoever has it now goes on from here
    assert state is not None
    assert state.resume in some.store.keys(some.joined.uid)


def test_what_the_worker_is_at(objective: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {
        "from": "base", "train": str(tiny / "train.json"), "train_limit": 16, "epochs": 1,
        "seed": 77,
    }  # fmt: skip
    some = objective(starts={"v9": recipe}, training={"epochs": 1}, search={
        "start": {"value": "v9"}, "learning_rate": {"value": 1e-3}
    })  # fmt: skip
    said: list[str] = []
    doing = some.doing

    def spying(asked: Asked, what: str) -> None:
        said.append(what)
        doing(asked, what)

    monkeypatch.setattr(some, "doing", spying)
    some.run(take(some))
    assert said == ["building start v9", "training"]


def test_a_start_that_has_gone(objective: Any, tiny: Path, tmp_path: Path) -> None:
    start = shutil.copytree(tiny / "base", tmp_path / "start")
    some = objective(starts={"base": str(start)})
    asked = take(some)
    shutil.rmtree(start)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        some.run(asked)
    assert not (tmp_path / "artifacts").exists()


def test_what_a_trial_freed_is_kept_for_one_that_needs_as_much(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    sizes: list[int] = []
    monkeypatch.setattr(
        "qa_hpo.search.objective.give_back_freed_memory", lambda: given_back.append(len(sizes))
    )
    some = objective(
        data={"train_limit": 8},
        search={
            "learning_rate": {"low": 1e-4, "high": 1e-3},
            "batch_size": {"choices": [4, 8]},
            "epochs": {"value": 1},
        },
        study={"seed": 5},
    )
    for _ in range(6):
        asked = take(some)
        sizes.append(asked.parameters.batch_size)
        some.run(asked)
    before = [None, *sizes[:-1]]
    changes = [n for n, size in enumerate(sizes, start=1) if size != before[n - 1]]
    assert given_back == changes
    assert 1 < len(changes) < 6  # there was something to tell apart
