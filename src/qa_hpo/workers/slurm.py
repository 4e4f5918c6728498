"""Workers on a Slurm cluster: an array of jobs, by way of submitit."""

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qa_hpo.errors import InputError
from qa_hpo.validation import nearest
from qa_hpo.workers.launcher import (
    GRACE_S,
    STORAGE,
    Death,
    Job,
    Launcher,
    label_of,
    reserve_name,
    tail,
)
from qa_hpo.workers.slurm_job import Journal, SlurmJob, deaths_in

if TYPE_CHECKING:
    import submitit

__all__ = ["SlurmLauncher", "check_slurm", "parameters_of"]

_LOOK_S = 0.2
_ASK_S = 10.0
"""How often Slurm is asked for the jobs' states: often enough to see a job that vanished."""
_COMMAND_S = 60.0

# Without a limit of its own a job gets submitit's 5 minutes. A worker that reaches the limit hands
# its trial back and is requeued, so a short one that fits most partitions does no harm.
_TIMEOUT_MIN = 240
_MOST_TIMEOUTS = 1000

_GENERIC = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
# One worker is one task of one job; the others would be misread or are no text.
_NOT_OFFERED = {
    *("nodes", "ntasks_per_node", "num_gpus", "additional_parameters", "stderr_to_stdout"),
    *("use_srun", "exclusive"),
}
_NUMBERS = {
    *("timeout_min", "time", "mem_gb", "cpus_per_task", "cpus_per_gpu", "gpus_per_task"),
    *("signal_delay_s", "array_parallelism"),
}
_LISTS = {"setup", "teardown", "srun_args"}
_ASK_FOR_GPUS = {"gres", "gpus_per_node", "gpus_per_task"}


def parameters_of(options: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters for ``--slurm`` options.

    Args:
        options: Each ``KEY=VALUE``. ``setup``, ``teardown`` and ``srun_args`` may come more than
            once. ``timeout_min`` and ``time`` are minutes, ``mem_gb`` is gigabytes.

    Raises:
        InputError: submitit is missing, or an option is not one.
    """
    valid = _valid()
    given: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key or not text:
            raise InputError(f"--slurm: {option!r} is not KEY=VALUE, such as partition=gpu")
        if key not in valid:
            raise InputError(f"--slurm: unknown parameter {key!r}; {nearest(key, sorted(valid))}")
        if key in _NUMBERS and not text.isdecimal():
            unit = " (minutes)" if key in {"time", "timeout_min"} else ""
            raise InputError(f"--slurm: {key} is {text!r} and must be a whole number{unit}")
        if key in _LISTS:
            given.setdefault(key, []).append(text)
        elif key in given:
            raise InputError(f"--slurm: {key} is given twice")
        else:
            given[key] = int(text) if text.isdecimal() else text
    if "time" in given and "timeout_min" in given:
        raise InputError("--slurm: time and timeout_min are the same; give one of them")
    if not {"time", "timeout_min"} & set(given):
        given["timeout_min"] = _TIMEOUT_MIN
    if not _ASK_FOR_GPUS & set(given):
        given["gpus_per_node"] = 1
    return {key if key in _GENERIC else f"slurm_{key}": value for key, value in given.items()}


def _valid() -> set[str]:
    try:
        from submitit import SlurmExecutor  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InputError(
            "--launcher slurm: submitit is missing; pip install 'qa_hpo[slurm]'"
        ) from None
    known: set[str] = SlurmExecutor._valid_parameters()
    return (known | set(_GENERIC)) - _NOT_OFFERED


def check_slurm(options: Sequence[str]) -> None:
    """Check that workers can be launched by Slurm from this host.

    Raises:
        InputError: submitit or Slurm's commands are missing, or an option is not one.
    """
    parameters_of(options)
    missing = [tool for tool in ("sbatch", "srun", "scancel") if shutil.which(tool) is None]
    if missing:
        raise InputError(
            f"--launcher slurm: {missing[0]!r} is not on PATH; start this on a host of the cluster"
        )


class SlurmLauncher:
    """Submits an array of jobs with one worker each, and looks after them.

    A job whose worker dies starts it again; one that is preempted, or reaches its time limit, hands
    its trial back and is requeued. The jobs go on if this process ends without a word.

    Args:
        job: What to launch; its logs are in a folder that all hosts see, and its count is given.
        options: ``--slurm`` options, see ``parameters_of``; one GPU per worker if they ask for no
            number.
        grace_s: Seconds that workers may take to hand their trials back.

    Raises:
        InputError: An option is not one.
    """

    def __init__(self, job: Job, options: Sequence[str] = (), *, grace_s: float = GRACE_S) -> None:
        self.job = job
        self.parameters = parameters_of(options)
        self.grace_s = grace_s
        self._jobs: dict[int, tuple[SlurmJob, submitit.Job[None]]] = {}
        self._told: dict[int, int] = {}
        self._over: set[int] = set()
        self._asked_at = time.monotonic()
        self._stopping = False

    def start(self) -> None:
        """Submit the jobs, which wait in Slurm's queue for their turn.

        Raises:
            InputError: Slurm refuses them, or its commands are missing.
            OSError: The logs' folder cannot be written to.
        """
        check_slurm(())
        import submitit  # noqa: PLC0415
        from submitit.core.utils import FailedJobError, FailedSubmissionError  # noqa: PLC0415

        # Its warnings tell of each call to Slurm that fails; the next one may not.
        logging.getLogger("submitit").setLevel(logging.CRITICAL)
        logs = self.job.logs.absolute()
        name = reserve_name(logs)
        folder = logs / f"{name}-slurm"
        executor = submitit.AutoExecutor(
            folder, cluster="slurm", slurm_max_num_timeout=_MOST_TIMEOUTS
        )
        executor.update_parameters(
            name=f"qa_hpo {self.job.study}", slurm_stderr_to_stdout=True, **self.parameters
        )
        shares_cores = self.parameters.get("gpus_per_node") == 0
        count = self.job.count or 1
        workers = [
            SlurmJob(self.job.study, name, index, logs, folder, shares_cores, self.grace_s)
            for index in range(1, count + 1)
        ]
        try:
            with _environment({STORAGE: self.job.url, "SBATCH_EXPORT": "ALL"}):
                jobs = executor.submit_array(workers)
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise InputError(f"--slurm: sbatch refuses the jobs: {_reason(error)}") from None
        self._jobs = {
            worker.index: (worker, job) for worker, job in zip(workers, jobs, strict=True)
        }

    def poll(self) -> list[Death]:
        """Return the deaths since the last call, which the jobs' journals tell."""
        self._look()
        deaths: list[Death] = []
        for index, (worker, job) in self._jobs.items():
            over = index in self._over
            lines = worker.journal.lines()
            found = deaths_in(lines, worker, over=over and not self._stopping)
            if over and not lines and not self._stopping and not self._told.get(index):
                # It never came to start a worker: what the job printed says why.
                label, text = label_of(worker.name, index), tail(job.paths.stdout)
                found = [Death(label, "", None, None, job.paths.stdout, text, restarted=False)]
            new = found[self._told.get(index, 0) :]
            self._told[index] = max(len(found), self._told.get(index, 0))
            deaths += new
        if self._stopping:
            told_to = {-15, 143}
            deaths = [replace(d, restarted=False) for d in deaths if d.code not in told_to]
        return deaths

    def working(self) -> int:
        """Return how many jobs run, wait in the queue or are requeued."""
        self._look()
        return len(self._jobs) - len(self._over)

    def stop(self, patience_s: float = 0.0) -> None:
        """Cancel the jobs that wait, let the others hand their trials back, and cancel them."""
        self._stopping = True
        self._scancel("--state=PENDING")
        self._wait(patience_s)
        self._scancel("--signal=TERM")
        self._wait(self.grace_s, workers_only=True)
        self._cancel_rest()

    def kill(self) -> None:
        """Kill the jobs."""
        self._stopping = True
        self._scancel("--signal=KILL")
        self._cancel_rest()

    def _cancel_rest(self) -> None:
        self._scancel()
        self._over = set(self._jobs)

    def _scancel(self, *options: str) -> None:
        # Those that are over, too: a job of which that is not true must not go on.
        ids = [job.job_id for _, job in self._jobs.values()]
        if ids:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                # Not checked: it complains of jobs that have just ended.
                subprocess.run(
                    ["scancel", *options, *ids],
                    capture_output=True,
                    check=False,
                    timeout=_COMMAND_S,
                )

    def _look(self) -> None:
        ask = time.monotonic() - self._asked_at >= _ASK_S
        if ask:
            self._asked_at = time.monotonic()
        for index, (_, job) in self._jobs.items():
            # One call asks for all of them; the others find its answer.
            if index not in self._over and job.done(force_check=ask):
                self._over.add(index)
            ask = False

    def _wait(self, seconds: float, *, workers_only: bool = False) -> None:
        """Wait until the jobs, or only the workers in them, have ended; for so long at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            left = [worker for index, (worker, _) in self._jobs.items() if index not in self._over]
            if workers_only:
                left = [worker for worker in left if _runs(worker.journal)]
            if not left:
                return
            time.sleep(_LOOK_S)
            self._look()


def _runs(journal: Journal) -> bool:
    lines = journal.lines()
    return bool(lines) and lines[-1]["event"] == "start"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch:")]
    return (said or lines or [type(error).__name__])[-1]


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process's environment meanwhile, as sbatch hands it to the jobs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


if TYPE_CHECKING:
    _: type[Launcher] = SlurmLauncher
