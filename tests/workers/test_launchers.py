"""The contract of launchers, with real processes: each on this host, on Ray and on Slurm."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launcher_helpers import SECRET, STUDY, URL, StandIns, deaths, gone, until, write_stand_in

from qa_hpo.workers.launcher import Job, Launcher, log_of, reserve_name
from qa_hpo.workers.local import LocalLauncher
from qa_hpo.workers.ray import RayLauncher
from qa_hpo.workers.slurm import SlurmLauncher

Launch = Callable[..., Launcher]


@pytest.fixture(scope="module", params=["local", "ray", "slurm"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A kind of launcher, and what it needs for as long as its tests run."""
    folder = tmp_path_factory.mktemp(f"the {request.param}'s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(write_stand_in(folder / "on path")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        if request.param == "slurm":
            install_slurm(folder, patch)
        if request.param != "ray":
            yield request.param
            if request.param == "slurm":
                from fake_slurm import end_all

                end_all(folder / "slurm state")
            return
        import ray

        patch.setenv("RAY_ADDRESS", "local")
        before = signal.getsignal(signal.SIGTERM)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        signal.signal(signal.SIGTERM, before)  # Ray has one of its own
        try:
            yield request.param
        finally:
            ray.shutdown()


def install_slurm(folder: Path, patch: pytest.MonkeyPatch) -> None:
    state = folder / "slurm state"
    state.mkdir()
    patch.setenv("FAKE_SLURM", str(state))
    from fake_slurm import install

    install(folder / "slurm bin")
    patch.setenv("PATH", f"{folder / 'slurm bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    stand_ins = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("QA_HPO_STAND_IN", str(stand_ins.folder))
    yield stand_ins
    stand_ins.kill()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / STUDY / "logs"


@pytest.fixture
def launch(kind: str, stand_ins: StandIns, logs: Path) -> Iterator[Launch]:
    """Starts workers, each of which is a stand-in; none is left when the test ends."""
    launched: list[Launcher] = []

    def launch(count: int, how: str = "work", grace_s: float = 20.0) -> Launcher:
        stand_ins.do(how)
        job = Job(STUDY, URL, logs, count)
        kinds: dict[str, Callable[[], Launcher]] = {
            "local": lambda: LocalLauncher(job, grace_s=grace_s),
            "ray": lambda: RayLauncher(job, grace_s=grace_s),
            "slurm": lambda: SlurmLauncher(job, ["gpus_per_node=0"], grace_s=grace_s),
        }
        launched.append(kinds[kind]())
        launched[-1].start()
        return launched[-1]

    yield launch
    for launcher in launched:
        launcher.kill()


def test_what_workers_are_given_and_how_they_are_stopped(
    launch: Launch, stand_ins: StandIns, logs: Path
) -> None:
    launcher = launch(2)
    given = stand_ins.wait_for(2, launcher)
    assert launcher.working() == 2
    own = f"{socket.gethostname()}-{os.getpid()}"
    labels = []
    for one in given:
        arguments = dict(zip(one["arguments"][::2], one["arguments"][1::2], strict=True))
        assert list(arguments) == ["--study", "--label", "--cpu-threads"]
        assert arguments["--study"] == STUDY
        labels.append(arguments["--label"])
        assert SECRET not in one["command"]
        assert one["environment"]["QA_HPO_STORAGE"] == URL
        threads = arguments["--cpu-threads"]
        assert one["environment"]["OMP_NUM_THREADS"] == threads
        assert 1 <= int(threads) <= len(os.sched_getaffinity(0))
    assert sorted(labels) == [f"{own}-1", f"{own}-2"]
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert SECRET not in shown.stdout
    launcher.stop()
    assert launcher.working() == 0
    assert launcher.poll() == []  # who is told to end has not died
    assert all(stand_ins.told(one["pid"]) and gone(one["pid"]) for one in given)
    launcher.stop()  # once more does no harm
    for index in (1, 2):
        assert log_of(logs, own, index).read_text() == "a line of mine\nthe last line of mine\n"
    for path in logs.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_a_killed_worker_is_started_again_under_another_label(
    launch: Launch, stand_ins: StandIns, logs: Path
) -> None:
    launcher = launch(1)
    (first,) = stand_ins.wait_for(1)
    os.kill(first["pid"], signal.SIGKILL)
    (death,) = deaths(launcher, 1)
    own = f"{socket.gethostname()}-{os.getpid()}-1"
    assert (death.worker, death.host, death.pid) == (own, socket.gethostname(), first["pid"])
    assert (death.code, death.restarted) == (-signal.SIGKILL, True)
    assert death.log == logs / f"{own}.log"
    assert death.tail == "a line of mine\nthe last line of mine"
    _, second = stand_ins.wait_for(2, launcher)
    assert launcher.working() == 1
    assert f"{own}.1" in second["arguments"]
    assert death.log.read_text().count("the last line of mine") == 2  # the same log goes on
    launcher.kill()
    until(lambda: gone(second["pid"]), 20)
    assert launcher.working() == 0


def test_a_worker_whose_work_is_done(launch: Launch, stand_ins: StandIns) -> None:
    launcher = launch(2, "0")
    stand_ins.wait_for(2)
    until(lambda: launcher.working() == 0)
    assert launcher.poll() == []
    assert len(stand_ins.given()) == 2


def test_a_worker_that_was_refused_is_not_started_again(
    launch: Launch, stand_ins: StandIns
) -> None:
    launcher = launch(1, "2")
    (death,) = deaths(launcher, 1)
    assert (death.code, death.restarted) == (2, False)
    assert death.tail.endswith("the last line of mine")
    until(lambda: launcher.working() == 0)
    assert launcher.poll() == []
    assert len(stand_ins.given()) == 1


def test_a_worker_that_fails_is_started_again_after_longer_and_longer(
    launch: Launch, stand_ins: StandIns
) -> None:
    launcher = launch(1, "1")
    found = deaths(launcher, 3)
    assert [(death.code, death.restarted) for death in found] == [(1, True)] * 3
    assert len({death.pid for death in found}) == len({death.worker for death in found}) == 3
    first, second, third = [one["at"] for one in stand_ins.wait_for(3)][:3]
    assert second - first >= 0.5
    assert third - second >= 1.0
    launcher.stop()
    assert launcher.working() == 0


def test_a_worker_that_does_not_end_is_killed(launch: Launch, stand_ins: StandIns) -> None:
    launcher = launch(1, "stubborn", grace_s=0.5)
    (one,) = stand_ins.wait_for(1)
    launcher.stop()
    until(lambda: gone(one["pid"]), 20)
    assert launcher.working() == 0


# ------------------------------------------------------------------------ what all of them use


def test_no_two_launchers_have_a_name(tmp_path: Path) -> None:
    own = f"{socket.gethostname()}-{os.getpid()}"
    names = [reserve_name(tmp_path / "logs") for _ in range(3)]
    assert names == [own, f"{own}_2", f"{own}_3"]
    assert reserve_name(tmp_path / "others") == own


def test_launchers_and_their_options_import_no_torch() -> None:
    code = (
        "import sys, qa_hpo.workers.options\n"
        "print([name for name in ('torch', 'transformers', 'optuna', 'ray', 'submitit')"
        " if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
