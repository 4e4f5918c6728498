"""What ``qa-hpo run`` would do, found out and told without doing it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qa_hpo.config import Budget, StudyFile
from qa_hpo.errors import MissingStudyError
from qa_hpo.paths import CachePaths
from qa_hpo.printing import print_line
from qa_hpo.printing_forecast import describe_places
from qa_hpo.results.progress import headline, snapshot
from qa_hpo.running import known_commits, look
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import StudyStorage, nothing_yet, open_storage
from qa_hpo.search.study import continued, creatable, foreseen
from qa_hpo.workers.local import places
from qa_hpo.workers.options import LaunchOptions

__all__ = ["rehearse"]


def rehearse(file: StudyFile, url: str, options: LaunchOptions) -> None:
    """Print what a run would create or continue, its budget, and with which workers.

    The study is looked at as a run would, mistakes included, and nothing is written: neither the
    storage nor windows, which are cut in a folder that is gone afterwards. So what a bucket takes
    is not tried.

    Raises:
        InputError: What the run would raise.
    """
    with tempfile.TemporaryDirectory() as folder:
        looked = look(file, known_commits(file, url, untouched=True), CachePaths(Path(folder)))
    with _opened(url) as storage:
        joined = continued(file, storage, looked.fingerprints)
        over = False
        if joined is None:
            creatable(file, storage)
            print_line(f"study {file.study.name!r} would be created in {storage.shown}")
            print_line(f"budget: {_limits(file.budget)}, all of it left")
        else:
            over = _tell_of(joined)
    if not over:
        print_line(_workers(options))
    if "://" in file.artifacts.folder:
        print_line(f"artifacts.folder: {file.artifacts.folder} is not tried, which would write")
    print_line("dry run: nothing was written, and nothing was started")


@contextlib.contextmanager
def _opened(url: str) -> Iterator[StudyStorage]:
    """Open the storage, or what it would be where there is none yet."""
    try:
        storage = open_storage(url, create=False, untouched=True)
    except MissingStudyError:
        with nothing_yet(url) as empty:
            yield empty
        return
    try:
        yield storage
    finally:
        storage.close()


def _tell_of(joined: JoinedStudy) -> bool:
    """Tell how a study would go on, and return whether it is over."""
    print_line(f"study {joined.file.study.name!r} would continue: {headline(snapshot(joined))}")
    step = foreseen(joined)
    if step.step is BudgetStep.SPENT and not step.failing:
        print_line("The budget is spent: nothing to do. --trials N gives it more.")
        return True
    print_line(f"budget: {_left(joined.file.budget, step.spent)} left")
    return False


def _limits(budget: Budget) -> str:
    given = budget.model_dump(exclude_none=True)
    return ", ".join(f"{value:g} {name}" for name, value in given.items())


def _left(budget: Budget, spent: object) -> str:
    given = budget.model_dump(exclude_none=True)
    left = {name: max(0.0, value - getattr(spent, name)) for name, value in given.items()}
    return ", ".join(f"{value:.4g} of {given[name]:g} {name}" for name, value in left.items())


def _workers(options: LaunchOptions) -> str:
    if options.launcher == "local":
        return f"workers: {describe_places(places(options.count, options.per_device))}"
    if options.launcher == "slurm":
        return f"workers: {options.count} jobs of an array under Slurm"
    number = "one for each free GPU" if options.count is None else f"{options.count}"
    return f"workers: {number}, on the Ray cluster"
