"""Workers on Slurm, whose commands are fakes; the contract's tests are in test_launchers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from launcher_helpers import SECRET, STUDY, URL, StandIns, deaths, gone, until, write_stand_in
from optuna.trial import TrialState
from test_worker import LONG, SHORT, Place, measured

from qa_hpo.errors import InputError
from qa_hpo.search.trials import epoch_records
from qa_hpo.workers.launcher import STORAGE, Job
from qa_hpo.workers.slurm import SlurmLauncher, check_slurm, parameters_of
from qa_hpo.workers.slurm_job import SlurmJob

# ------------------------------------------------------------------------ parameters


def test_parameters() -> None:
    assert parameters_of(()) == {"timeout_min": 240, "gpus_per_node": 1}
    given = parameters_of(
        [
            *("partition=gpu", "timeout_min=600", "mem_gb=32", "gpus_per_node=a100:1"),
            *("setup=module load cuda", "setup=x=1 true", "qos=long=er", "array_parallelism=4"),
        ]
    )
    assert given == {
        "slurm_partition": "gpu",
        "timeout_min": 600,
        "mem_gb": 32,
        "gpus_per_node": "a100:1",
        "slurm_setup": ["module load cuda", "x=1 true"],
        "slurm_qos": "long=er",
        "slurm_array_parallelism": 4,
    }
    assert parameters_of(["gres=gpu:1", "time=5"]) == {"slurm_gres": "gpu:1", "slurm_time": 5}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["partition"], "'partition' is not KEY=VALUE, such as partition=gpu"),
        (["partition="], "'partition=' is not KEY=VALUE"),
        (["partitio=gpu"], "unknown parameter 'partitio'; did you mean 'partition'?"),
        (["xyz=1"], "unknown parameter 'xyz'; valid: account, array_parallelism, "),
        (["nodes=2"], "unknown parameter 'nodes'; "),
        (["timeout_min=1-00:00"], "timeout_min is '1-00:00' and must be a whole number (minutes)"),
        (["qos=a", "qos=b"], "qos is given twice"),
        (["time=5", "timeout_min=5"], "time and timeout_min are the same; give one of them"),
    ],
)
def test_wrong_parameters(options: list[str], words: str) -> None:
    with pytest.raises(InputError) as told:
        parameters_of(options)
    assert str(told.value).startswith(f"--slurm: {words}")


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="'sbatch' is not on PATH; start this on a host of the cl"):
        check_slurm(())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"submitit is missing; pip install 'qa_hpo\[slurm\]'"):
        check_slurm(())


# ------------------------------------------------------------------------ jobs


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Slurm's commands on PATH; their state is in this folder."""
    state = tmp_path / "slurm state"
    state.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(state))
    from fake_slurm import end_all, install

    install(tmp_path / "slurm bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm bin'}{os.pathsep}{os.environ['PATH']}")
    yield state
    end_all(state)


@pytest.fixture
def stand_ins(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    monkeypatch.setenv("PYTHONPATH", str(write_stand_in(tmp_path / "on path")))
    stand_ins = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("QA_HPO_STAND_IN", str(stand_ins.folder))
    yield stand_ins
    stand_ins.kill()


Launch = Callable[..., SlurmLauncher]


@pytest.fixture
def launch(slurm: Path, tmp_path: Path) -> Iterator[Launch]:
    launched: list[SlurmLauncher] = []

    def launch(*options: str, count: int = 1, study: str = STUDY, url: str = URL) -> SlurmLauncher:
        job = Job(study, url, tmp_path / "artifacts" / STUDY / "logs", count)
        launched.append(SlurmLauncher(job, options))
        launched[-1].start()
        return launched[-1]

    yield launch
    for launcher in launched:
        launcher.kill()


def script(slurm: Path) -> str:
    (submission,) = slurm.glob("submission-*")
    return submission.read_text()


def number(slurm: Path) -> str:
    (submission,) = slurm.glob("submission-*")
    return submission.name.removeprefix("submission-")


def test_one_gpu_for_each_worker(launch: Launch, stand_ins: StandIns, slurm: Path) -> None:
    launcher = launch("partition=gpu", "mem_gb=8", count=2)
    given = stand_ins.wait_for(2, launcher)
    lines = script(slurm).splitlines()
    for line in ("gpus-per-node=1", "partition=gpu", "mem=8GB", "time=240", "array=0-1%2"):
        assert f"#SBATCH --{line}" in lines
    assert all("--cpu-threads" not in one["arguments"] for one in given)
    assert SECRET not in script(slurm)
    assert STORAGE not in os.environ
    launcher.stop()


def test_jobs_that_wait_in_the_queue_are_cancelled(
    launch: Launch, stand_ins: StandIns, slurm: Path
) -> None:
    launcher = launch("array_parallelism=1", count=3)
    (one,) = stand_ins.wait_for(1, launcher)
    assert launcher.working() == 3
    launcher.stop()
    assert stand_ins.told(one["pid"])
    states = [job / "state" for job in slurm.glob("job-*")]
    until(lambda: {state.read_text() for state in states} == {"CANCELLED by 0"}, 20)
    assert len(stand_ins.given()) == 1


def test_sbatch_refuses(launch: Launch) -> None:
    with pytest.raises(InputError) as told:
        launch("partition=nowhere")
    assert str(told.value) == (
        "--slurm: sbatch refuses the jobs: sbatch: error: invalid partition specified: nowhere"
    )


def test_a_job_that_never_comes_to_start_a_worker(launch: Launch, stand_ins: StandIns) -> None:
    launcher = launch("setup=echo what the host lacks; exit 7")
    (death,) = deaths(launcher, 1)
    assert (death.pid, death.code, death.restarted) == (None, None, False)
    assert death.tail == "what the host lacks"
    assert launcher.working() == 0
    assert launcher.poll() == []


def test_a_job_that_vanishes(launch: Launch, stand_ins: StandIns, slurm: Path) -> None:
    launcher = launch()
    (one,) = stand_ins.wait_for(1, launcher)
    subprocess.run(["scancel", "--signal=KILL", number(slurm)], check=True)
    (death,) = deaths(launcher, 1)
    assert (death.pid, death.code, death.restarted) == (one["pid"], None, False)
    assert death.tail.endswith("the last line of mine")
    assert launcher.working() == 0
    assert gone(one["pid"])


@pytest.mark.parametrize("signals", ["", "all"])
def test_a_preempted_job_is_requeued(
    launch: Launch,
    stand_ins: StandIns,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: str,
) -> None:
    monkeypatch.setenv("FAKE_SLURM_SIGNALS", signals)
    launcher = launch()
    (first,) = stand_ins.wait_for(1, launcher)
    preempt(slurm)
    _, second = stand_ins.wait_for(2, launcher)  # without a death on the way
    assert stand_ins.told(first["pid"])
    assert second["arguments"][3] == f"{first['arguments'][3]}.1"
    assert launcher.working() == 1


def preempt(slurm: Path) -> None:
    """Do what Slurm does: SIGTERM, and the signal that was asked for some time before the end."""
    for name in ("TERM", "USR2"):
        subprocess.run(["scancel", f"--signal={name}", number(slurm)], check=True)


# ------------------------------------------------------------------------ real workers


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("QA_HPO_CACHE", str(tmp_path / "cache"))
    return Place(tmp_path, tiny)


@pytest.mark.slow
def test_a_study_comes_to_its_end_though_its_job_is_preempted(
    place: Place, launch: Launch, slurm: Path
) -> None:
    place.create(**{**LONG, "training": {"epochs": 30, "cpu_threads": 1}})
    launcher = launch("gpus_per_node=0", study="tiny", url=place.url)
    until(lambda: any(len(epoch_records(trial)) >= 2 for trial in place.trials()), 180)
    preempt(slurm)
    seen: list[Any] = []
    until(lambda: seen.extend(launcher.poll()) or launcher.working() == 0, 180)
    assert seen == []
    (trial,) = place.trials()  # handed back, and finished by the job that was requeued
    assert trial.state is TrialState.COMPLETE
    assert [record["epoch"] for record in epoch_records(trial)] == list(range(1, 31))
    assert trial.user_attrs["worker"].endswith("-1.1")
    (job,) = slurm.glob("job-*")
    until(lambda: (job / "state").read_text() == "COMPLETED", 20)


@pytest.mark.slow
def test_a_worker_in_a_job_of_submitits_own(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create(**SHORT, budget={"trials": 2})
    monkeypatch.setenv(STORAGE, place.url)
    logs, folder = tmp_path / "logs", tmp_path / "submitit"
    executor = submitit.LocalExecutor(folder)
    job = executor.submit(SlurmJob("tiny", "me", 1, logs, folder, shares_cores=True))
    try:
        job.result()
    finally:
        job.cancel()
        job._process.wait()
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert {trial.user_attrs["worker"] for trial in trials} == {"me-1"}
    assert measured(epoch_records(trials[1])) == place.alone(1)
    assert "trial 1 ended: complete" in (logs / "me-1.log").read_text()


def test_a_job_is_killed_with_its_worker(
    stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE, URL)
    job = SlurmJob(STUDY, "me", 1, tmp_path / "logs", tmp_path, shares_cores=False)
    code = (
        "import sys\nfrom pathlib import Path\nfrom qa_hpo.workers.slurm_job import SlurmJob\n"
        "SlurmJob(*sys.argv[1:3], 1, Path(sys.argv[3]), Path(sys.argv[3]), False)()\n"
    )
    arguments = [job.study, job.name, str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", code, *arguments]) as process:
        (one,) = stand_ins.wait_for(1)
        process.send_signal(signal.SIGKILL)
    until(lambda: gone(one["pid"]), 20)
    assert stand_ins.told(one["pid"])
