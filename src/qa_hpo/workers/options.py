"""How a run's workers are launched: the options, checked before any work starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from qa_hpo.errors import InputError
from qa_hpo.validation import nearest
from qa_hpo.workers.launcher import Job, Launcher
from qa_hpo.workers.local import LocalLauncher, check_local
from qa_hpo.workers.ray import RayLauncher, check_ray
from qa_hpo.workers.slurm import SlurmLauncher, check_slurm

__all__ = ["LAUNCHERS", "LaunchOptions", "launch_options", "make_launcher"]

LAUNCHERS = ("local", "ray", "slurm")

_MOST_WORKERS = 10_000


@dataclass(frozen=True)
class LaunchOptions:
    """How a run's workers are launched.

    Attributes:
        launcher: One of ``LAUNCHERS``.
        count: How many workers; None leaves it to the launcher.
        per_device: How many workers may share a GPU.
        slurm: Parameters of the jobs, each ``KEY=VALUE``.
    """

    launcher: str = "local"
    count: int | None = None
    per_device: int = 1
    slurm: tuple[str, ...] = ()


def launch_options(
    launcher: str = "local",
    workers: str = "auto",
    per_device: int = 1,
    slurm: Sequence[str] = (),
    *,
    busy: bool = False,
) -> LaunchOptions:
    """Return the options, checked: they go together, and what they need is there now.

    Args:
        launcher: ``--launcher``.
        workers: ``--workers``: ``auto`` or a number.
        per_device: ``--workers-per-device``.
        slurm: Every ``--slurm``.
        busy: Whether this host's GPUs may be busy, as nothing is to be launched now.

    Raises:
        InputError: An option is wrong, they do not go together, a package or command is missing,
            or there are not as many free GPUs.
    """
    if launcher not in LAUNCHERS:
        raise InputError(f"--launcher: {launcher!r} is none; {nearest(launcher, LAUNCHERS)}")
    options = LaunchOptions(launcher, _count(workers), per_device, tuple(slurm))
    if per_device < 1:
        raise InputError(f"--workers-per-device: {per_device} is not a number from 1")
    if options.slurm and launcher != "slurm":
        raise InputError(f"--slurm: goes with --launcher slurm, not with {launcher}")
    if launcher == "local":
        check_local(options.count, per_device, busy=busy)
    elif launcher == "ray":
        check_ray()
    else:
        if per_device > 1:
            raise InputError(
                "--workers-per-device: goes with --launcher local or ray; Slurm gives each worker "
                "a job of its own"
            )
        if options.count is None:
            raise InputError("--workers: --launcher slurm needs a number: how many jobs to submit")
        check_slurm(options.slurm)
    return options


def _count(workers: str) -> int | None:
    if workers == "auto":
        return None
    digits = workers.lstrip("0")
    if not (workers.isascii() and workers.isdecimal()) or not digits:
        raise InputError(f"--workers: {workers!r} is neither auto nor a number from 1")
    if len(digits) > 5 or int(digits) > _MOST_WORKERS:
        raise InputError(f"--workers: {workers} is more than {_MOST_WORKERS}")
    return int(digits)


def make_launcher(options: LaunchOptions, job: Job) -> Launcher:
    """Return the launcher that ``options`` ask for, which has started nothing yet."""
    if options.launcher == "ray":
        return RayLauncher(job)
    if options.launcher == "slurm":
        return SlurmLauncher(job, options.slurm)
    return LocalLauncher(job)
