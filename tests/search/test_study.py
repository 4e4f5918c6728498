import copy
import json
import subprocess
import sys
import time
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState
from search_helpers import FINGERPRINTS, SECTIONS, asked, created, opened, record, run, study_file
from worker_processes import finished, started

from qa_hpo.config import Budget
from qa_hpo.errors import StorageError, StudyFileError
from qa_hpo.search import agreement
from qa_hpo.search.asking import Asked, ask, hand_back, release_trials, run_seed
from qa_hpo.search.budget import BudgetStep, NextStep
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.study import check_fingerprints, create_study, load_study, set_budget
from qa_hpo.search.trials import LostTrialError, epoch_records, finish, record_epoch, trial_id

VERSIONS_HERE = agreement.versions()

BASELINES = [
    {"name": "notebook", "start": "base", "learning_rate": 2e-5, "epochs": 3},
    {"start": "v1", "learning_rate": 3e-5},
]

MEDIAN = {"across": "median"}


def refused(*arguments, function=create_study, **options) -> str:
    with pytest.raises(StorageError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- creating and continuing


def test_a_study_is_self_contained(storage: StudyStorage):
    file = study_file(study={"name": "demo", "seed": 3, "storage": "postgresql://me:s3cr3t@h/d"})
    joined = create_study(file, storage, fingerprints=FINGERPRINTS)
    assert joined.created
    attributes = joined.optuna_study.user_attrs
    assert json.loads(attributes["study_file"])["study"] == {
        "name": "demo",
        "seed": 3,
        "objectives": ["best_f1"],
        "learn_from": [],
    }
    assert "s3cr3t" not in json.dumps(attributes)
    assert attributes["data"] == FINGERPRINTS
    assert set(attributes["versions"]) == {
        "qa_hpo", "optuna", "torch", "transformers", "datasets", "python"
    }  # fmt: skip
    assert attributes["versions"]["optuna"] == optuna.__version__
    assert joined.optuna_study.metric_names == ["best_f1"]
    assert joined.optuna_study.direction is optuna.study.StudyDirection.MAXIMIZE

    loaded = load_study("demo", storage)
    assert loaded.file == joined.file == study_file()
    assert not loaded.created
    assert loaded.space.distributions == joined.space.distributions


def test_baselines_are_queued_once_and_run_first(storage: StudyStorage):
    for expected in (True, False, False):
        assert created(storage, baseline=BASELINES).created is expected
    joined = load_study("demo", storage)
    assert [trial.state for trial in joined.optuna_study.trials] == [TrialState.WAITING] * 2
    first, second, third = asked(joined), asked(joined), asked(joined)
    assert (first.trial.number, second.trial.number, third.trial.number) == (0, 1, 2)
    assert first.parameters == joined.file.defaults.model_copy(
        update={"start": "base", "learning_rate": 2e-5, "epochs": 3}
    )
    assert second.parameters == joined.file.defaults.model_copy(
        update={"start": "v1", "learning_rate": 3e-5, "epochs": 2}
    )
    labels = [trial.user_attrs.get("baseline") for trial in joined.optuna_study.trials]
    assert labels == ["notebook", "baseline 1", None]


def test_a_study_whose_creator_died_is_completed(sqlite: StudyStorage):
    study = optuna.create_study(study_name="demo", storage=sqlite.rdb, direction="maximize")
    study.enqueue_trial({"start": "base"}, user_attrs={"baseline": "notebook"})
    line = refused("demo", sqlite, function=load_study)
    assert line == f"{sqlite.shown}: 'demo' is not a qa_hpo study"
    joined = created(sqlite, baseline=BASELINES)
    assert joined.created
    labels = [trial.user_attrs["baseline"] for trial in joined.optuna_study.trials]
    assert labels == ["notebook", "baseline 1"]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_study_of_another_program_is_left_alone(sqlite: StudyStorage, direction):
    study = optuna.create_study(study_name="demo", storage=sqlite.rdb, direction=direction)
    study.add_trial(optuna.create_trial(value=1.0))
    line = refused(study_file(), sqlite, fingerprints=FINGERPRINTS)
    assert line.endswith("'demo' is not a qa_hpo study; choose another study.name")
    assert study.user_attrs == {}
    assert "is not a qa_hpo study" in refused("demo", sqlite, function=load_study)


def test_another_direction_is_refused(sqlite: StudyStorage):
    joined = created(sqlite)
    twin = optuna.create_study(study_name="twin", storage=sqlite.rdb, direction="minimize")
    text = json.loads(joined.optuna_study.user_attrs["study_file"])
    text["study"]["name"] = "twin"
    twin.set_user_attr("study_file", json.dumps(text))
    assert "study 'twin' is minimised" in refused("twin", sqlite, function=load_study)


def test_a_study_of_an_earlier_version_is_refused(sqlite: StudyStorage):
    joined = created(sqlite)
    with sqlite.rdb.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM study_user_attributes WHERE key = 'uid'")
    line = refused("demo", sqlite, function=load_study)
    assert "study 'demo' is of an earlier version of qa_hpo; choose another study.name" in line
    assert line == refused(joined.file, sqlite, fingerprints=FINGERPRINTS)


def test_a_baseline_that_cannot_be_run_creates_no_study(sqlite: StudyStorage):
    with pytest.raises(StudyFileError, match="baseline: give epochs"):
        created(sqlite, baseline=[{"start": "v1"}], training={"epochs": 9})
    assert optuna.get_all_study_names(sqlite.rdb) == []


def changed(path: str, value: object) -> dict:
    sections = copy.deepcopy(SECTIONS)
    place = sections
    *parents, last = path.split(".")
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return sections


@pytest.mark.parametrize(
    ("path", "value", "difference"),
    [
        (
            "search.learning_rate.high",
            0.01,
            "search.learning_rate.high: 0.001 in the study, 0.01 in the file",
        ),
        ("study.seed", 4, "study.seed: 3 in the study, 4 in the file"),
        (
            "search.start.choices",
            ["v1", "base"],
            'search.start.choices: ["base", "v1"] in the study, ["v1", "base"] in the file',
        ),
        (
            "search.warmup.choices",
            [0.1],
            'search.warmup: nothing in the study, {"log": false, "choices": [0.1]} in the file',
        ),
        ("search.learning_rate.log", False, "search.learning_rate.log: true in the study, false"),
        ("starts.v1", "other/v1", 'starts.v1: "some/v1" in the study, "other/v1" in the file'),
        ("training.batch_size", 8, "training.batch_size: 16 in the study, 8 in the file"),
        ("pruning.patience", 2, "pruning.patience: 1 in the study, 2 in the file"),
        (
            "pruning.evaluations_per_epoch",
            4,
            "pruning.evaluations_per_epoch: 1 in the study, 4 in the file",
        ),
        (
            "baseline",
            [{"start": "v1", "epochs": 2}],
            'baseline: [] in the study, [{"start": "v1", "epochs": 2}] in the file',
        ),
    ],
)
def test_a_changed_file_is_refused(sqlite: StudyStorage, path, value, difference):
    created(sqlite)
    line = refused(study_file(**changed(path, value)), sqlite, fingerprints=FINGERPRINTS)
    assert line.startswith(f"study 'demo' exists and differs: {difference}")
    assert line.endswith(". Choose another study.name")
    assert load_study("demo", sqlite).file == study_file()


def test_many_differences_are_cut_short(sqlite: StudyStorage):
    created(sqlite)
    search = {"start": ["base", "v1"], "epochs": [1, 2], "learning_rate": 1}
    line = refused(study_file(search=search), sqlite, fingerprints=FINGERPRINTS)
    assert line.endswith("; and 3 more. Choose another study.name")
    assert line.count(" in the study, ") == 4


def test_budget_artifacts_and_storage_may_change(sqlite: StudyStorage):
    created(sqlite, budget={"trials": 2})
    other = {"budget": {"trials": 1}, "artifacts": {"folder": "elsewhere", "keep": 9}}
    joined = created(sqlite, study={"name": "demo", "seed": 3, "storage": "sqlite:///x"}, **other)
    assert load_study("demo", sqlite).file == joined.file == study_file(**other)
    run(joined, asked(joined).trial, 1)
    assert ask(joined).step is BudgetStep.SPENT
    joined = created(sqlite, budget={"trials": 2})
    assert ask(joined).step is BudgetStep.ASK


def test_the_order_of_the_file_may_change(sqlite: StudyStorage):
    created(sqlite)
    turned = study_file(search=dict(reversed(SECTIONS["search"].items())))
    joined = create_study(turned, sqlite, fingerprints=FINGERPRINTS)
    assert list(joined.space.distributions) == list(SECTIONS["search"])


def test_other_data_is_refused(sqlite: StudyStorage):
    joined = created(sqlite)
    check_fingerprints(joined, FINGERPRINTS)
    other = {"data.train": "aaaa", "data.validation": "cccc"}
    expected = (
        "study 'demo': data.validation is not the one that the study was created with "
        "(fingerprint cccc, the study has bbbb)"
    )
    assert refused(joined, other, function=check_fingerprints) == expected
    assert refused(study_file(), sqlite, fingerprints=other) == expected


@pytest.mark.parametrize(
    ("package", "version", "refuses"),
    [("torch", "3.1.0", True), ("transformers", "", True), ("datasets", "99.0", False)],
)
def test_other_major_versions_are_refused(sqlite, monkeypatch, package, version, refuses):
    joined = created(sqlite)
    monkeypatch.setattr(
        "qa_hpo.search.agreement.versions", lambda: {**VERSIONS_HERE, package: version}
    )
    if not refuses:
        check_fingerprints(joined, FINGERPRINTS)
        return
    line = refused(joined, FINGERPRINTS, function=check_fingerprints)
    there = VERSIONS_HERE[package]
    assert line == (
        f"study 'demo': was created with {package} {there}, and here is {package} "
        f"{version or '(none)'}; install that major version, or choose another study.name"
    )


# -- loading


def test_a_missing_study_names_its_neighbours(sqlite: StudyStorage):
    line = refused("demo", sqlite, function=load_study)
    assert line == (
        f"{sqlite.shown}: no study is called 'demo'; it holds no study; 'qa-hpo run' creates it"
    )
    created(sqlite)
    assert refused("dmeo", sqlite, function=load_study).endswith("did you mean 'demo'?")
    assert refused("zzz", sqlite, function=load_study).endswith("valid: demo")


def test_a_stored_file_that_is_not_valid(sqlite: StudyStorage):
    joined = created(sqlite)
    joined.optuna_study.set_user_attr("study_file", '{"study": {"name": "demo"}}')
    line = refused("demo", sqlite, function=load_study)
    assert "the stored study file is not valid: study 'demo': data: missing; study 'demo': " in line


@pytest.mark.parametrize("module", ["qa_hpo.results.leaderboard", "qa_hpo.search.study"])
def test_nothing_heavy_is_imported(module):
    code = (
        f"import sys, {module}; "
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


# -- asking


def test_run_seeds():
    seeds = {run_seed(seed, number) for seed in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert run_seed(3, 5) == run_seed(3, 5)


def test_a_trial_that_is_asked_for(storage: StudyStorage):
    joined = created(storage)
    answer = asked(joined, worker="host:1")
    stored = joined.optuna_study.trials[0]
    assert stored.state is TrialState.RUNNING
    assert joined.space.parameters_of(stored.params) == answer.parameters
    assert stored.user_attrs == {
        "worker": "host:1",
        "epochs_reserved": answer.parameters.epochs,
    }
    assert (answer.lineage, answer.seed) == (0, run_seed(3, 0))
    assert answer.epochs_reserved == answer.parameters.epochs


def test_what_is_handed_out_is_what_is_stored(storage: StudyStorage):
    # New ones, by chance and by TPE; one that waits without parameters, and a retry.
    joined = created(storage, budget={"trials": 30}, baseline=[{"learning_rate": 1e-4}])
    for _ in range(15):
        trial = asked(joined, worker="host:1").trial
        assert trial == joined.storage.rdb.get_trial(trial_id(trial))
        assert list(trial.params) == list(joined.storage.rdb.get_trial(trial_id(trial)).params)
        run(joined, trial, 1)
    joined.optuna_study.enqueue_trial({})
    handed_back = asked(joined, worker="host:1").trial
    assert handed_back.number == 15
    record_epoch(joined, handed_back, record(1))
    assert hand_back(joined, handed_back)
    again = asked(joined, worker="host:2").trial
    assert again.number == 15
    assert again == joined.storage.rdb.get_trial(trial_id(again))


def test_a_budget_of_trials_is_shared(storage: StudyStorage):
    one = created(storage, budget={"trials": 2})
    other = load_study("demo", storage)
    first, second = asked(one), asked(other)
    waiting = ask(one)
    assert isinstance(waiting, NextStep)
    assert waiting.step is BudgetStep.WAIT
    run(one, first.trial, 1)
    assert ask(one).step is BudgetStep.WAIT
    finish(other, second.trial, state=TrialState.FAIL, attrs={})
    third = asked(one)  # in place of the one that failed
    run(one, third.trial, 1)
    assert ask(other).step is BudgetStep.SPENT


def test_a_budget_of_epochs_is_reserved(storage: StudyStorage):
    joined = created(
        storage,
        search={"start": ["base", "v1"], "epochs": 4},
        pruning=MEDIAN,
        budget={"epochs": 10},
    )
    trials = [asked(joined) for _ in range(3)]
    assert [answer.epochs_reserved for answer in trials] == [4, 4, 2]
    assert ask(joined).step is BudgetStep.WAIT
    run(joined, trials[0].trial, 4)
    assert ask(joined).step is BudgetStep.WAIT
    run(joined, trials[1].trial, 1)  # three are left over
    last = asked(joined)
    assert (last.epochs_reserved, last.parameters.epochs) == (3, 4)


def test_a_new_budget_holds_for_all_workers(sqlite: StudyStorage):
    joined = created(sqlite, budget={"trials": 1})
    worker = load_study("demo", sqlite)
    run(worker, asked(worker).trial, 1)
    assert ask(worker).step is BudgetStep.SPENT
    assert set_budget(joined, Budget(trials=2)).file.budget == Budget(trials=2)
    assert ask(worker).step is BudgetStep.ASK


def test_failures_end_a_study_until_it_is_started_again(sqlite: StudyStorage):
    joined = created(sqlite)
    for _ in range(3):
        finish(joined, asked(joined).trial, state=TrialState.FAIL, attrs={})
    step = ask(joined)
    assert isinstance(step, NextStep)
    assert (step.step, step.failing) == (BudgetStep.SPENT, True)
    assert step.cause == "3 trials failed and 0 finished"
    assert ask(created(sqlite)).step is BudgetStep.ASK


def test_asking_for_a_deleted_study(sqlite: StudyStorage):
    joined = created(sqlite)
    optuna.delete_study(study_name="demo", storage=sqlite.rdb)
    line = refused(joined, function=ask)
    assert line == f"{sqlite.shown}: study 'demo' was deleted or renamed"


# -- workers that die


def asked_in_time(joined, lineage: int | None = None):
    """Ask until there is a trial, as workers do: death takes two looks to be seen."""
    deadline = time.monotonic() + 20
    while True:
        answer = ask(joined)
        if isinstance(answer, Asked) and lineage in {None, answer.lineage}:
            return answer
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_dead_workers_trial_goes_on_where_it_was(storage_url: str):
    with opened(storage_url, heartbeat_s=1, grace_s=1) as storage:
        joined = created(storage, baseline=BASELINES[:1], budget={"epochs": 3})
        finished(started(storage.url, "die"), code=9)
        assert joined.optuna_study.trials[0].state is TrialState.RUNNING
        assert ask(joined).step is BudgetStep.WAIT  # it has reserved all three epochs
        answer = asked_in_time(joined)
        dead, retry = joined.optuna_study.trials
        assert (dead.state, retry.state) == (TrialState.FAIL, TrialState.RUNNING)
        assert (answer.trial.number, answer.lineage, answer.seed) == (1, 0, run_seed(3, 0))
        assert answer.parameters == joined.space.parameters_of(dead.params)
        assert answer.parameters.learning_rate == 2e-5
        assert epoch_records(answer.trial) == [record(1, 0.5)]
        assert retry.intermediate_values == {1: -0.5}
        assert retry.user_attrs["baseline"] == "notebook"
        assert answer.epochs_reserved == 3
        assert not record_epoch(joined, answer.trial, record(1, 9.0))
        run(joined, answer.trial, 3)
        assert joined.optuna_study.trials[1].intermediate_values == {1: -0.5, 2: -1.0, 3: -1.0}
        step = ask(joined)
        assert isinstance(step, NextStep)
        assert (step.step, step.spent.epochs) == (BudgetStep.SPENT, 3)


def test_a_worker_that_was_taken_for_dead_has_lost_its_trial(sqlite_url: str):
    with opened(sqlite_url, heartbeat_s=1, grace_s=1) as storage:
        slow, quick = created(storage), load_study("demo", storage)
        trial = asked(slow).trial
        taken = asked_in_time(quick, lineage=0)
        assert taken.lineage == 0
        with pytest.raises(LostTrialError):
            run(slow, trial, 1)
        run(quick, taken.trial, 1)


def test_a_worker_that_dies_while_it_asks_leaves_nothing_behind(storage: StudyStorage):
    joined = created(storage, baseline=BASELINES[:1], budget={"trials": 2})
    finished(started(storage.url, "die-asking"), code=9)
    assert [trial.state for trial in joined.optuna_study.trials] == [TrialState.RUNNING]
    answer = asked(joined)  # at once: nobody else can be in the middle of asking
    assert (answer.trial.number, answer.lineage) == (0, 0)
    assert answer.parameters.learning_rate == 2e-5
    other = asked(joined)
    assert other.trial.number == 1
    assert [trial.state for trial in joined.optuna_study.trials] == [TrialState.RUNNING] * 2


def test_a_trial_whose_workers_keep_dying_is_given_up(sqlite: StudyStorage):
    joined = created(sqlite)
    for attempt in range(10):
        answer = asked(joined, worker=f"worker-{attempt}")
        assert (answer.trial.number, answer.lineage) == (attempt, 0)
        release_trials(joined, f"worker-{attempt}")
    assert asked(joined).lineage == 10  # the first attempt and nine retries, then another trial


def test_a_trial_that_gets_further_each_time_is_not_given_up(sqlite: StudyStorage):
    joined = created(sqlite, search={"start": ["base", "v1"], "epochs": 20}, pruning=MEDIAN)
    for attempt in range(15):
        answer = asked(joined, worker=f"worker-{attempt}")
        assert (answer.trial.number, answer.lineage) == (attempt, 0)
        record_epoch(joined, answer.trial, record(attempt + 1))
        release_trials(joined, f"worker-{attempt}")
    assert len(epoch_records(asked(joined).trial)) == 15


# -- many workers


@pytest.mark.parametrize(
    ("kind", "workers", "budget"),
    [("sqlite", 8, "trials=500"), ("sqlite", 3, "epochs=17"), ("postgres", 4, "trials=60")],
)
def test_many_workers_share_one_study(request: pytest.FixtureRequest, kind, workers, budget):
    """They create it at the same time, and no trial is run twice or one too many."""
    url = request.getfixturevalue(f"{kind}_url")
    processes = [started(url, "join", budget) for _ in range(workers)]
    answers = [answer.split() for answer in finished(*processes)]
    assert Counter(answer[0] for answer in answers) == {"new": 1, "joined": workers - 1}
    numbers = sorted(int(number) for answer in answers for number in answer[1:])
    assert numbers == list(range(len(numbers)))
    storage = open_storage(url, create=False)
    trials = load_study("demo", storage).optuna_study.trials
    assert [trial.number for trial in trials] == numbers
    assert all(trial.state.is_finished() for trial in trials)
    assert len({str(trial.params) for trial in trials}) == len(trials)
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1
    if budget.startswith("trials"):
        assert len(trials) == int(budget.removeprefix("trials="))
    else:
        assert sum(len(epoch_records(trial)) for trial in trials) == 17
        assert sum(trial.user_attrs.get("stop_reason") == "budget" for trial in trials) <= 1
    storage.close()
