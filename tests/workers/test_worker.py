import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import load_file
from sqlalchemy.exc import OperationalError

from processes import finished, start
from qa_hpo.config import StudyFile
from qa_hpo.errors import (
    ArtifactError,
    CheckpointError,
    DiskFullError,
    DivergedError,
    OutageError,
    OutOfMemoryError,
    StorageError,
    WindowError,
    WorkError,
)
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths
from qa_hpo.results.select import exported_trial, run_config
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.stopping import StoppingRules
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study, load_study
from qa_hpo.search.trials import epoch_records
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
            create_study(file, storage, fingerprints=fingerprints(file, inputs))
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
    with pytest.raises(StorageError, match=r"data\.train is not the one that the study "):
        work("tiny", place.url)
    assert place.trials() == []


def test_it_refuses_another_start(place: Place, tmp_path: Path) -> None:
    base = shutil.copytree(place.tiny / "base", tmp_path / "base")
    place.create(starts={"base": str(base)})
    with (base / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(StorageError, match=r"starts\.base is not the one that the study was "):
        work("tiny", place.url)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=r"starts\.base: .*base: no such checkpoint folder"):
        work("tiny", place.url)
    assert place.trials() == []


# ------------------------------------------------------------------------ trials that fail


def fails(monkeypatch: pytest.MonkeyPatch, *attempts: int, error: Exception) -> None:
    """Let the trials of these numbers fail of ``error``, all if none is given."""
    own = Objective.run

    def failing(self: Objective, asked: Any) -> Any:
        if not attempts or asked.trial.number in attempts:
            raise error
        return own(self, asked)

    monkeypatch.setattr(Objective, "run", failing)


def test_a_study_whose_trials_fail_ends_with_the_cause(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(place.tiny / "base", tmp_path / "base")
    place.create(starts={"base": str(base)})
    own = Objective.run

    def vanishing(self: Objective, asked: Any) -> Any:
        shutil.rmtree(base, ignore_errors=True)
        return own(self, asked)

    monkeypatch.setattr(Objective, "run", vanishing)
    with pytest.raises(WorkError, match="study 'tiny' ends: 3 trials failed and 0 finished") as end:
        work("tiny", place.url)
    error = f"{base}: no such checkpoint folder (looked in {Path.cwd()})"
    assert str(end.value).endswith(f", the last of them of: {error}")
    assert "\n" not in str(end.value)
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert [trial.user_attrs["error"] for trial in trials] == [error] * 3
    assert [trial.user_attrs["cause"] for trial in trials] == ["data"] * 3
    assert [trial.value for trial in trials] == [None] * 3
    assert len({trial.params["learning_rate"] for trial in trials}) == 3  # none is tried again
    assert [f"trial {n} failed" in caplog.text for n in range(4)] == [True, True, True, False]


def test_an_error_that_does_not_come_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(**SHORT, budget={"trials": 2})
    fails(monkeypatch, 0, error=ZeroDivisionError("by what?\n  By zero."))
    assert not work("tiny", place.url).failing
    failed, retry, other = place.trials()
    assert [trial.state for trial in (failed, retry, other)] == [
        TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE
    ]  # fmt: skip
    assert failed.user_attrs["error"] == "ZeroDivisionError: by what? By zero."
    assert failed.user_attrs["cause"] == "error"
    assert retry.params == failed.params
    assert measured(epoch_records(retry)) == place.alone(1)
    assert other.params != failed.params


def test_an_error_that_comes_again_is_not_tried_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create(**SHORT, budget={"trials": 2})
    fails(monkeypatch, 0, 1, error=ZeroDivisionError("by zero"))
    assert work("tiny", place.url).spent.failed == 1  # one trial, in two attempts
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2
    assert trials[1].params == trials[0].params
    assert len({trial.params["learning_rate"] for trial in trials}) == 3


def test_an_outage_that_does_not_end_ends_the_worker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create(**SHORT)
    fails(monkeypatch, error=OutageError("the database has not answered for 1800 s"))
    with pytest.raises(OutageError):
        work("tiny", place.url)
    (trial,) = place.trials()  # there was nobody to tell; another worker takes it over
    assert trial.state is TrialState.RUNNING


def test_a_failing_database_is_told_of_in_its_own_words(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.create(**SHORT, budget={"trials": 1})
    error = StorageInternalError("An exception is raised during the commit. This typically ...")
    error.__cause__ = OperationalError("INSERT", {}, Exception("database or disk is full"))
    fails(monkeypatch, 0, error=error)
    work("tiny", place.url)
    first = place.trials()[0]
    assert (first.user_attrs["cause"], first.user_attrs["error"]) == (
        "database", "database or disk is full"
    )  # fmt: skip
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("error", "cause", "attempts"),
    [
        (OutOfMemoryError("one window does not fit"), "oom", 1),
        (DivergedError("the start diverged"), "diverged", 1),
        (WindowError("too short"), "data", 1),
        (StorageError("no such table"), "database", 4),
        (ArtifactError("no bucket"), "artifacts", 4),
        (DiskFullError("full"), "disk", 4),
        (OSError(28, "No space left on device"), "disk", 4),
        (RuntimeError("what?"), "error", 2),
    ],
)
def test_causes(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str, attempts: int
) -> None:
    place.create(**SHORT, budget={"trials": 2})
    fails(monkeypatch, *range(attempts), error=error)
    work("tiny", place.url)
    trials = place.trials()
    states = [TrialState.FAIL] * attempts + [TrialState.COMPLETE] * 2
    assert [trial.state for trial in trials] == states
    assert {trial.user_attrs["cause"] for trial in trials[:attempts]} == {cause}
    assert len({trial.params["learning_rate"] for trial in trials[:attempts]}) == 1


def test_a_disk_that_fills_stops_trials_in_one_line(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The artifacts' disk has room for a few trials; what is there stays whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (place.tiny / "base").iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={7 * size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system to fill")
    try:
        place.create(
            **{**SHORT, "training": {"epochs": 2, "cpu_threads": 1}},
            budget={"trials": 50},
            artifacts={"folder": str(disk / "artifacts"), "keep": 50},
        )
        with pytest.raises(WorkError, match=r"artifacts: no space left on the device$"):
            work("tiny", place.url)
        over = [trial for trial in place.trials() if trial.state is not TrialState.FAIL]
        failed = [trial for trial in place.trials() if trial.state is TrialState.FAIL]
        assert len(over) >= 2
        assert {trial.user_attrs["cause"] for trial in failed} == {"disk"}
        line = f"{disk}/artifacts: no space left on the device"
        assert {trial.user_attrs["error"] for trial in failed} == {line}
        assert "Traceback" not in caplog.text
        # Those who finished have whole checkpoints, and nothing half-written lies about.
        with place.joined() as joined:
            for trial in over:
                with exported_trial(joined, trial.number) as exported:
                    load_file(exported.checkpoint / "model.safetensors")
        assert not list((disk / "artifacts").glob(".*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_broken_gpu_ends_its_worker(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(**SHORT)
    fails(monkeypatch, error=RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        work("tiny", place.url)
    (trial,) = place.trials()  # another process tries it again
    assert (trial.state, trial.user_attrs["cause"]) == (TrialState.FAIL, "error")


def test_debugging_lets_the_error_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(**SHORT)
    fails(monkeypatch, error=ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        work("tiny", place.url, debug=True)
    (trial,) = place.trials()
    assert (trial.state, trial.user_attrs["error"]) == (
        TrialState.FAIL, "ZeroDivisionError: by zero"
    )  # fmt: skip


# ------------------------------------------------------------------------ workers that end


def check_gone_on(place: Place, before: list[dict[str, Any]], trial: FrozenTrial) -> None:
    """A worker ended after the epochs ``before``, and the trial was finished by another one."""
    assert trial.state is TrialState.COMPLETE
    after = epoch_records(trial)
    assert 2 <= len(before) < 12
    assert after[: len(before)] == before  # by their times, too: nothing was done again
    assert [record["epoch"] for record in after] == list(range(1, 13))
    assert trial.intermediate_values == {r["epoch"]: -r["val_loss"] for r in after}
    assert measured(after) == place.alone(trial.number)
    # The best checkpoint is kept, what it answered and the table of epochs, and nothing to go on
    # from; nothing is left where it trained.
    best = trial.user_attrs["best_epoch"]
    stored = {path.name for path in (place.folder / "artifacts").iterdir() if path.is_file()}
    told = {
        json.loads(value)["filename"]: name.removeprefix("artifacts:")
        for name, value in trial.system_attrs.items()
        if name.startswith("artifacts:")
    }
    assert stored == set(told.values())
    names = (f"checkpoint-epoch-{best}.tar", f"scores-epoch-{best}.npz")
    assert set(told) == {*names, f"predictions-epoch-{best}.json", "epochs.csv"}
    assert {int(told[name].split("-")[2]) for name in names} == {best}
    assert list((place.folder / "cache" / "runs").glob("run-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_end_hands_its_trial_back(place: Place, number: int) -> None:
    place.create(**LONG)
    child = worker_process(place)
    place.wait_for_epoch(2, child)
    assert child.pid is not None
    os.kill(child.pid, number)
    # Python's own end by KeyboardInterrupt is code 1 in such a child.
    finished(child, code=143 if number == signal.SIGTERM else 1, seconds=20)
    (trial,) = place.trials()
    assert trial.state is TrialState.WAITING
    before = epoch_records(trial)
    begun = time.monotonic()
    assert work("tiny", place.url).spent.trials == 1
    assert time.monotonic() - begun < 30  # no waiting for signs of life
    (trial,) = place.trials()
    check_gone_on(place, before, trial)


def test_an_interrupt_hands_the_trial_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(**LONG)
    own = StoppingRules.reason

    def interrupted(self: StoppingRules, asked: Any, records: list[Any]) -> str | None:
        if len(records) == 2:
            raise KeyboardInterrupt
        return own(self, asked, records)

    with monkeypatch.context() as patch:
        patch.setattr(StoppingRules, "reason", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work("tiny", place.url)
    (trial,) = place.trials()
    assert trial.state is TrialState.WAITING
    before = epoch_records(trial)
    work("tiny", place.url)
    (trial,) = place.trials()
    check_gone_on(place, before, trial)


@pytest.mark.slow
def test_a_second_interrupt_ends_the_worker_at_once(place: Place) -> None:
    place.create(**LONG)
    child = start(work_that_hands_back_for_long, place.url, str(place.folder / "cache"))
    place.wait_for_epoch(2, child)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGINT)
    time.sleep(1)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGINT)
    finished(child, code=-signal.SIGINT, seconds=5)
    (trial,) = place.trials()
    assert trial.state is TrialState.RUNNING


def work_that_hands_back_for_long(url: str, cache: str) -> None:
    from qa_hpo.workers import worker

    worker.hand_back = lambda *_: time.sleep(60)
    work_apart(url, cache, {})


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
    first, second = place.trials()
    assert (first.state, first.user_attrs["cause"]) == (TrialState.FAIL, "worker died")
    check_gone_on(place, epoch_records(first), second)


@pytest.mark.slow
def test_a_worker_that_dies_before_it_can_tell_trains_nothing_again(
    place: Place, tmp_path: Path
) -> None:
    """All epochs are recorded, and the worker is killed before it finishes the trial."""
    place.create(**{**LONG, "training": {"epochs": 3, "cpu_threads": 1}})
    child = start(work_and_die_in, place.url, str(place.folder / "cache"), "finish")
    finished(child, code=-signal.SIGKILL)
    (trial,) = place.trials()
    assert (trial.state, len(epoch_records(trial))) == (TrialState.RUNNING, 3)
    time.sleep(3.5)
    child = start(work_and_die_in, place.url, str(place.folder / "cache"), "fine_tune")
    finished(child)  # it never needs to fine-tune
    _, second = place.trials()
    assert second.state is TrialState.COMPLETE
    assert epoch_records(second) == epoch_records(trial)
    assert second.value == max(record["best_f1"] for record in epoch_records(trial))


def work_and_die_in(url: str, cache: str, name: str) -> None:
    from processes import dies_in
    from qa_hpo.search import objective

    dies_in(objective, name, 1)
    work_apart(url, cache, {"heartbeat_s": 1, "grace_s": 2})


@pytest.mark.slow
def test_a_suspended_worker_drops_the_trial_that_was_taken_over(place: Place) -> None:
    place.create(**LONG)
    soon = {"heartbeat_s": 1, "grace_s": 2}
    child = worker_process(place, **soon, label="suspended")
    place.wait_for_epoch(2, child)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    work("tiny", place.url, **soon, label="other")
    os.kill(child.pid, signal.SIGCONT)
    finished(child)  # it drops its work and finds the budget spent
    first, second = place.trials()
    assert first.user_attrs["worker"] == "suspended"
    assert second.user_attrs["worker"] == "other"
    check_gone_on(place, epoch_records(first), second)


@pytest.mark.slow
def test_signs_of_life_keep_a_trial(place: Place) -> None:
    # Its worker runs much longer than the grace, and another one waits to take it over.
    place.create(**{**LONG, "training": {"epochs": 24, "cpu_threads": 1}})
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


@contextlib.contextmanager
def command(place: Place) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "qa_hpo", "worker", "--study", "tiny", "--label", "me"],
        env={**os.environ, "QA_HPO_STORAGE": place.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_command_ends_with_the_cause_and_code_2(place: Place, tmp_path: Path) -> None:
    base = shutil.copytree(place.tiny / "base", tmp_path / "base")
    place.create(starts={"base": str(base)})
    shutil.rmtree(base)
    with command(place) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == (
        f"error: starts.base: {base}: no such checkpoint folder (looked in {Path.cwd()})\n"
    )


@pytest.mark.slow
def test_the_command_hands_back_when_it_is_told_to_end(place: Place) -> None:
    place.create(**{**LONG, "training": {"epochs": 200, "cpu_threads": 1}})
    with command(place) as process:
        deadline = time.monotonic() + 60
        while not any(epoch_records(trial) for trial in place.trials()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        log, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    (trial,) = place.trials()
    assert (trial.state, trial.user_attrs["worker"]) == (TrialState.WAITING, "me")
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
