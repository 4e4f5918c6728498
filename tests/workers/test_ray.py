"""Workers on a Ray that really runs on this host; the contract's tests are in test_launchers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from launcher_helpers import STUDY, URL, StandIns, deaths, gone, until, write_stand_in
from optuna.trial import TrialState
from test_worker import LONG, Place

from qa_hpo.errors import InputError
from qa_hpo.search.trials import epoch_records
from qa_hpo.workers.launcher import Death, Job
from qa_hpo.workers.ray import RayLauncher, Roll, check_ray, cpu_share

GPUS = 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this host with two cores and two GPUs, of which there is only the word."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("on path")
        patch.setenv("PYTHONPATH", str(write_stand_in(folder)))
        patch.setenv("RAY_ADDRESS", "local")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        before = signal.getsignal(signal.SIGTERM)
        ray.init(num_cpus=2, num_gpus=GPUS, include_dashboard=False, log_to_driver=False)
        signal.signal(signal.SIGTERM, before)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def stand_ins(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    stand_ins = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("QA_HPO_STAND_IN", str(stand_ins.folder))
    yield stand_ins
    stand_ins.kill()


@pytest.fixture
def launchers(stand_ins: StandIns) -> Iterator[list[RayLauncher]]:
    launchers: list[RayLauncher] = []
    yield launchers
    for launcher in launchers:
        launcher.kill()


def started(launchers: list[RayLauncher], folder: Path, **options: Any) -> RayLauncher:
    launchers.append(RayLauncher(Job(STUDY, URL, folder / "logs", **options), grace_s=20))
    launchers[-1].start()
    return launchers[-1]


def test_one_worker_on_each_gpu(
    stand_ins: StandIns, launchers: list[RayLauncher], tmp_path: Path
) -> None:
    launcher = started(launchers, tmp_path)
    given = stand_ins.wait_for(GPUS, launcher)
    environments = [one["environment"] for one in given]
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in environments) == ["0", "1"]
    assert all("OMP_NUM_THREADS" not in one for one in environments)
    assert all("--cpu-threads" not in one["arguments"] for one in given)
    launcher.stop()
    shared = started(launchers, tmp_path, count=3, per_device=2)
    given = stand_ins.wait_for(GPUS + 3, shared)[GPUS:]
    devices = sorted(one["environment"]["CUDA_VISIBLE_DEVICES"] for one in given)
    assert devices in (["0", "0", "1"], ["0", "1", "1"])


def test_more_workers_than_gpus(launchers: list[RayLauncher], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5 are asked for and the cluster has 2 GPUs; --worker"):
        started(launchers, tmp_path, count=5)
    assert launchers[-1].working() == 0
    launchers[-1].stop()


def test_a_worker_ends_with_the_process_of_its_task(
    stand_ins: StandIns, launchers: list[RayLauncher], tmp_path: Path
) -> None:
    launcher = started(launchers, tmp_path, count=1)
    (first,) = stand_ins.wait_for(1, launcher)
    task = psutil.Process(first["pid"]).ppid()
    os.kill(task, signal.SIGKILL)
    until(lambda: gone(first["pid"]), 20)
    assert stand_ins.told(first["pid"])  # to hand its trial back
    (death,) = deaths(launcher, 1)  # which nobody saw, but the next attempt tells of it
    label = f"{socket.gethostname()}-{os.getpid()}-1"
    assert (death.worker, death.pid, death.code) == (label, first["pid"], None)
    assert death.restarted
    _, second = stand_ins.wait_for(2, launcher)
    assert f"{label}.1" in second["arguments"]


def test_a_worker_that_cannot_be_started(
    stand_ins: StandIns, launchers: list[RayLauncher], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    launchers.append(RayLauncher(Job(STUDY, URL, tmp_path / "logs", 1)))
    monkeypatch.setattr("pathlib.Path.cwd", lambda: Path("/nowhere on this host"))
    launchers[-1].start()
    (death,) = deaths(launchers[-1], 1)
    assert "No such file or directory: '/nowhere on this host'" in death.tail
    assert not death.restarted
    assert launchers[-1].working() == 0


@pytest.mark.slow
def test_a_study_comes_to_its_end_though_a_worker_is_killed(
    cluster: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QA_HPO_CACHE", str(tmp_path / "cache"))
    place = Place(tmp_path, tiny)
    place.create(**{**LONG, "training": {"epochs": 20, "cpu_threads": 1}})
    launcher = RayLauncher(Job("tiny", place.url, tmp_path / "logs", 1))
    try:
        launcher.start()
        until(lambda: any(len(epoch_records(trial)) >= 1 for trial in place.trials()), 180)
        (trial,) = place.trials()
        log = tmp_path / "logs" / f"{trial.user_attrs['worker']}.log"
        (worker,) = [
            one for one in psutil.process_iter(["cmdline"])
            if {"worker", trial.user_attrs["worker"]} <= set(one.info["cmdline"] or ())
        ]  # fmt: skip
        worker.kill()
        (death,) = deaths(launcher, 1)
        assert (death.worker, death.pid, death.log) == (
            trial.user_attrs["worker"], worker.pid, log
        )  # fmt: skip
        with place.joined() as joined:
            from qa_hpo.search.asking import release_trials

            assert release_trials(joined, death.worker) == [0]
        until(lambda: launcher.working() == 0, 180)
        assert launcher.poll() == []
    finally:
        launcher.kill()
    first, second = place.trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert second.user_attrs["worker"] == f"{trial.user_attrs['worker']}.1"
    assert len(epoch_records(second)) == 20
    assert epoch_records(second)[: len(epoch_records(first))] == epoch_records(first)


# ------------------------------------------------------------------------ without a cluster


def test_a_ray_of_its_own_is_gone_with_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import signal, sys\nfrom pathlib import Path\nimport ray\n"
        "from qa_hpo.workers.launcher import Job\nfrom qa_hpo.workers.ray import RayLauncher\n"
        "launcher = RayLauncher(Job('a study', 'sqlite://', Path(sys.argv[1]), 1))\n"
        "launcher.start()\n"
        "print(launcher.working(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "launcher.stop()\nprint(launcher.working(), ray.is_initialized())\n"
    )
    monkeypatch.setenv("RAY_ADDRESS", "local")
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1 True\n0 False\n"
    assert ended.stderr == ""


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is missing; pip install 'qa_hpo\[ray\]'"):
        check_ray()


@pytest.mark.parametrize(
    ("nodes", "count", "share"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8], 3, 2),
        ([3, 3], 2, 3),
        ([3, 3], 3, 1),  # 2 would leave the third without a place
        ([16, 4], 5, 4),
        ([2], 3, 0.6666),
        ([1, 1], 8, 0.25),
    ],
)
def test_cores_are_shared_out_so_that_all_have_a_place(
    nodes: list[float], count: int, share: float
) -> None:
    assert cpu_share(nodes, count) == share


def test_the_roll_of_workers(tmp_path: Path) -> None:
    roll = Roll("host-1", tmp_path)
    assert roll.begin(1) == (0, 0.0)
    roll.running(1, "there", 7)
    assert roll.ended(1, 1, "why") is True
    log = tmp_path / "host-1-1.log"
    assert roll.deaths() == [Death("host-1-1", "there", 7, 1, log, "why", restarted=True)]
    assert roll.deaths() == []
    assert roll.begin(1) == (1, 0.5)
    roll.running(1, "elsewhere", 8)
    assert roll.begin(1) == (2, 0.0)  # without a word of the end: killed
    assert roll.deaths() == [
        Death("host-1-1.1", "elsewhere", 8, None, log, "", restarted=True)
    ]  # fmt: skip
    assert roll.ended(1, 0, "") is False
    assert roll.begin(2) == (0, 0.0)
    assert roll.ended(2, 2, "no") is False
    assert [death.restarted for death in roll.deaths()] == [False]


def test_the_roll_gives_a_worker_up(tmp_path: Path) -> None:
    roll = Roll("host-1", tmp_path)
    for number in range(11):
        begun = roll.begin(1)
        assert begun is not None
        assert begun[0] == number
    assert roll.begin(1) is None
    assert [death.restarted for death in roll.deaths()] == [True] * 10 + [False]
