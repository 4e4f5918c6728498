import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from processes import finished, start
from qa_hpo.config import StudyFile
from qa_hpo.errors import StorageError, WorkError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths, StudyPaths
from qa_hpo.results.select import run_config
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.objective import Objective
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import JoinedStudy, create_study, load_study
from qa_hpo.search.trials import epoch_records
from qa_hpo.workers.local import LocalWorkers
from qa_hpo.workers.worker import work
from tiny import squad, study_file

# One trial of many epochs, so that there is time to end its worker.
LONG: dict[str, Any] = {
    "data": {"train_limit": 120},
    "search": {"learning_rate": {"value": 3e-3}},
    "training": {"epochs": 12, "cpu_threads": 1},
    "pruning": {"control_fraction": 1.0},
    "budget": {"trials": 1},
}
SHORT: dict[str, Any] = {"training": {"epochs": 1, "cpu_threads": 1}, "data": {"train_limit": 24}}


class Place:
    """A folder with a study's database, its artifacts and a cache."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.folder = folder
        self.tiny = tiny
        self.url = f"sqlite:///{folder}/study.db"

    def create(self, **sections: Any) -> StudyFile:
        file = study_file(self.tiny, self.folder / "artifacts", **sections)
        inputs = Inputs(CachePaths(self.folder / "cache"))
        with self.storage(create=True) as storage:
            train = inputs.train_corpus(file.data.train, file.data.train_limit)
            validation = inputs.validation_corpus(file.data)
            fingerprints = {"train": train.fingerprint, "validation": validation.fingerprint}
            create_study(file, storage, fingerprints=fingerprints)
        return file

    @contextlib.contextmanager
    def storage(self, *, create: bool = False) -> Iterator[Any]:
        storage = open_storage(self.url, create=create)
        try:
            yield storage
        finally:
            storage.close()

    @contextlib.contextmanager
    def joined(self) -> Iterator[JoinedStudy]:
        with self.storage() as storage:
            yield load_study("tiny", storage)

    def trials(self) -> list[FrozenTrial]:
        with self.joined() as joined:
            return joined.optuna_study.trials

    def wait_for_epoch(self, epoch: int, worker: BaseProcess) -> None:
        """Wait until the first trial has recorded ``epoch``."""
        deadline = time.monotonic() + 60
        with self.joined() as joined:
            while True:
                trials = joined.optuna_study.get_trials(deepcopy=False)
                if trials and len(epoch_records(trials[0])) >= epoch:
                    return
                assert worker.is_alive(), worker.exitcode
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def alone(self, number: int = 0) -> list[dict[str, Any]]:
        """The epochs of a trial that is run again by itself, without interruption."""
        with self.joined() as joined:
            config = run_config(joined, joined.optuna_study.trials[number])
        inputs = Inputs(CachePaths(self.folder / "cache"))
        tuned = fine_tune(config, self.folder / f"alone-{number}", inputs=inputs)
        return measured([record.as_dict() for record in tuned.records])


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("QA_HPO_CACHE", str(tmp_path / "cache"))
    return Place(tmp_path, tiny)


def measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in records]


def work_apart(url: str, cache: str, options: dict[str, Any]) -> None:
    os.environ["QA_HPO_CACHE"] = cache
    work("tiny", url, **options)


def worker_process(place: Place, **options: Any) -> BaseProcess:
    return start(work_apart, place.url, str(place.folder / "cache"), options)


# ------------------------------------------------------------------------ a worker by itself


def test_a_worker_works_until_the_budget_is_spent(place: Place) -> None:
    place.create(**SHORT, budget={"trials": 3})
    ended = work("tiny", place.url, label="me")
    assert ended.step is BudgetStep.SPENT
    assert not ended.failing
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert {trial.user_attrs["worker"] for trial in trials} == {"me"}
    assert len({trial.params["learning_rate"] for trial in trials}) == 3
    assert measured(epoch_records(trials[2])) == place.alone(2)
    # It leaves the handling of signals as it was, and no thread.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
    assert work("tiny", place.url).spent.trials == 3  # nothing is left to do


@pytest.mark.parametrize("in_file", [None, 1])
def test_threads(place: Place, in_file: int | None) -> None:
    training = {**SHORT["training"], "cpu_threads": in_file}
    if in_file is None:
        del training["cpu_threads"]
    place.create(**{**SHORT, "training": training}, budget={"trials": 1})
    work("tiny", place.url, cpu_threads=2)
    (trial,) = place.trials()
    assert trial.user_attrs["cpu_threads"] == (2 if in_file is None else 1)
    assert trial.user_attrs["worker"] == f"{socket.gethostname()}-{os.getpid()}"


def test_it_refuses_other_data(place: Place, tmp_path: Path) -> None:
    import json

    data = Path(shutil.copy(place.tiny / "train.json", tmp_path / "train.json"))
    place.create(data={"train": str(data)})
    data.write_text(json.dumps(squad(240, seed=8)))
    with pytest.raises(StorageError, match=r"data\.train is not the corpus the study was created"):
        work("tiny", place.url)
    assert place.trials() == []


# ------------------------------------------------------------------------ trials that fail


def test_a_study_whose_trials_fail_ends_with_the_cause(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(place.tiny / "base", tmp_path / "base")
    place.create(starts={"base": str(base)})
    shutil.rmtree(base)
    with pytest.raises(WorkError, match="study 'tiny' ends: 3 trials failed and 0 finished") as end:
        work("tiny", place.url)
    cause = f"{base}: no such checkpoint folder (looked in {Path.cwd()})"
    assert str(end.value).endswith(f", the last of them of: {cause}")
    assert "\n" not in str(end.value)
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert [trial.user_attrs["error"] for trial in trials] == [cause] * 3
    assert [trial.value for trial in trials] == [None] * 3
    assert [f"trial {n} failed" in caplog.text for n in range(4)] == [True, True, True, False]


def test_one_trial_that_fails_does_not_end_the_study(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create(**SHORT, budget={"trials": 2})
    own = Objective.run

    def fails_once(self: Objective, asked: Any) -> Any:
        if asked.trial.number == 0:
            raise ZeroDivisionError("by what?\n  By zero.")
        return own(self, asked)

    monkeypatch.setattr(Objective, "run", fails_once)
    assert not work("tiny", place.url).failing
    states = [trial.state for trial in place.trials()]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert place.trials()[0].user_attrs["error"] == "ZeroDivisionError: by what? By zero."


def test_debugging_lets_the_error_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(**SHORT)

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Objective, "run", fails)
    with pytest.raises(ZeroDivisionError):
        work("tiny", place.url, debug=True)
    (trial,) = place.trials()
    assert (trial.state, trial.user_attrs["error"]) == (
        TrialState.FAIL, "ZeroDivisionError: by zero"
    )  # fmt: skip


# ------------------------------------------------------------------------ workers that end


def check_two_attempts(place: Place) -> None:
    """The trial ended its first worker's attempt; the second went on after its last epoch."""
    first, second = place.trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    before, after = epoch_records(first), epoch_records(second)
    assert 2 <= len(before) < 12
    assert after[: len(before)] == before  # by their times, too: nothing was done again
    assert [record["epoch"] for record in after] == list(range(1, 13))
    assert second.intermediate_values == {r["epoch"]: -r["val_loss"] for r in after}
    assert measured(after) == place.alone(1)
    paths = StudyPaths(place.folder / "artifacts", "tiny")
    assert [path.name for path in paths.folder.glob("trial-*")] == ["trial-00000"]
    checkpoint = f"epoch-{second.user_attrs['best_epoch']:04d}"
    assert [path.name for path in paths.run(0).checkpoints()] == [checkpoint]
    assert not paths.run(0).resume.exists()


@pytest.mark.slow
def test_a_worker_told_to_end_hands_its_trial_back(place: Place) -> None:
    place.create(**LONG)
    child = worker_process(place)
    place.wait_for_epoch(2, child)
    child.terminate()
    finished(child, code=128 + signal.SIGTERM, seconds=20)
    first, second = place.trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.WAITING)
    assert epoch_records(second) == epoch_records(first)
    begun = time.monotonic()
    assert work("tiny", place.url).spent.trials == 1
    assert time.monotonic() - begun < 30  # no waiting for signs of life
    check_two_attempts(place)


def test_an_interrupt_hands_the_trial_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(**LONG)
    own = Objective.stop_reason

    def interrupted(self: Objective, asked: Any, records: list[Any]) -> str | None:
        if len(records) == 2:
            raise KeyboardInterrupt
        return own(self, asked, records)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "stop_reason", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work("tiny", place.url)
    assert [trial.state for trial in place.trials()] == [TrialState.FAIL, TrialState.WAITING]
    work("tiny", place.url)
    check_two_attempts(place)


@pytest.mark.slow
def test_a_killed_workers_trial_is_retried(place: Place) -> None:
    place.create(**LONG)
    soon = {"heartbeat_s": 1, "grace_s": 2}
    child = worker_process(place, **soon)
    place.wait_for_epoch(2, child)
    child.kill()
    finished(child, code=-signal.SIGKILL)
    (trial,) = place.trials()
    assert trial.state is TrialState.RUNNING  # nobody knows yet
    work("tiny", place.url, **soon)
    check_two_attempts(place)


@pytest.mark.slow
def test_signs_of_life_keep_a_trial(place: Place) -> None:
    # Its worker runs much longer than the grace, and another one waits to take it over.
    place.create(**{**LONG, "data": {}, "training": {"epochs": 24, "cpu_threads": 1}})
    soon = {"heartbeat_s": 1, "grace_s": 2}
    child = worker_process(place, **soon, label="first")
    place.wait_for_epoch(1, child)
    begun = time.monotonic()
    work("tiny", place.url, **soon, label="second")
    assert time.monotonic() - begun > 3
    finished(child)
    (trial,) = place.trials()
    assert (trial.state, trial.user_attrs["worker"]) == (TrialState.COMPLETE, "first")


@pytest.mark.slow
def test_workers_share_the_budget_exactly(place: Place) -> None:
    place.create(**SHORT, budget={"trials": 7})
    finished(*[worker_process(place, label=f"worker-{n}") for n in (1, 2, 3)])
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
    for trial in trials[:2]:
        assert measured(epoch_records(trial)) == place.alone(trial.number)


# ------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_the_command_ends_with_the_cause_and_code_1(place: Place, tmp_path: Path) -> None:
    base = shutil.copytree(place.tiny / "base", tmp_path / "base")
    place.create(starts={"base": str(base)})
    shutil.rmtree(base)
    paths = StudyPaths(tmp_path / "artifacts", "tiny")
    workers = LocalWorkers("tiny", place.url, paths, 1)
    try:
        (worker,) = workers.workers
        assert worker.process.wait(60) == 1
    finally:
        workers.stop()
    assert worker.tail(1).startswith("error: study 'tiny' ends: 3 trials failed and 0 finished")
    log = worker.log.read_text()
    assert "trial 0 failed:" in log
    assert "Traceback" not in log
    assert {trial.user_attrs["worker"] for trial in place.trials()} == {"worker-1"}


@pytest.mark.slow
def test_the_command_hands_back_what_stop_ends(place: Place, tmp_path: Path) -> None:
    place.create(**{**LONG, "training": {"epochs": 200, "cpu_threads": 1}})
    paths = StudyPaths(tmp_path / "artifacts", "tiny")
    workers = LocalWorkers("tiny", place.url, paths, 1)
    try:
        process = workers.workers[0].process
        deadline = time.monotonic() + 60
        while not any(epoch_records(trial) for trial in place.trials()):
            assert process.poll() is None, workers.workers[0].tail(30)
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        workers.stop()
    assert process.returncode == 128 + signal.SIGTERM
    assert [trial.state for trial in place.trials()] == [TrialState.FAIL, TrialState.WAITING]
    log = workers.workers[0].log.read_text()
    assert "told to end; trial 0 is handed back" in log
    assert "Traceback" not in log
    assert "epoch 1 of 200: training loss" in log


def test_it_logs_what_it_does(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.create(**SHORT, budget={"trials": 1})
    with caplog.at_level(logging.INFO, logger="qa_hpo"):
        work("tiny", place.url)
    messages = [record.getMessage() for record in caplog.records]
    assert any(message.startswith("trial 0: learning_rate=") for message in messages)
    assert any(message.startswith("trial 0, epoch 1 of 1: training") for message in messages)
    assert "trial 0 ended: complete" in messages
    assert messages[-1] == "the budget is spent: 1 of 1 trials have finished"
