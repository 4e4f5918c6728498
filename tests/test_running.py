"""How a run looks after its workers; what launches them is a fake of the launchers' Protocol."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from cli_helpers import run_cli
from qa_hpo import printing, running
from qa_hpo.search.asking import ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.workers.launcher import Death, Launcher
from qa_hpo.workers.options import LaunchOptions
from qa_hpo.workers.worker import work
from tiny import study_file


class FakeLauncher:
    """Does at each poll what it is told to, and keeps what was asked of it."""

    def __init__(self, *polls: Callable[[], list[Death] | None]) -> None:
        self.polls = list(polls)
        self.calls: list[str] = []
        self.left = 1
        self.on_stop: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.calls.append("start")

    def poll(self) -> list[Death]:
        if not self.polls:
            self.left = 0
            return []
        return self.polls.pop(0)() or []

    def working(self) -> int:
        return self.left

    def stop(self, patience_s: float = 0.0) -> None:
        self.calls.append(f"stop {patience_s:g}")
        self.on_stop()

    def kill(self) -> None:
        self.calls.append("kill")


if TYPE_CHECKING:
    _: type[Launcher] = FakeLauncher


@pytest.fixture
def joined(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(printing, "_POLL_SECONDS", 0.01)
    monkeypatch.setenv("QA_HPO_CACHE", str(tmp_path / "cache"))
    file = study_file(
        tiny,
        tmp_path / "artifacts",
        training={"epochs": 1, "cpu_threads": 1},
        data={"train_limit": 24},
        budget={"trials": 1},
    )
    from qa_hpo.finetune.inputs import Inputs
    from qa_hpo.finetune.preflight import fingerprints
    from qa_hpo.paths import CachePaths

    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    found = fingerprints(file, Inputs(CachePaths()))
    yield create_study(file, storage, fingerprints=found)
    storage.close()


def run(joined: JoinedStudy, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(running, "make_launcher", lambda *_: launcher)
    return running.run_workers(joined, LaunchOptions())


def death(**facts: Any) -> Death:
    usual: dict[str, Any] = {
        "worker": "host-1-1",
        "host": "host",
        "pid": 17,
        "code": -9,
        "log": Path("logs/host-1-1.log"),
        "tail": "the last line,\nof postgresql://me:secret@there/db",
        "restarted": True,
    }
    return Death(**(usual | facts))


def test_a_run_ends_with_its_budget_though_jobs_wait_in_a_queue(
    joined: JoinedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = FakeLauncher(
        lambda: None, lambda: work("tiny", joined.storage.url) and None, *[lambda: None] * 1000
    )
    assert run(joined, launcher, monkeypatch) is True
    assert launcher.calls == ["start", "stop 15"]
    assert "trial 0 (base, " in capsys.readouterr().out
    assert running.run_workers(joined, LaunchOptions()) is True  # nothing is left to do
    assert "The budget is spent: nothing to do." in capsys.readouterr().out


def test_a_run_ends_when_no_worker_works_any_more(
    joined: JoinedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = FakeLauncher(lambda: None)
    assert run(joined, launcher, monkeypatch) is False
    assert launcher.calls == ["start", "stop 15"]


def test_a_death_is_told_and_its_trial_is_free_for_others(
    joined: JoinedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(joined, worker="host-1-1")
    launcher = FakeLauncher(
        lambda: [death()],
        lambda: [death(worker="host-1-1.1", code=3, restarted=False, tail="")],
        lambda: [death(worker="host-1-1.2", code=None, pid=None, restarted=False, tail="why")],
    )
    run(joined, launcher, monkeypatch)
    printed = capsys.readouterr().out
    assert (
        "worker host-1-1 (process 17 on host) was ended by SIGKILL at trial 0, started again; the "
        "end of logs/host-1-1.log:\nthe last line,\nof postgresql://me:***@there/db\n"
    ) in printed
    assert (
        "worker host-1-1.1 (process 17 on host) ended with code 3, not started again; its log is "
        "logs/host-1-1.log\n"
    ) in printed
    assert "worker host-1-1.2 ended unseen, not started again; the end of logs/" in printed
    (trial,) = joined.optuna_study.get_trials(states=(TrialState.FAIL,))
    assert trial.number == 0


def test_an_outage_ends_neither_the_run_nor_the_care_for_workers(
    joined: JoinedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(joined, worker="host-1-1")
    rdb = joined.storage.rdb
    patch = pytest.MonkeyPatch()

    def fails(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT 1", None, Exception("the server is away"))

    def begin() -> list[Death]:
        patch.setattr(rdb, "_get_trials", fails)
        patch.setattr(rdb, "get_all_trials", fails)
        return [death()]

    launcher = FakeLauncher(
        begin, lambda: None, lambda: [death(worker="x", code=5)], patch.undo, lambda: None
    )
    run(joined, launcher, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("the database does not answer; the workers wait for it") == 1
    assert printed.count("the database answers again") == 1
    assert "was ended by SIGKILL, started again" in printed
    assert "worker x (process 17 on host) ended with code 5" in printed
    # What could not be done meanwhile is done as soon as it can be.
    assert joined.optuna_study.trials[0].state is TrialState.FAIL


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_stops_its_workers(
    joined: JoinedStudy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    launcher = FakeLauncher(lambda: os.kill(os.getpid(), number))
    # Whoever ends a service tells it more than once; only Ctrl-C means more by it.
    launcher.on_stop = lambda: [signal.raise_signal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(joined, launcher, monkeypatch)
    assert launcher.calls == ["start", "stop 0"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().out == (
        "Interrupted: the running trials are handed back (Ctrl-C again stops at once). The same "
        "command goes on.\n"
    )


def test_a_second_interrupt_kills_the_workers(
    joined: JoinedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = FakeLauncher(interrupt)
    launcher.on_stop = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(joined, launcher, monkeypatch)
    assert launcher.calls == ["start", "stop 0", "kill"]


def test_workers_are_stopped_whatever_happens(
    joined: JoinedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    launcher = FakeLauncher(fails)
    with pytest.raises(ZeroDivisionError):
        run(joined, launcher, monkeypatch)
    assert launcher.calls == ["start", "stop 0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "none"], "--workers: 'none' is neither auto nor a number from 1"),
        (["--workers", "²"], "--workers: '²' is neither auto nor a number from 1"),
        (["--launcher", "rai"], "--launcher: 'rai' is none; did you mean 'ray'?"),
        (["--slurm", "partition=gpu"], "--slurm: goes with --launcher slurm, not with local"),
        (["--workers-per-device", "0"], "--workers-per-device: 0 is not a number from 1"),
        (["--launcher", "slurm"], "--workers: --launcher slurm needs a number: how many jobs to "),
        (
            ["--launcher", "slurm", "--workers", "2", "--workers-per-device", "2"],
            "--workers-per-device: goes with --launcher local or ray; Slurm gives each worker a j",
        ),
        (
            ["--launcher", "slurm", "--workers", "2", "--slurm", "partitio=gpu"],
            "--slurm: unknown parameter 'partitio'; did you mean 'partition'?",
        ),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    ended = run_cli("run", "study.toml", *options)  # which is not even looked at
    assert ended.code == 2
    assert ended.err.startswith(f"error: {words}")
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - began < 30
