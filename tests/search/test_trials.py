import json
import math
import warnings
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from search_helpers import asked, created, record, run

from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.trials import LostTrialError, epoch_records, finish, record_epoch, with_reports


@pytest.fixture
def joined(sqlite: StudyStorage) -> JoinedStudy:
    return created(sqlite, budget={"trials": 100})


@pytest.fixture
def anywhere(storage: StudyStorage) -> JoinedStudy:
    """The same on SQLite and on PostgreSQL."""
    return created(storage, budget={"trials": 100})


def test_an_epoch_is_recorded_and_reported(anywhere: JoinedStudy):
    trial = asked(anywhere).trial
    assert record_epoch(anywhere, trial, record(1, 1.235, f1=np.float32(0.5), total=np.int64(9)))
    assert record_epoch(anywhere, trial, record(2, 1.217, note="x", scores=(1, None, True)))
    stored = anywhere.optuna_study.trials[0]
    assert stored.intermediate_values == {1: -1.235, 2: -1.217}
    assert stored.user_attrs["epochs"] == [
        {"epoch": 1, "val_loss": 1.235, "f1": 0.5, "total": 9},
        {"epoch": 2, "val_loss": 1.217, "note": "x", "scores": [1, None, True]},
    ]


def test_reports_without_asking_are_those_that_are_stored(anywhere: JoinedStudy):
    trial = asked(anywhere).trial
    losses = {1: 1.235, 2: math.inf, 3: None, 4: 1.217}
    for epoch, loss in losses.items():
        record_epoch(anywhere, trial, {"epoch": epoch, "val_loss": loss})
    now = with_reports(trial, losses)
    assert now.intermediate_values == {1: -1.235, 4: -1.217}
    assert now.intermediate_values == anywhere.optuna_study.trials[0].intermediate_values
    assert trial.intermediate_values == {}


def test_an_epoch_that_is_there_is_not_doubled(joined: JoinedStudy):
    trial = asked(joined).trial
    record_epoch(joined, trial, record(2, 1.0))
    record_epoch(joined, trial, record(1, 2.0))
    assert not record_epoch(joined, trial, record(2, 9.0))
    stored = joined.optuna_study.trials[0]
    assert stored.intermediate_values == {1: -2.0, 2: -1.0}
    assert epoch_records(stored) == [record(1, 2.0), record(2, 1.0)]


def test_a_loss_that_is_no_number_is_stored_as_null(joined: JoinedStudy):
    trial = asked(joined).trial
    record_epoch(joined, trial, record(1, math.nan, train_loss=math.inf, f1=np.float64("nan")))
    stored = joined.optuna_study.trials[0]
    assert stored.intermediate_values == {}
    assert stored.user_attrs["epochs"] == [
        {"epoch": 1, "val_loss": None, "train_loss": None, "f1": None}
    ]
    with pytest.raises(TypeError, match="cannot be stored as JSON"):
        record_epoch(joined, trial, record(2, 1.0, what=object()))


ATTRIBUTES = {"best_f1": 61.5, "best_epoch": 1, "f1": np.float32(60), "worker": "host:1"}


def test_a_complete_trial(joined: JoinedStudy):
    trial = asked(joined).trial
    finish(joined, trial, state=TrialState.COMPLETE, attrs=ATTRIBUTES)
    stored = joined.optuna_study.trials[0]
    assert (stored.state, stored.value) == (TrialState.COMPLETE, 61.5)
    assert stored.user_attrs.items() >= {**ATTRIBUTES, "f1": 60.0}.items()
    assert "stop_reason" not in stored.user_attrs
    assert stored.datetime_complete is not None


def test_a_pruned_trial_has_its_best_f1_as_value(anywhere: JoinedStudy):
    trial = asked(anywhere).trial
    record_epoch(anywhere, trial, record(1, 1.235))
    record_epoch(anywhere, trial, record(2, 1.359))
    finish(
        anywhere, trial, state=TrialState.PRUNED, stop_reason="overfitting", attrs=ATTRIBUTES
    )  # fmt: skip
    stored = anywhere.optuna_study.trials[0]
    assert (stored.state, stored.value) == (TrialState.PRUNED, 61.5)
    assert stored.user_attrs["stop_reason"] == "overfitting"
    assert stored.intermediate_values == {1: -1.235, 2: -1.359}


def test_trials_without_a_value(joined: JoinedStudy):
    finish(joined, asked(joined).trial, state=TrialState.FAIL, attrs={"cause": "oom", **ATTRIBUTES})
    finish(
        joined,
        asked(joined).trial,
        state=TrialState.PRUNED,
        stop_reason="diverged",
        attrs={"best_f1": math.nan},
    )
    failed, diverged = joined.optuna_study.trials
    assert (failed.state, failed.value) == (TrialState.FAIL, None)
    assert failed.user_attrs["cause"] == "oom"
    assert (diverged.state, diverged.value) == (TrialState.PRUNED, None)
    assert diverged.user_attrs["best_f1"] is None


def test_impossible_endings(joined: JoinedStudy):
    trial = asked(joined).trial
    with pytest.raises(ValueError, match="COMPLETE, PRUNED or FAIL, got RUNNING"):
        finish(joined, trial, state=TrialState.RUNNING, attrs={})
    with pytest.raises(ValueError, match="overfitting, hopeless, diverged, budget: 'bored'"):
        finish(joined, trial, state=TrialState.PRUNED, stop_reason="bored", attrs={})
    with pytest.raises(ValueError, match="trial 0 is complete and has no best_f1"):
        finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": math.nan})
    assert joined.optuna_study.trials[0].state is TrialState.RUNNING


def test_a_trial_that_another_worker_finished_is_lost(anywhere: JoinedStudy):
    trial = asked(anywhere).trial
    anywhere.optuna_study.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(LostTrialError, match="trial 0 was finished by another worker"):
        record_epoch(anywhere, trial, record(1))
    with pytest.raises(LostTrialError):
        finish(anywhere, trial, state=TrialState.COMPLETE, attrs={"best_f1": 99.0})
    with pytest.raises(LostTrialError):
        finish(anywhere, trial, state=TrialState.FAIL, attrs={})
    stored = anywhere.optuna_study.trials[0]
    assert (stored.state, stored.value, stored.user_attrs.get("best_f1")) == (
        TrialState.FAIL,
        None,
        None,
    )


def test_a_trial_of_a_deleted_study_is_lost(joined: JoinedStudy):
    trial = asked(joined).trial
    optuna.delete_study(study_name="demo", storage=joined.storage.rdb)
    with pytest.raises(LostTrialError, match="trial 0 is no longer in the storage"):
        finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": 1.0})


# -- what Optuna makes of pruned trials that have a value


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> JoinedStudy:
    """Twenty trials, of which every third is pruned, the best and the worst F1 among those."""
    url = f"sqlite:///{tmp_path_factory.mktemp('mixed')}/study.db"
    joined = created(open_storage(url, create=True), budget={"trials": 100})
    for number in range(20):
        trial = asked(joined).trial
        if number % 3 == 2:
            record_epoch(joined, trial, record(1, 2.0 + number / 10))
            finish(
                joined,
                trial,
                state=TrialState.PRUNED,
                stop_reason="overfitting",
                attrs={"best_f1": 90.0 if number == 11 else 1.0, "best_epoch": 1},
            )
        else:
            run(joined, trial, 2, best_f1=50.0 + number)
    return joined


def test_the_best_trial_is_a_complete_one(mixed: JoinedStudy):
    best = mixed.optuna_study.best_trial
    assert (best.number, best.value) == (19, 69.0)


def test_tpe_goes_on_sampling(mixed: JoinedStudy):
    trial = asked(mixed).trial
    study = mixed.optuna_study
    # Beyond the start-up trials, the parameters are sampled together.
    together = study.sampler.infer_relative_search_space(study, trial)
    assert set(together) == {"start", "learning_rate", "epochs"}


def test_importances_take_it(mixed: JoinedStudy):
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    importances = optuna.importance.get_param_importances(mixed.optuna_study, evaluator=evaluator)
    assert set(importances) == {"start", "learning_rate", "epochs"}


def test_the_dashboard_takes_it(mixed: JoinedStudy):
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard

        application = optuna_dashboard.wsgi(mixed.storage.rdb)

    def get(path: str) -> dict:
        answer: dict = {}
        environment = {"PATH_INFO": path, "QUERY_STRING": "after=0"}
        setup_testing_defaults(environment)
        body = b"".join(application(environment, lambda status, *_: answer.update(status=status)))
        assert answer["status"].startswith("200"), body
        return json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    study_id = get("/api/studies")["study_summaries"][0]["study_id"]
    trials = get(f"/api/studies/{study_id}")["trials"]
    pruned = [trial for trial in trials if trial["state"] == "Pruned"]
    assert [trial["number"] for trial in pruned] == [2, 5, 8, 11, 14, 17]
    assert [trial["values"] for trial in pruned if trial["number"] == 11] == [[90.0]]
