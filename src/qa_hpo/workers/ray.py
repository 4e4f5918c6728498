"""Workers on a Ray cluster: tasks that each run one worker as a child process."""

import logging
import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qa_hpo.errors import InputError
from qa_hpo.workers.launcher import (
    GRACE_S,
    Death,
    Job,
    Launcher,
    end_worker,
    label_of,
    log_of,
    reserve_name,
    start_worker,
    tail,
    worker_command,
    worker_environment,
)
from qa_hpo.workers.restarts import Restarts

__all__ = ["RayLauncher", "Roll", "check_ray", "cpu_share"]

_LOOK_S = 0.1
_ANSWER_S = 0.5
# What of the launcher's environment holds for workers on other hosts too: settings, and the
# secrets that open models, artifacts and databases.
_CARRIED = ("QA_HPO_", "HF_", "AWS_", "PG")


def check_ray() -> None:
    """Check that Ray is installed.

    Raises:
        InputError: It is not.
    """
    try:
        import ray  # noqa: F401, PLC0415  (an extra)
    except ImportError:
        raise InputError("--launcher ray: Ray is missing; pip install 'qa_hpo[ray]'") from None


@dataclass(frozen=True)
class _Plan:
    """What each task needs to know. Tasks' arguments, unlike their settings, are shown nowhere."""

    study: str
    url: str
    name: str
    logs: Path
    folder: Path
    environment: dict[str, str]
    threads: int | None
    grace_s: float

    def __repr__(self) -> str:
        return f"_Plan({self.study!r}, {self.name!r})"


@dataclass
class _Entry:
    restarts: Restarts
    begun: int = 0
    host: str = ""
    pid: int | None = None
    open: bool = False


class Roll:
    """Keeps the roll of the workers: who began, who ended, and whether Ray is to try again.

    It is an actor of its own, because Ray starts a task again without telling anyone.
    """

    def __init__(self, name: str, logs: Path) -> None:
        self.name = name
        self.logs = logs
        self._entries: dict[int, _Entry] = {}
        self._deaths: list[Death] = []

    def begin(self, index: int) -> tuple[int, float] | None:
        """Note that a task is about to start worker ``index``.

        Returns:
            How often it was started again before, and the seconds to wait; None if it is given up.
        """
        entry = self._entries.setdefault(index, _Entry(Restarts()))
        delay: float | None = 0.0
        if entry.open:  # the task before this one was killed, or lost with its host
            delay = self._died(index, entry, None, "")
            if delay is None:
                return None
        elif entry.begun:
            delay = entry.restarts.delay
        entry.begun += 1
        entry.open, entry.host, entry.pid = True, "", None
        return entry.begun - 1, delay or 0.0

    def running(self, index: int, host: str, pid: int) -> None:
        """Note the process of worker ``index``."""
        entry = self._entries[index]
        entry.host, entry.pid = host, pid
        entry.restarts.started()

    def ended(self, index: int, code: int, text: str) -> bool:
        """Note the end of worker ``index``.

        Args:
            index: The worker.
            code: Its exit code.
            text: The last lines of its log.

        Returns:
            Whether it is to be started again.
        """
        entry = self._entries[index]
        if code == 0:
            entry.open = False
            return False
        return self._died(index, entry, code, text) is not None

    def deaths(self) -> list[Death]:
        """Return the deaths since the last call."""
        deaths, self._deaths = self._deaths, []
        return deaths

    def _died(self, index: int, entry: _Entry, code: int | None, text: str) -> float | None:
        entry.open = False
        delay = entry.restarts.ended(-signal.SIGKILL if code is None else code)
        self._deaths.append(
            Death(
                worker=label_of(self.name, index, entry.begun - 1),
                host=entry.host,
                pid=entry.pid,
                code=code,
                log=log_of(self.logs, self.name, index),
                tail=text,
                restarted=delay is not None,
            )
        )
        return delay


class WorkerDiedError(Exception):
    """A worker died, and Ray is to run its task again."""


def _work(roll: Any, index: int, plan: _Plan) -> None:
    """Run one worker to its end; what a Ray task does.

    Raises:
        WorkerDiedError: The worker is to be started again.
        OSError: It cannot be started on this host.
    """
    import ray  # noqa: PLC0415

    begun = ray.get(roll.begin.remote(index))
    if begun is None:
        return
    restart, delay = begun
    _sleep(delay)
    log = log_of(plan.logs, plan.name, index)
    environment = worker_environment(plan.url, plan.threads, plan.environment)
    if plan.threads is None:
        # Ray allows a task without cores of its own one thread; a GPU's worker needs more.
        environment.pop("OMP_NUM_THREADS", None)
    process = start_worker(
        worker_command(plan.study, label_of(plan.name, index, restart), plan.threads),
        environment,
        log,
        tied=True,
        folder=plan.folder,
    )
    try:
        ray.get(roll.running.remote(index, socket.gethostname(), process.pid))
        while True:
            # In small steps: a cancelled task learns of it between two of them.
            try:
                code = process.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                pass
    finally:
        end_worker(process, plan.grace_s)
    if ray.get(roll.ended.remote(index, code, tail(log))):
        raise WorkerDiedError(f"worker {index} ended with code {code}")


def _sleep(seconds: float) -> None:
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        time.sleep(_LOOK_S)


def cpu_share(nodes: Sequence[float], count: int) -> float:
    """Return how many cores each of ``count`` workers gets.

    Args:
        nodes: The cores of each host.
        count: How many workers are to have a place.

    Returns:
        A whole number, or a fraction where there are more workers than cores.
    """
    for cores in range(int(max(nodes, default=0)), 0, -1):
        if sum(node // cores for node in nodes) >= count:
            return cores
    return math.floor(1e4 * sum(nodes) / count) / 1e4


class RayLauncher:
    """Starts workers of a study on the Ray cluster and looks after them.

    The cluster is the one of ``RAY_ADDRESS`` or the one that runs on this host; without either,
    Ray is started on this host for as long as the workers work. Ray gives each worker a GPU, or
    a share if ``job.per_device`` asks for it, and starts it again where there is room. In a
    cluster without GPUs the workers share the cores.

    Args:
        job: What to launch. Its count, if left out, is one for each GPU, or for each host
            without GPUs in the cluster, times ``per_device``.
        grace_s: Seconds that workers may take to hand their trials back.
    """

    def __init__(self, job: Job, *, grace_s: float = GRACE_S) -> None:
        self.job = job
        self.grace_s = grace_s
        self._ours = False
        self._name = ""
        self._tasks: dict[Any, int] = {}
        self._roll: Any = None
        self._asked: Any = None
        self._deaths: list[Death] = []

    def start(self) -> None:
        """Start the workers; those for which there is no room wait for it.

        Raises:
            InputError: Ray is missing or does not answer, or the cluster has too few GPUs.
            OSError: The logs' folder cannot be written to.
        """
        check_ray()
        import ray  # noqa: PLC0415

        self._connect()
        count, options, threads = self._shares()
        logs = self.job.logs.absolute()
        name = self._name = reserve_name(logs)
        carried = {key: text for key, text in os.environ.items() if key.startswith(_CARRIED)}
        plan = _Plan(
            self.job.study, self.job.url, name, logs, Path.cwd(), carried, threads, self.grace_s
        )
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._roll = (
            ray.remote(Roll).options(num_cpus=0, scheduling_strategy=here).remote(name, logs)
        )
        # As often as needed: the roll decides when it is enough.
        task = ray.remote(_work).options(
            **options, max_retries=-1, retry_exceptions=[WorkerDiedError]
        )
        held = ray.put(plan)
        for index in range(1, count + 1):
            self._tasks[task.remote(self._roll, index, held)] = index

    def poll(self) -> list[Death]:
        """Return the deaths since the last call; Ray itself starts workers again."""
        import ray  # noqa: PLC0415

        self._look()
        if self._roll is not None:
            self._asked = self._asked or self._roll.deaths.remote()
            if ray.wait([self._asked], timeout=_ANSWER_S)[0]:
                asked, self._asked = self._asked, None
                self._deaths += ray.get(asked)
        deaths, self._deaths = self._deaths, []
        return deaths

    def working(self) -> int:
        """Return how many tasks run, or wait for room or their next attempt."""
        self._look()
        return len(self._tasks)

    def stop(self, patience_s: float = 0.0) -> None:
        """Cancel the tasks: each tells its worker to hand its trial back, and waits for it."""
        import ray  # noqa: PLC0415

        if not ray.is_initialized():
            return
        self._wait(patience_s)
        for task in self._tasks:
            # Not the calls that the task makes: it tells the roll of its end.
            ray.cancel(task, recursive=False)
        self._wait(self.grace_s + 5.0)
        self._deaths = [replace(death, restarted=False) for death in self.poll()]
        self.kill()

    def kill(self) -> None:
        """End the tasks at once; their workers are told to end as they do."""
        import ray  # noqa: PLC0415

        if not ray.is_initialized():
            return
        for task in self._tasks:
            ray.cancel(task, force=True, recursive=False)
        self._tasks = {}
        if self._roll is not None:
            ray.kill(self._roll)
            self._roll = self._asked = None
        if self._ours:
            ray.shutdown()

    def _connect(self) -> None:
        import ray  # noqa: PLC0415

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # What later versions do, and this one warns of.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS")
            where = f" at RAY_ADDRESS={address}" if address else ""
            reason = " ".join(str(error).split())
            raise InputError(f"--launcher ray: no cluster{where}: {reason}") from None
        finally:
            # Ray would end this process; who runs it hands trials back first.
            if before is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        self._ours = True

    def _shares(self) -> tuple[int, dict[str, float], int | None]:
        """Return how many workers there are, what each is given, and its threads on a CPU."""
        import ray  # noqa: PLC0415

        job = self.job
        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        if gpus:
            count = job.count or gpus * job.per_device
            each = math.ceil(count / gpus)
            if each > job.per_device:
                raise InputError(
                    f"--workers: {count} are asked for and the cluster has {gpus} GPUs; "
                    f"--workers-per-device {each} would let them share"
                )
            return count, {"num_cpus": 0, "num_gpus": math.floor(1e4 / each) / 1e4}, None
        hosts = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [host["Resources"].get("CPU", 0.0) for host in hosts if host["Alive"]]
        nodes = [cores for cores in nodes if cores]
        count = job.count or max(1, len(nodes)) * job.per_device
        share = cpu_share(nodes, count)
        return count, {"num_cpus": share}, max(1, int(share))

    def _look(self) -> None:
        """Note which tasks are over, and why, where the roll could not be told."""
        import ray  # noqa: PLC0415

        if not self._tasks:
            return
        over, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for task in over:
            index = self._tasks.pop(task)
            try:
                ray.get(task)
            except (ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError):
                pass  # by us
            except ray.exceptions.RayError as error:
                log = log_of(self.job.logs, self._name, index)
                cause = str(getattr(error, "cause", None) or error)
                worker = label_of(self._name, index)
                self._deaths.append(Death(worker, "", None, None, log, cause, restarted=False))

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.working() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)


if TYPE_CHECKING:
    _: type[Launcher] = RayLauncher
