import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from launcher_helpers import STUDY, URL, StandIns, deaths, gone, until, write_stand_in

from qa_hpo.errors import InputError, WorkError
from qa_hpo.workers.launcher import Job, signals_held, tail
from qa_hpo.workers.leases import Gpu
from qa_hpo.workers.local import LocalLauncher, check_local
from qa_hpo.workers.restarts import Restarts

Launch = Callable[..., LocalLauncher]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    monkeypatch.setenv("PYTHONPATH", str(write_stand_in(tmp_path / "on path")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    stand_ins = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("QA_HPO_STAND_IN", str(stand_ins.folder))
    yield stand_ins
    stand_ins.kill()


@pytest.fixture
def launch(tmp_path: Path, stand_ins: StandIns) -> Iterator[Launch]:
    """Starts workers, each of which is a stand-in; none is left when the test ends."""
    launched: list[LocalLauncher] = []

    def launch(
        count: int | None, devices: Sequence[str] = (), per_device: int = 1
    ) -> LocalLauncher:
        job = Job(STUDY, URL, tmp_path / "logs", count, per_device)
        gpus = [Gpu(name, name) for name in devices]
        launched.append(LocalLauncher(job, devices=gpus, leases=tmp_path / "leases"))
        launched[-1].start()
        return launched[-1]

    yield launch
    for launcher in launched:
        launcher.kill()


def devices_of(given: list[dict]) -> list[str]:
    return sorted(one["environment"]["CUDA_VISIBLE_DEVICES"] for one in given)


def test_two_runs_share_no_gpu(launch: Launch, stand_ins: StandIns) -> None:
    devices = ["5", "7", "9"]
    first = launch(1, devices)
    assert devices_of(stand_ins.wait_for(1)) == ["5"]
    second = launch(None, devices)  # all that are free
    assert devices_of(stand_ins.wait_for(3)) == devices
    assert second.working() == 2
    with pytest.raises(InputError, match=r"none of 3 GPUs \(5, 7, 9\) is free; wait for the work"):
        launch(None, devices)
    assert "--cpu-threads" not in stand_ins.given()[0]["arguments"]
    # A worker that ends frees its GPU for others, and not before.
    first.stop()
    launch(1, devices)
    assert devices_of(stand_ins.wait_for(4)) == ["5", "5", "7", "9"]
    assert len({one["arguments"][3] for one in stand_ins.given()}) == 4


def test_a_worker_that_is_started_again_keeps_its_gpu(launch: Launch, stand_ins: StandIns) -> None:
    launcher = launch(None, ["5", "7"])
    before = stand_ins.wait_for(2)
    os.kill(before[0]["pid"], signal.SIGKILL)
    until(lambda: gone(before[0]["pid"]))
    with pytest.raises(InputError, match="none of 2 GPUs"):  # nobody gets in between
        launch(1, ["5", "7"])
    deaths(launcher, 1)
    again = stand_ins.wait_for(3)[2]["environment"]["CUDA_VISIBLE_DEVICES"]
    assert again == before[0]["environment"]["CUDA_VISIBLE_DEVICES"]


def test_too_many_workers(launch: Launch, stand_ins: StandIns) -> None:
    with pytest.raises(InputError) as told:
        launch(5, ["5", "7"])
    assert str(told.value) == (
        "--workers: 5 are asked for and 2 of 2 GPUs (5, 7) are free; --workers-per-device 3 would "
        "let them share"
    )
    launch(1, ["5", "7"])
    with pytest.raises(InputError, match=r"2 are asked for and 1 of 2 GPUs \(5, 7\) is free; --wo"):
        launch(2, ["5", "7"])
    assert len(stand_ins.wait_for(1)) == 1  # nothing was started


def test_workers_that_share_gpus(launch: Launch, stand_ins: StandIns) -> None:
    launch(3, ["5", "7"], per_device=2)
    assert devices_of(stand_ins.wait_for(3)) == ["5", "5", "7"]
    launch(None, ["5", "7"], per_device=2)
    assert devices_of(stand_ins.wait_for(4)) == ["5", "5", "7", "7"]
    with pytest.raises(InputError, match=r"none of 2 GPUs \(5, 7\) is free with 2 workers on each"):
        launch(1, ["5", "7"], per_device=2)


@pytest.mark.parametrize(
    ("count", "per_device", "workers"), [(None, 1, 1), (2, 1, 2), (None, 2, 2), (3, 2, 3)]
)
def test_workers_share_the_cores(
    launch: Launch, stand_ins: StandIns, count: int | None, per_device: int, workers: int
) -> None:
    launch(count, per_device=per_device)
    threads = str(max(1, len(os.sched_getaffinity(0)) // workers))
    for one in stand_ins.wait_for(workers):
        assert one["arguments"][-2:] == ["--cpu-threads", threads]
        assert one["environment"]["OMP_NUM_THREADS"] == threads
    assert len(stand_ins.given()) == workers


def test_the_check_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "one,another")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check_local(None, 1)
    check_local(2, 1)
    check_local(4, 2)
    with pytest.raises(InputError, match=r"2 GPUs \(one, another\) are free; --workers-per-dev"):
        check_local(3, 1)
    with pytest.raises(InputError, match=r"2 GPUs .* have room for 4 with 2 workers on each; --"):
        check_local(5, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_local(32, 1)
    with pytest.raises(
        InputError, match=r"--workers: 100000 is more than \d+, the most for a host "
    ):
        check_local(100_000, 1)


def test_an_interrupt_of_the_launcher_does_not_reach_the_workers(
    launch: Launch, stand_ins: StandIns
) -> None:
    launch(1)
    pid = stand_ins.wait_for(1)[0]["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)


def test_workers_may_end_by_themselves_first(launch: Launch, stand_ins: StandIns) -> None:
    launcher = launch(2)
    first, second = stand_ins.wait_for(2)
    timer = threading.Timer(0.5, os.kill, (first["pid"], signal.SIGTERM))
    timer.start()
    launcher.stop(patience_s=1.5)
    timer.join()
    assert stand_ins.told(second["pid"])
    assert gone(first["pid"])
    assert len(stand_ins.given()) == 2  # none was started again


def test_logs_that_cannot_be_written(tmp_path: Path, stand_ins: StandIns) -> None:
    (tmp_path / "logs").touch()
    launcher = LocalLauncher(Job(STUDY, URL, tmp_path / "logs"), devices=[])
    with pytest.raises(WorkError, match=r"a worker cannot be started: .*File exists"):
        launcher.start()
    launcher.stop()
    assert launcher.working() == 0


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_bytes(b"x" * 10_000 + b"\n" + b"".join(b"%d\n" % n for n in range(50)) + b"\xff")
    assert tail(log, 3).splitlines() == ["48", "49", "\ufffd"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as it is in the foreground: a shell has what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_signals_are_held_until_a_child_is_noted() -> None:
    steps = []

    def start() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            steps.append("noted")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert steps == ["noted"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_tied_process_ends_with_its_parent() -> None:
    code = (
        "import subprocess, sys, os, time\n"
        "tie = [sys.executable, '-m', 'qa_hpo.workers.tie', str(os.getpid())]\n"
        "code = 'print(1, flush=True); import time; time.sleep(600)'\n"
        "child = subprocess.Popen([*tie, sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        os.kill(child, signal.SIGUSR2)  # a scheduler's word, which the parent heeds
        parent.kill()
    until(lambda: gone(child), 10)


# ------------------------------------------------------------------------ how often, how soon


def restarts(*lives: tuple[float, int]) -> list[float | None]:
    """What follows on lives of so many seconds that ended with a code."""
    now = itertools.accumulate(life for life, _ in lives)
    times = [0.0, *itertools.chain.from_iterable((at, at) for at in now)]
    clock = iter(times)
    worker = Restarts(lambda: next(clock))
    found = []
    for _, code in lives:
        found.append(worker.ended(code))
        worker.started()
    return found


@pytest.mark.parametrize("code", [0, 2])
def test_who_is_done_or_refused_is_not_started_again(code: int) -> None:
    assert Restarts().ended(code) is None


def test_delays_double_up_to_half_a_minute_and_ten_in_a_row_are_enough() -> None:
    expected = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, None]
    assert restarts(*[(1.0, 1)] * 11) == expected
    assert restarts(*[(1.0, -signal.SIGSEGV)] * 11) == expected


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, 143])
def test_who_is_killed_from_outside_is_started_again_at_once(code: int) -> None:
    assert restarts(*[(1.0, code)] * 11) == [0.0] * 10 + [None]


def test_who_lived_for_a_minute_may_die_again() -> None:
    assert restarts(*[(1.0, 1)] * 10, (61.0, 1), (1.0, 1)) == [
        *(0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30), 0.5, 0.5,
    ]  # fmt: skip
    assert restarts(*[(60.0, 1)] * 40) == [0.5] * 40
