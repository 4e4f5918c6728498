"""Workers on this host: one process each, with a GPU of its own or a share of the cores."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from qa_hpo.errors import InputError, WorkError
from qa_hpo.workers.launcher import (
    GRACE_S,
    Death,
    Job,
    Launcher,
    cores,
    label_of,
    log_of,
    reserve_name,
    shared_threads,
    signals_held,
    start_worker,
    tail,
    worker_command,
    worker_environment,
)
from qa_hpo.workers.leases import Gpu, Lease, Leases, gpus
from qa_hpo.workers.restarts import Restarts

__all__ = ["LocalLauncher", "Place", "check_local", "one_device", "places"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK_S = 0.05
# Each takes some hundred MiB, whatever its share of the cores.
_MOST_PER_CORE = 8
_MOST_ANYWHERE = 32


def check_local(count: int | None, per_device: int, *, busy: bool = False) -> None:
    """Check that as many workers can be had on this host, now or once its GPUs are free.

    Args:
        count: How many; None for as many as there are free GPUs.
        per_device: How many workers may share a GPU.
        busy: Whether GPUs may be busy now; then none is taken to find out, not even for a moment.

    Raises:
        InputError: They cannot; the message says what would be possible.
    """
    devices = gpus()
    most = max(_MOST_ANYWHERE, _MOST_PER_CORE * cores())
    if not devices and (count or per_device) > most:
        raise InputError(
            f"--workers: {count or per_device} is more than {most}, the most for a host with "
            f"{cores()} cores and no GPU"
        )
    if devices and busy:
        room = len(devices) * per_device
        if (count or 1) > room:
            names = ", ".join(gpu.name for gpu in devices)
            raise InputError(
                f"--workers: {count} are asked for and {len(devices)} GPUs ({names}) have room for "
                f"{room}; --workers-per-device {math.ceil((count or 1) / len(devices))} would let "
                "them share"
            )
    elif devices:
        leases = Leases(devices)
        free = leases.free(per_device)
        if free < (count or 1):
            raise InputError(_too_few(leases, count, per_device, free))


def _too_few(leases: Leases, count: int | None, per_device: int, free: int) -> str:
    total = len(leases.devices)
    wanted = count or 1
    denser = range(per_device + 1, per_device + wanted + 1)
    more = next((number for number in denser if leases.free(number) >= wanted), None)
    hint = (
        "wait for the workers that hold the others to end"
        if more is None
        else f"--workers-per-device {more} would let them share"
    )
    names = ", ".join(gpu.name for gpu in leases.devices)
    each = "" if per_device == 1 else f" with {per_device} workers on each"
    if count is None:
        return f"--workers: none of {total} GPUs ({names}) is free{each}; {hint}"
    if free == 0:
        have = f"none of {total} GPUs ({names}) is free"
    elif per_device == 1:
        have = f"{free} of {total} GPUs ({names}) {'is' if free == 1 else 'are'} free"
    else:
        have = f"{total} GPUs ({names}) have room for {free}"
    return f"--workers: {count} are asked for and {have}{each}; {hint}"


@dataclass(frozen=True)
class Place:
    """Where a worker would compute.

    Attributes:
        device: "cpu", or what ``CUDA_VISIBLE_DEVICES`` calls its GPU.
        threads: CPU threads; None with a GPU, whose workers take as many as they like.
    """

    device: str
    threads: int | None


def places(count: int | None, per_device: int, *, busy: bool = False) -> list[Place]:
    """Return where each worker of this host would compute, were they started now.

    Args:
        count: How many workers; None for as many as there are free GPUs, or one on a CPU.
        per_device: How many workers may share a GPU.
        busy: Whether GPUs may be busy now: it is as if all of them were free, and none is taken.

    Raises:
        InputError: As many cannot be had; the message says what would be possible.
    """
    check_local(count, per_device, busy=busy)
    devices = gpus()
    if not devices:
        number = count or per_device
        return [Place("cpu", shared_threads(cores(), number))] * number
    if busy:
        number = count or len(devices) * per_device
        return [Place(gpu.name, None) for gpu in islice(cycle(devices), number)]
    taken = Leases(devices).take(count, per_device)
    for lease in taken:
        lease.close()
    return [Place(lease.gpu.name, None) for lease in taken]


@contextlib.contextmanager
def one_device(per_device: int) -> Iterator[bool]:
    """Let this process compute within the block where a worker would, on a GPU leased to it.

    To be entered before CUDA is initialised, which sees that GPU alone from then on. Without GPUs
    there is nothing to lease.

    Args:
        per_device: How many workers may share a GPU.

    Yields:
        Whether there was a place: not where all GPUs are busy.

    Raises:
        InputError: The folder of the locks cannot be used.
    """
    devices = gpus()
    taken = Leases(devices).take(1, per_device) if devices else []
    if not taken:
        yield not devices
        return
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = taken[0].gpu.name
    try:
        yield True
    finally:
        del os.environ[_VISIBLE]
        if before is not None:
            os.environ[_VISIBLE] = before
        taken[0].close()


class _Worker:
    """One worker, in all its processes: the first and those that took its place."""

    def __init__(self, index: int, lease: Lease | None) -> None:
        self.index = index
        self.lease = lease
        self.restarts = Restarts()
        self.restart = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.due: float | None = None
        """When to start the next process, by the monotonic clock."""

    def close(self) -> None:
        """Give up the lease, as no process will follow."""
        self.due = None
        if self.lease is not None:
            self.lease.close()
            self.lease = None


class LocalLauncher:
    """Starts workers of a study on this host and looks after them.

    Each has a GPU that no other worker of this host's user has, or shares it with as many as
    ``job.per_device`` allows. Without a GPU they share the cores.

    Args:
        job: What to launch. Its count, if left out, is one for each free GPU, or for the CPU,
            times ``per_device``.
        devices: The GPUs to use; those of the host that may be seen, if left out.
        leases: The folder of the locks of GPUs, if it is not the user's usual one.
        grace_s: Seconds that workers may take to hand their trials back.
    """

    def __init__(
        self,
        job: Job,
        *,
        devices: Sequence[Gpu] | None = None,
        leases: Path | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self.job = job
        self.leases = Leases(gpus() if devices is None else devices, leases)
        self.grace_s = grace_s
        self.name = ""
        self._threads: int | None = None
        self._workers: list[_Worker] = []
        self._deaths: list[Death] = []
        self._stopping = False

    def start(self) -> None:
        """Start a worker on each GPU that is free, or as many as were asked for.

        Raises:
            InputError: There are not enough free GPUs.
            WorkError: A log cannot be written, or the host takes no more processes.
        """
        try:
            with signals_held():
                self._workers = [_Worker(index, lease) for index, lease in self._shares()]
            self.name = reserve_name(self.job.logs)
            for worker in self._workers:
                self._start(worker)
        except OSError as error:
            self.kill()
            raise WorkError(f"a worker cannot be started: {error}") from None

    def poll(self) -> list[Death]:
        """Return the deaths since the last call, and start again whose delay has passed."""
        self._look()
        for worker in self._workers:
            over = worker.due is not None and worker.due <= time.monotonic()
            if over and not self._stopping:
                self._start_again(worker)
        deaths, self._deaths = self._deaths, []
        return deaths

    def working(self) -> int:
        """Return how many workers work or will be started again."""
        self._look()
        return sum(worker.process is not None or worker.due is not None for worker in self._workers)

    def stop(self, patience_s: float = 0.0) -> None:
        """Tell the workers to hand their trials back and end; kill those that do not."""
        self._stopping = True
        self._wait(patience_s)
        for worker in self._workers:
            worker.due = None
            if worker.process is not None:
                # Not those that have ended: their deaths are still to be told.
                worker.process.send_signal(signal.SIGTERM)
        self._wait(self.grace_s)
        self.kill()

    def kill(self) -> None:
        """End the workers at once, with whatever they have started."""
        self._stopping = True
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                os.killpg(worker.process.pid, signal.SIGKILL)
        for worker in self._workers:
            if worker.process is not None:
                worker.process.wait()
                self._ended(worker, worker.process)
            worker.close()

    def processes(self) -> "list[subprocess.Popen[bytes]]":
        """Return the processes of the workers that work."""
        return [worker.process for worker in self._workers if worker.process is not None]

    def _shares(self) -> list[tuple[int, Lease | None]]:
        """Return each worker's number and its lease."""
        job = self.job
        if not self.leases.devices:
            count = job.count or job.per_device
            self._threads = shared_threads(cores(), count)
            return [(index, None) for index in range(1, count + 1)]
        taken = self.leases.take(job.count, job.per_device)
        if len(taken) < (job.count or 1):
            for lease in taken:
                lease.close()
            raise InputError(_too_few(self.leases, job.count, job.per_device, len(taken)))
        return list(enumerate(taken, start=1))

    def _start(self, worker: _Worker) -> None:
        lease = worker.lease
        # A worker with a GPU takes as many threads as it likes: they mostly wait.
        extra = {} if lease is None else {_VISIBLE: lease.gpu.name}
        label = label_of(self.name, worker.index, worker.restart)
        with signals_held():
            worker.restarts.started()
            worker.process = start_worker(
                worker_command(self.job.study, label, self._threads),
                worker_environment(self.job.url, self._threads, extra),
                log_of(self.job.logs, self.name, worker.index),
                keep_open=() if lease is None else lease.files,
            )

    def _start_again(self, worker: _Worker) -> None:
        worker.due = None
        worker.restart += 1
        try:
            self._start(worker)
        except OSError as error:  # a full disk, no more processes: perhaps later
            self._died(worker, None, 1, str(error))

    def _look(self) -> None:
        """Note which workers have ended."""
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                self._ended(worker, worker.process)

    def _ended(self, worker: _Worker, process: "subprocess.Popen[bytes]") -> None:
        worker.process = None
        code = process.returncode
        told_to = self._stopping and code in {-signal.SIGTERM, 128 + signal.SIGTERM}
        if code == 0 or told_to:
            worker.close()
            return
        log = log_of(self.job.logs, self.name, worker.index)
        self._died(worker, process.pid, code, tail(log))

    def _died(self, worker: _Worker, pid: int | None, code: int, text: str) -> None:
        delay = worker.restarts.ended(code)
        if delay is None or self._stopping:
            worker.close()
        else:
            worker.due = time.monotonic() + delay
        self._deaths.append(
            Death(
                worker=label_of(self.name, worker.index, worker.restart),
                host=socket.gethostname(),
                pid=pid,
                code=code,
                log=log_of(self.job.logs, self.name, worker.index),
                tail=text,
                restarted=worker.due is not None,
            )
        )

    def _wait(self, seconds: float) -> None:
        """Wait until all workers have ended, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._look()
            if not any(worker.process for worker in self._workers):
                return
            time.sleep(_LOOK_S)


if TYPE_CHECKING:
    _: type[Launcher] = LocalLauncher
