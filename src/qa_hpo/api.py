"""What the commands do, from Python: in a notebook, or in a program of one's own."""

from pathlib import Path

from qa_hpo.config import StudyFile, storage_url
from qa_hpo.errors import WorkError
from qa_hpo.results.certainty import Compared
from qa_hpo.results.certainty import compare as compared
from qa_hpo.results.export import write_export
from qa_hpo.results.leaderboard import Leaderboard
from qa_hpo.results.leaderboard import leaderboard as read_leaderboard
from qa_hpo.results.report import study_report, write_report
from qa_hpo.results.select import exported_trial
from qa_hpo.running import create_or_continue, open_study, run_workers
from qa_hpo.workers.options import launch_options

__all__ = ["compare", "export", "leaderboard", "report", "run"]


def run(
    study: StudyFile | str | Path,
    *,
    workers: int | str = "auto",
    workers_per_device: int = 1,
    trials: int | None = None,
    storage: str | None = None,
) -> Leaderboard:
    """Create a study or continue it, until its budget is spent, as ``qa-hpo run`` does.

    Workers are processes of this host, one per free GPU, or one on a CPU. Progress is printed.

    Args:
        study: The study file, or its path.
        workers: How many, or ``"auto"``.
        workers_per_device: Workers that may share a GPU.
        trials: Budget of trials, in place of the study file's.
        storage: The database's URL; as for the command where it is left out.

    Returns:
        The leaderboard.

    Raises:
        InputError: Something cannot be used; the message says what, and what would be valid.
        WorkError: The study did not come to its end.
        KeyboardInterrupt: It was told to end. The running trials are handed back, and the same
            call goes on.
    """
    options = launch_options("local", str(workers), workers_per_device, ())
    file = study if isinstance(study, StudyFile) else StudyFile.from_toml(study)
    file = file.with_trials(trials)
    joined = create_or_continue(file, storage_url(file.study, storage))
    try:
        complete = run_workers(joined, options)
        board = read_leaderboard(joined)
    finally:
        joined.storage.close()
    if not complete or board.winner is None:
        raise WorkError(f"study {file.study.name!r} did not come to its end; see what was printed")
    return board


def leaderboard(study: StudyFile | str | Path, *, storage: str | None = None) -> Leaderboard:
    """Return a study's trials, the winner first.

    Args:
        study: The study file, its path, or the study's name.
        storage: The database's URL; as for the command where it is left out.

    Raises:
        InputError: There is no such file or study.
    """
    with open_study(study, storage) as joined:
        return read_leaderboard(joined)


def compare(
    study: StudyFile | str | Path, first: int, second: int, *, storage: str | None = None
) -> Compared:
    """Return by how much one trial is better than another, and how sure that is.

    Args:
        study: As for :func:`leaderboard`.
        first: A finished trial's number.
        second: Another one's.
        storage: As for :func:`leaderboard`.

    Raises:
        InputError: There is no such study or trial, or its answers are not kept.
    """
    with open_study(study, storage) as joined:
        return compared(joined, read_leaderboard(joined), first, second)


def report(
    study: StudyFile | str | Path,
    out: str | Path = "report.html",
    *,
    storage: str | None = None,
    force: bool = False,
) -> Path:
    """Write one page that tells what a study found, and return its path.

    Args:
        study: As for :func:`leaderboard`.
        out: The file; ``.md`` for Markdown.
        storage: As for :func:`leaderboard`.
        force: Replace a file that is not such a report.

    Raises:
        InputError: There is no such study, or the file cannot be written.
    """
    with open_study(study, storage) as joined:
        write_report(study_report(joined), Path(out), force=force)
    return Path(out)


def export(
    study: StudyFile | str | Path,
    out: str | Path,
    *,
    trial: int | None = None,
    prefer: str | None = None,
    storage: str | None = None,
    force: bool = False,
) -> Path:
    """Write a checkpoint, its configuration, metrics and model card to a folder; return its path.

    Args:
        study: As for :func:`leaderboard`.
        out: The folder.
        trial: The trial's number; the winner's if it is left out.
        prefer: Or by what it is chosen: ``"best_f1"`` (the winner), ``"old_task_f1"``, or
            ``"forgetting<=X"``, the best that forgets at most X points of the old task's F1.
        storage: As for :func:`leaderboard`.
        force: Replace another export.

    Raises:
        InputError: There is no such study or trial, ``prefer`` is no rule or comes with ``trial``,
            or the folder holds something else.
    """
    folder = Path(out)
    with (
        open_study(study, storage) as joined,
        exported_trial(joined, trial, prefer=prefer, out=folder, force=force) as exported,
    ):
        write_export(exported, folder, force=force)
    return folder
