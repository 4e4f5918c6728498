"""Slurm's commands, for tests: jobs really run, on this host, as processes of their own.

``FAKE_SLURM`` is a folder that holds the state. A job has a folder in it with ``state``, and the
files ``cancel`` and ``requeue`` where that was asked for. ``FAKE_SLURM_SIGNALS=all`` delivers
signals to all processes of a job, as some clusters do, and not to its task alone.
"""

import contextlib
import fcntl
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

STATE = Path(os.environ["FAKE_SLURM"])
KILL_WAIT_S = 3.0


def install(folder: Path) -> None:
    """Write the commands into ``folder``, which is to be on PATH."""
    folder.mkdir(parents=True)
    for name in ("sbatch", "srun", "scancel", "sacct", "scontrol"):
        tool = folder / name
        command = shlex.join([sys.executable, __file__, name])
        tool.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        tool.chmod(0o755)


def end_all(state: Path) -> None:
    """End what is left of all jobs."""
    for job in state.glob("job-*"):
        (job / "cancel").touch()
        with contextlib.suppress(OSError):
            kill_all(int((job / "pid").read_text()))


def write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


@contextlib.contextmanager
def one_at_a_time():
    with (STATE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def jobs(ids):
    """The folders of jobs: ``7`` means all of an array, ``7_1`` one of it."""
    found = []
    for job in sorted(STATE.glob("job-*")):
        name = job.name.removeprefix("job-")
        if name in ids or name.split("_")[0] in ids:
            found.append((name, job))
    return found


def sbatch(script: str) -> int:
    text = Path(script).read_text()
    given = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH --")
    )
    given = {key: "".join(shlex.split(value)) for key, value in given.items()}
    if given.get("partition") == "nowhere":
        print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
        return 1
    with one_at_a_time():
        # As on a real cluster no number comes twice, for submitit remembers how a job ended.
        number = time.time_ns() // 1_000_000 % 1_000_000_000
        saved = STATE / f"submission-{number}"
        saved.write_text(text)
    array = re.fullmatch(r"0-(\d+)%(\d+)", given.get("array", ""))
    tasks = [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [str(number)]
    limit = array[2] if array else "1"
    for name in tasks:
        job = STATE / f"job-{name}"
        job.mkdir()
        write(job / "state", "PENDING")
    for name in tasks:
        subprocess.Popen(
            [sys.executable, __file__, "slurmd", name, str(saved), limit, given["output"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    print(f"Submitted batch job {number}")
    return 0


def slurmd(name: str, script: str, limit: str, output: str) -> int:
    """Look after one job from its place in the queue to its end."""
    job = STATE / f"job-{name}"
    number, _, task = name.partition("_")
    for restart in range(100):
        while True:
            if (job / "cancel").exists():
                write(job / "state", "CANCELLED by 0")
                return 0
            with one_at_a_time():
                states = [(other / "state").read_text() for _, other in jobs({number})]
                if states.count("RUNNING") < int(limit):
                    write(job / "state", "RUNNING")
                    break
            time.sleep(0.05)
        environment = {
            **os.environ,
            "SLURM_JOB_ID": str(int(number) * 1000 + int(task or 0)) if task else number,
            "SLURM_NTASKS": "1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_JOB_NODELIST": socket.gethostname(),
            "SLURM_RESTART_COUNT": str(restart),
            "FAKE_SLURM_JOB": str(job),
        }
        if task:
            environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
        out = output.replace("%A", number).replace("%a", task).replace("%j", name)
        with Path(out).open("ab") as file:
            process = subprocess.Popen(
                ["bash", script],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        told_at = None
        while process.poll() is None:
            told = (job / "cancel").exists() or (job / "requeue").exists()
            if told and told_at is None:
                told_at = time.monotonic()
                deliver(job, signal.SIGTERM)
            if told_at is not None and time.monotonic() > told_at + KILL_WAIT_S:
                kill_all(process.pid)
            write(job / "pid", str(process.pid))
            time.sleep(0.05)
        if (job / "requeue").exists() and not (job / "cancel").exists():
            (job / "requeue").unlink()
            write(job / "state", "PENDING")
            continue
        ended = "COMPLETED" if process.returncode == 0 else "FAILED"
        write(job / "state", "CANCELLED by 0" if (job / "cancel").exists() else ended)
        return 0
    return 1


def kill_all(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def deliver(job: Path, number: int) -> None:
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        task = psutil.Process(int((job / "step").read_text()))
        everyone = os.environ.get("FAKE_SLURM_SIGNALS") == "all"
        for one in [task, *(task.children(recursive=True) if everyone else ())]:
            one.send_signal(number)


def srun(*arguments: str) -> int:
    job = Path(os.environ["FAKE_SLURM_JOB"])
    name = job.name.removeprefix("job-")
    number, _, task = name.partition("_")
    output, rest = "", list(arguments)
    while rest[0].startswith("--"):
        option = rest.pop(0)
        if option == "--output":
            output = rest.pop(0)
    out = output.replace("%A", number).replace("%a", task).replace("%j", name).replace("%t", "0")
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    write(job / "step", str(os.getpid()))
    os.execvp(rest[0], rest)


def scancel(*arguments: str) -> int:
    options = dict(one[2:].split("=") for one in arguments if one.startswith("--"))
    for _, job in jobs({one for one in arguments if not one.startswith("--")}):
        with one_at_a_time():
            state = (job / "state").read_text()
            if "signal" in options:
                if state == "RUNNING" and options["signal"] == "KILL":
                    with contextlib.suppress(OSError):
                        kill_all(int((job / "pid").read_text()))
                elif state == "RUNNING":
                    deliver(job, signal.Signals[f"SIG{options['signal']}"])
            elif state in {"RUNNING", "PENDING"} and options.get("state") in {None, state}:
                (job / "cancel").touch()
    return 0


def sacct(*arguments: str) -> int:
    print("JobID|State|NodeList")
    for name, job in jobs({arguments[at + 1] for at, one in enumerate(arguments) if one == "-j"}):
        print(f"{name}|{(job / 'state').read_text()}|{socket.gethostname()}")
    return 0


def scontrol(verb: str, name: str) -> int:
    assert verb == "requeue"
    for _, job in jobs({name}):
        (job / "requeue").touch()
    return 0


if __name__ == "__main__":
    commands = (sbatch, slurmd, srun, scancel, sacct, scontrol)
    command = {one.__name__: one for one in commands}[sys.argv[1]]
    sys.exit(command(*sys.argv[2:]))
