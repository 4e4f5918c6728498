"""What launchers of workers have in common: their contract, and how a worker is started.

A launcher starts ``python -m qa_hpo worker`` and knows nothing of the study but its name.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

__all__ = [
    "GRACE_S",
    "STORAGE",
    "Death",
    "Job",
    "Launcher",
    "cores",
    "end_worker",
    "label_of",
    "log_of",
    "reserve_name",
    "shared_threads",
    "signals_held",
    "start_worker",
    "tail",
    "worker_command",
    "worker_environment",
]

GRACE_S = 60.0
"""Seconds that workers may take to hand their trials back before they are killed."""
STORAGE = "QA_HPO_STORAGE"
"""The environment variable with the storage's URL, which may hold a password: arguments would
show it to everyone on the host, and logs keep it."""

_TAIL_BYTES = 4000
_TAIL_LINES = 5
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Job:
    """What is to be launched.

    Attributes:
        study: The study's name.
        url: Its storage in full; may hold a password.
        logs: The folder of the workers' logs.
        count: How many workers; None leaves it to the launcher.
        per_device: How many workers may share a GPU.
    """

    study: str
    url: str
    logs: Path
    count: int | None = None
    per_device: int = 1

    def __repr__(self) -> str:
        return f"Job({self.study!r}, count={self.count}, per_device={self.per_device})"


@dataclass(frozen=True)
class Death:
    """The end of a worker that should not have ended.

    Attributes:
        worker: Its label, as the storage has it.
        host: Where it ran; empty where it is not known.
        pid: Its process; None if none was seen.
        code: Its exit code, negative for a signal; None if nobody saw it end.
        log: Its log, on its host.
        tail: The last lines of the log.
        restarted: Whether another process takes its place, now or soon.
    """

    worker: str
    host: str
    pid: int | None
    code: int | None
    log: Path
    tail: str
    restarted: bool


class Launcher(Protocol):
    """Starts the workers of a study and looks after them.

    It is used from one thread: ``start`` once, then ``poll`` and ``working`` as often as wanted,
    and ``stop`` or ``kill`` in the end, whatever happened before, ``start`` included. ``stop`` may
    be interrupted by an exception, and ``kill`` called after it. Both may be called again.
    """

    def start(self) -> None:
        """Start the workers, and return without waiting for what they do.

        Raises:
            InputError: As many workers cannot be had; none is left running.
            WorkError: Something else refused them.
        """

    def poll(self) -> list[Death]:
        """Return the deaths since the last call, each once, and start again what may be.

        Does not wait; to be called about once a second. A worker that ended because its work is
        done (exit code 0), or because it was told to, has not died.
        """

    def working(self) -> int:
        """Return how many workers work, wait for a place to work, or will be started again."""

    def stop(self, patience_s: float = 0.0) -> None:
        """Tell the workers to hand their trials back and end, and wait until they have.

        Those that have not after ``GRACE_S`` are killed. None is started again from now on.

        Args:
            patience_s: Seconds in which they may first end by themselves, as they do when the
                budget is spent.
        """

    def kill(self) -> None:
        """End the workers at once; what they were at is lost."""


def reserve_name(logs: Path) -> str:
    """Return a name for a launcher that no other one of the study has: ``HOST-PID``.

    It is reserved by creating its first worker's log. Where a launcher of another container or
    another time has had it already, a number follows.

    Args:
        logs: The folder of the study's logs, which is made.

    Raises:
        OSError: The folder cannot be written to.
    """
    logs.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}-{os.getpid()}"
    number = 1
    while True:
        name = own if number == 1 else f"{own}_{number}"
        try:
            log_of(logs, name, 1).touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return name


def label_of(name: str, index: int, restart: int = 0) -> str:
    """Return what a process is called in the storage.

    Args:
        name: The launcher's, from ``reserve_name``.
        index: The worker, from 1.
        restart: How often it was started again.
    """
    return f"{name}-{index}.{restart}" if restart else f"{name}-{index}"


def log_of(logs: Path, name: str, index: int) -> Path:
    """Return where worker ``index`` of launcher ``name`` prints, after each restart too."""
    return logs / f"{name}-{index}.log"


def cores() -> int:
    """Return how many cores this process may use: a batch system may allow only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shared_threads(cores: int, workers: int) -> int:
    """Return with how many threads each of ``workers`` computes on ``cores``."""
    return max(1, cores // workers)


def worker_command(study: str, label: str, threads: int | None = None) -> list[str]:
    """Return the command of a worker.

    Args:
        study: The study's name.
        label: What the storage calls it.
        threads: With how many it computes on a CPU; None for a GPU.
    """
    command = [sys.executable, "-m", "qa_hpo", "worker", "--study", study, "--label", label]
    return command if threads is None else [*command, "--cpu-threads", str(threads)]


def worker_environment(
    url: str | None, threads: int | None = None, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a worker: this process's, and what a worker needs beside it.

    Args:
        url: The storage's URL; None if this process's environment has it.
        threads: With how many it computes on a CPU; None for a GPU.
        extra: More variables.
    """
    environment = {**os.environ, **(extra or {})}
    if url is not None:
        environment[STORAGE] = url
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def start_worker(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    keep_open: Sequence[int] = (),
    tied: bool = False,
    folder: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a worker's process, which appends to ``log``.

    It has a session of its own: Ctrl-C in a terminal reaches its launcher alone, which then tells
    it to end in good order.

    Args:
        command: What to run.
        environment: With which variables.
        log: Where it prints; the folder is made.
        keep_open: File descriptors that it inherits.
        tied: Whether it is told to end by SIGTERM when this process ends (on Linux).
        folder: Its working folder; this process's if left out.

    Raises:
        OSError: The log cannot be written, or the host takes no more processes.
    """
    if tied:
        tie = [sys.executable, "-m", "qa_hpo.workers.tie", str(os.getpid())]
        command = [*tie, *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=None if folder is None else str(folder),
            pass_fds=tuple(keep_open),
            start_new_session=True,
        )


def end_worker(process: "subprocess.Popen[bytes]", grace_s: float = GRACE_S) -> int:
    """Tell a worker to hand its trial back and end, and kill it if it has not after a while.

    Args:
        process: The worker's.
        grace_s: Seconds that it may take.

    Returns:
        Its exit code.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a log; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back the signals that end this process until the block is done.

    Between the start of a child and the note of it, an exception would leave the child behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    before = {number: signal.signal(number, hold) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: whoever handled it did so in C, and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for received in held:
            signal.raise_signal(received)
