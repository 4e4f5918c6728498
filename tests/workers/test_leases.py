import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher_helpers import until

from qa_hpo.errors import InputError
from qa_hpo.workers.leases import Gpu, Leases, gpus

A = "GPU-8a3b1c2d-0000-1111-2222-333344445555"
B = "GPU-9f00aa11-0000-1111-2222-333344445555"


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
            "assert sys.argv[1:] == ['--query-gpu=index,uuid', '--format=csv,noheader']\n"
            f"print({answer!r}, end='')\nsys.exit({code})\n"
        )
        tool.chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("answer", "code", "found"),
    [
        (f"0, {A}\n", 0, [Gpu(A, A)]),
        (f"0, {A}\n1, {B}\n", 0, [Gpu(A, A), Gpu(B, B)]),
        ("0, [N/A]\n1\n", 0, [Gpu("0", "0"), Gpu("1", "1")]),
        ("", 0, []),
        ("No devices were found\n", 0, []),
        ("NVIDIA-SMI has failed because it couldn't communicate\n", 9, []),
        (f"0, {A}\n", 9, []),
    ],
)
def test_gpus_by_the_drivers_tool(smi, answer: str, code: int, found: list[Gpu]) -> None:
    smi(answer, code)
    assert gpus() == found


def test_no_gpus_without_the_drivers_tool(smi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert gpus() == [Gpu("1", "1"), Gpu("0", "0")]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("", []),
        ("-1", []),
        ("0", [Gpu("0", A)]),
        (" 1 , 0 ", [Gpu("1", B), Gpu("0", A)]),
        ("3,1", [Gpu("3", "3"), Gpu("1", B)]),
        (f"GPU-8a3b,{B},MIG-11aa", [Gpu("GPU-8a3b", A), Gpu(B, B), Gpu("MIG-11aa", "MIG-11aa")]),
        (f"0,{A},GPU-8a3b", [Gpu("0", A)]),  # one GPU by three names
        ("GPU-", [Gpu("GPU-", "GPU-")]),  # which one, nobody knows
    ],
)
def test_visible_devices_come_first(
    smi, monkeypatch: pytest.MonkeyPatch, visible: str, found: list[Gpu]
) -> None:
    smi(f"0, {A}\n1, {B}\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


# ------------------------------------------------------------------------ leases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "it's the ünusual folder"


def names(leases: list) -> list[str]:
    return [lease.gpu.name for lease in leases]


def test_alone(folder: Path) -> None:
    gpus = [Gpu("0", A), Gpu("1", B)]
    taken = Leases(gpus, folder).take(1, 1)
    assert names(taken) == ["0"]
    # Another launcher, which calls the GPUs by other names.
    others = Leases([Gpu(A, A), Gpu(B, B)], folder)
    assert others.free(1) == 1
    second = others.take(None, 1)
    assert names(second) == [B]
    assert others.take(None, 1) == []
    assert others.take(None, 3) == []  # nor do those get in that would share
    taken[0].close()
    assert names(others.take(5, 1)) == [A]


def test_shared(folder: Path) -> None:
    gpus = [Gpu("0", A), Gpu("MIG-GPU-1/0/1", "MIG-GPU-1/0/1")]
    leases = Leases(gpus, folder)
    assert leases.free(3) == 6
    taken = leases.take(3, 2)
    assert names(taken) == ["0", "MIG-GPU-1/0/1", "0"]  # each once before any twice
    assert (leases.free(2), leases.free(3), leases.free(1)) == (1, 3, 0)
    taken[1].close()
    assert (leases.free(2), leases.free(1)) == (2, 1)
    for lease in taken:
        lease.close()
    assert leases.free(1) == 2


def test_a_lease_lives_as_long_as_the_worker_that_inherited_it(folder: Path) -> None:
    leases = Leases([Gpu("0", A)], folder)
    (lease,) = leases.take(1, 1)
    sleep = ["sleep", "600"]
    # Something else that this process starts does not hold it.
    with subprocess.Popen(sleep, pass_fds=lease.files) as worker, subprocess.Popen(sleep) as other:
        lease.close()
        free_before = leases.free(1)
        worker.kill()
        worker.wait()
        free_after = leases.free(1)
        other.kill()
    assert (free_before, free_after) == (0, 1)


def test_a_lease_outlives_a_launcher_that_is_killed(folder: Path) -> None:
    code = (
        "import sys, subprocess, time\nfrom pathlib import Path\n"
        "from qa_hpo.workers.leases import Gpu, Leases\n"
        f"(lease,) = Leases([Gpu('0', {A!r})], Path(sys.argv[1])).take(1, 1)\n"
        "worker = subprocess.Popen(['sleep', '600'], pass_fds=lease.files)\n"
        "print(worker.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        worker = int(launcher.stdout.readline())
        launcher.kill()
        launcher.wait()
    leases = Leases([Gpu("0", A)], folder)
    try:
        assert leases.free(1) == 0
    finally:
        os.kill(worker, signal.SIGKILL)
    until(lambda: leases.free(1) == 1, 10)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/locks: cannot be used for the locks of GPU"):
        Leases([Gpu("0", A)], tmp_path / "file" / "locks").take(1, 1)
