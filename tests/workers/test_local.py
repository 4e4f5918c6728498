import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qa_hpo.paths import StudyPaths
from qa_hpo.workers import local
from qa_hpo.workers.local import LocalWorkers, gpus


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an ``nvidia-smi`` that answers as told, the only one on PATH."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder = tmp_path / "some tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(answer: str, code: int = 0) -> None:
        tool = folder / "nvidia-smi"
        tool.write_text(
            f"#!{sys.executable}\nimport sys\n"
            "assert sys.argv[1:] == ['--query-gpu=index', '--format=csv,noheader'], sys.argv\n"
            f"print({answer!r}, end='')\nsys.exit({code})\n"
        )
        tool.chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("answer", "code", "found"),
    [
        ("0\n", 0, ["0"]),
        ("0\n1\n2\n", 0, ["0", "1", "2"]),
        ("", 0, []),
        ("No devices were found\n", 0, []),
        ("NVIDIA-SMI has failed because it couldn't communicate\n", 9, []),
        ("0\n", 9, []),
    ],
)
def test_gpus_by_the_drivers_tool(smi, answer: str, code: int, found: list[str]) -> None:
    smi(answer, code)
    assert gpus() == found


def test_no_gpus_without_the_drivers_tool(smi) -> None:
    assert gpus() == []


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("3,1", ["3", "1"]),
        (" 2 , 0 ", ["2", "0"]),
        ("GPU-8a3b,MIG-11aa", ["GPU-8a3b", "MIG-11aa"]),
    ],
)
def test_visible_devices_come_first(
    smi, monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    smi("0\n1\n2\n3\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


# ------------------------------------------------- processes, with something else for a worker


SECRET = "s3cr3t-of-the-database"
URL = f"postgresql://me:{SECRET}@nowhere.invalid/studies"

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
Path(os.environ["ASKED"]).joinpath(str(os.getpid())).write_text(json.dumps({
    "arguments": sys.argv[1:],
    "environment": dict(os.environ),
    "command": Path("/proc/self/cmdline").read_text(),
}))
how = os.environ["HOW"]
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("a line of mine", flush=True)
print("the last line of mine", file=sys.stderr, flush=True)
if how == "fails":
    sys.exit(3)
Path(os.environ["ASKED"]).joinpath(f"ready-{os.getpid()}").touch()
time.sleep(0 if how == "ends" else 600)
"""


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts workers of which each is the stand-in; none is left when the test ends."""
    package = tmp_path / "package" / "qa_hpo"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    asked = tmp_path / "asked"
    asked.mkdir()
    monkeypatch.setenv("ASKED", str(asked))
    started: list[LocalWorkers] = []

    def launched(count: int, how: str = "sleeps", devices: str = "") -> LocalWorkers:
        monkeypatch.setenv("HOW", how)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        paths = StudyPaths(tmp_path / "artifacts", "a study, it's ünusual")
        started.append(LocalWorkers("a study, it's ünusual", URL, paths, count))
        return started[-1]

    yield launched
    for workers in started:
        for worker in workers.workers:
            worker.process.kill()
            worker.process.wait()


def told(workers: LocalWorkers, tmp_path: Path) -> list[dict]:
    """What each worker was given, once all of them work."""
    pids = [worker.process.pid for worker in workers.workers]
    deadline = time.monotonic() + 30
    while not all((tmp_path / "asked" / f"ready-{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [json.loads((tmp_path / "asked" / str(pid)).read_text()) for pid in pids]


def test_what_a_worker_is_given(launch, tmp_path: Path) -> None:
    workers = launch(2)
    given = told(workers, tmp_path)
    for index, one in enumerate(given, start=1):
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert one["arguments"] == [
            "worker", "--study", "a study, it's ünusual", "--label", f"worker-{index}",
            "--cpu-threads", threads,
        ]  # fmt: skip
        assert one["environment"]["OMP_NUM_THREADS"] == threads
        assert one["environment"]["QA_HPO_STORAGE"] == URL
        assert SECRET not in one["command"]
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert SECRET not in shown.stdout
    workers.stop()


@pytest.mark.parametrize(("count", "given"), [(2, ["5", "7"]), (3, ["5", "7", "5"]), (1, ["5"])])
def test_gpus_are_dealt_out(launch, tmp_path: Path, count: int, given: list[str]) -> None:
    workers = launch(count, devices="5,7")
    environments = [one["environment"] for one in told(workers, tmp_path)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == given
    workers.stop()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_stop_leaves_no_process_behind(launch, tmp_path: Path) -> None:
    workers = launch(3)
    told(workers, tmp_path)
    assert workers.alive() == workers.workers
    assert workers.failed() == []
    workers.workers[1].process.kill()
    workers.workers[1].process.wait()
    assert workers.alive() == [workers.workers[0], workers.workers[2]]
    workers.stop()
    assert workers.alive() == []
    assert all(gone(worker.process.pid) for worker in workers.workers)
    codes = [worker.process.returncode for worker in workers.workers]
    assert codes == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM]
    workers.stop()  # once more does no harm


def test_a_worker_that_does_not_end_is_killed(
    launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_GRACE_SECONDS", 0.3)
    workers = launch(2, how="stubborn")
    told(workers, tmp_path)
    begun = time.monotonic()
    workers.stop()
    assert 0.2 < time.monotonic() - begun < 5
    assert all(gone(worker.process.pid) for worker in workers.workers)


def test_a_worker_that_ends_by_itself(launch, tmp_path: Path) -> None:
    workers = launch(2, how="ends")
    for worker in workers.workers:
        worker.process.wait(30)
    assert workers.alive() == workers.failed() == []


def test_a_death_is_told_with_the_logs_end(launch, tmp_path: Path) -> None:
    workers = launch(1, how="fails")
    (worker,) = workers.workers
    worker.process.wait(30)
    assert workers.failed() == [worker]
    assert worker.log == tmp_path / "artifacts" / "a study, it's ünusual/logs/worker-1.log"
    assert worker.tail() == "a line of mine\nthe last line of mine"
    worker.log.write_bytes(
        b"x" * 10_000 + b"\n" + b"".join(b"%d\n" % n for n in range(50)) + b"\xff"
    )
    assert worker.tail(3).splitlines() == ["48", "49", "\ufffd"]


def test_an_interrupt_of_the_launcher_does_not_reach_the_workers(launch, tmp_path: Path) -> None:
    workers = launch(1)
    told(workers, tmp_path)
    pid = workers.workers[0].process.pid
    assert os.getsid(pid) == pid != os.getsid(0)
    workers.stop()
