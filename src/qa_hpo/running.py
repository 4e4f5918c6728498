"""What the commands on studies do: look, create or continue, open, and run workers."""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qa_hpo.config import (
    DEFAULT_STORAGE,
    StudyFile,
    load_run_config,
    load_study_file,
    storage_url,
)
from qa_hpo.errors import InputError, MissingStudyError, UnreachableError, WorkError
from qa_hpo.paths import CONFIG_NAME, CachePaths, StudyPaths
from qa_hpo.printing import print_epoch, print_line, print_preflight, tell_deaths, watch
from qa_hpo.results.progress import headline, snapshot
from qa_hpo.search.artifacts import open_store
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.damage import check_trials, telling_of_damage
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.space import SearchSpace
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import (
    create_study,
    foreseen,
    load_study,
    stored_commits,
    told_if_gone,
)
from qa_hpo.workers.launcher import Job, Launcher, signals_held
from qa_hpo.workers.options import LaunchOptions, make_launcher

if TYPE_CHECKING:
    from qa_hpo.finetune.inputs import Inputs
    from qa_hpo.finetune.preflight import Preflight

__all__ = [
    "Looked",
    "create_or_continue",
    "examine",
    "known_commits",
    "look",
    "open_study",
    "prepare_for_workers",
    "run_workers",
    "train_once",
]

_INTERRUPTED = (
    "Interrupted: the running trials are handed back (Ctrl-C again stops at once). "
    "The same command goes on."
)
# For how long workers may end by themselves when the study is over.
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class Looked:
    """What a study uses.

    Attributes:
        fingerprints: Of its corpora and starts, by their key in the study file.
        commits: Of the hub's repositories, by "models/ID" and "datasets/ID".
    """

    fingerprints: dict[str, str]
    commits: dict[str, str]


def examine(file: StudyFile, inputs: "Inputs", *, probe: bool = True) -> "Preflight":
    """Look at everything a study needs.

    Args:
        file: The study.
        inputs: Loads its data, and keeps its windows.
        probe: Whether to write something where its checkpoints are to be kept, and remove it.

    Raises:
        InputError: Something cannot be used.
        WorkError: The hub fails.
    """
    space = SearchSpace(file)
    for entry in file.baseline:
        space.baseline(entry)
    store = open_store(file.artifacts.folder)
    # Imported here: the other commands on studies start without torch.
    from qa_hpo.finetune.preflight import preflight  # noqa: PLC0415

    found = preflight(file, inputs)
    if probe:  # last of all, since it makes the folder
        store.check()
    return found


def look(
    file: StudyFile, commits: Mapping[str, str] | None = None, cache: CachePaths | None = None
) -> Looked:
    """Look at everything a study needs, and print what it has.

    Args:
        file: The study.
        commits: Those to use of the hub's repositories; the newest ones, where they are left out.
        cache: Where to keep its windows, with nothing written elsewhere; where they usually are,
            if left out.

    Raises:
        InputError: Something cannot be used.
    """
    from qa_hpo.finetune.inputs import Inputs  # noqa: PLC0415
    from qa_hpo.finetune.preflight import fingerprints  # noqa: PLC0415

    inputs = Inputs(cache or CachePaths(), commits)
    found = examine(file, inputs, probe=cache is None)
    if cache is not None:
        open_store(file.artifacts.folder).check_place()
    print_preflight(found.corpora, found.starts)
    return Looked(fingerprints(file, inputs), inputs.commits)


def prepare_for_workers(file: StudyFile, *, build: bool) -> None:
    """Fetch what a study needs of the hub, cut its windows, build its starts, and print it.

    Args:
        file: The study. Where it exists already, what is fetched are the commits that it uses.
        build: Whether starts are built that are recipes.

    Raises:
        InputError: Something cannot be used.
        WorkError: A start could not be built, or the hub fails.
    """
    from qa_hpo.finetune.inputs import Inputs  # noqa: PLC0415
    from qa_hpo.finetune.preflight import preflight, prepare  # noqa: PLC0415

    commits: dict[str, str] = {}
    try:
        commits = known_commits(file, storage_url(file.study, None))
    except UnreachableError as error:  # this host may have no way to the database
        print_line(f"{error}; the newest commits are prepared")
    inputs = Inputs(CachePaths(), commits)
    if build:
        for name, checkpoint in prepare(file, inputs, print_line):
            print_line(f"start {name}: {checkpoint}")
    else:
        preflight(file, inputs)
    for repository, commit in inputs.commits.items():
        print_line(f"{repository}: commit {commit}")


def known_commits(file: StudyFile, url: str, *, untouched: bool = False) -> dict[str, str]:
    """Return the commits of the hub's repositories that a study uses, if it is there already.

    Args:
        file: The study.
        url: Its storage.
        untouched: As of :func:`open_storage`.

    Raises:
        StorageError: The storage cannot be opened.
    """
    with contextlib.suppress(MissingStudyError):
        storage = open_storage(url, create=False, untouched=untouched)
        try:
            return stored_commits(file.study.name, storage)
        finally:
            storage.close()
    return {}


def create_or_continue(file: StudyFile, url: str) -> JoinedStudy:
    """Create a study in its storage, or continue it, after a look at all it needs.

    Raises:
        InputError: Something cannot be used, or the study exists and differs.
    """
    # A wrong URL shows before the data are read; nothing is created before all is good.
    looked = look(file, known_commits(file, url))
    storage = open_storage(url, create=True)
    joined = create_study(file, storage, fingerprints=looked.fingerprints, commits=looked.commits)
    if joined.created:
        print_line(f"study {file.study.name!r} created in {storage.shown}")
    else:
        print_line(f"study {file.study.name!r} continues: {headline(snapshot(joined))}")
    return joined


def run_workers(joined: JoinedStudy, options: LaunchOptions) -> bool:
    """Run workers until the study is over, or none of them works any more.

    Args:
        joined: The study.
        options: How the workers are launched.

    Returns:
        Whether the study's budget is spent; the workers may have ended for another reason.

    Raises:
        InputError: As many workers cannot be had.
        WorkError: They cannot be started.
        KeyboardInterrupt: The run was told to end, and its workers have.
    """
    if _spent(joined):
        print_line("The budget is spent: nothing to do. --trials N gives it more.")
        return True
    name = joined.file.study.name
    logs = StudyPaths(joined.file.artifacts.path, name).logs
    job = Job(name, joined.storage.url, logs, options.count, options.per_device)
    launcher = make_launcher(options, job)
    with _told_to_end_by_signals():
        try:
            launcher.start()
            watch(joined, launcher)
            launcher.stop(_PATIENCE_S)
            tell_deaths(joined, launcher)
        except KeyboardInterrupt:
            _stop(launcher, _INTERRUPTED)
            raise
        except BaseException:
            _stop(launcher)
            raise
    return _spent(joined)


def _stop(launcher: Launcher, words: str = "") -> None:
    """Stop the workers; at once, should Ctrl-C be pressed (again) meanwhile."""
    try:
        if threading.current_thread() is threading.main_thread():
            # A service manager sends both, and a terminal that is closed sends one twice: they
            # say the same as before. What they were is set right where they were changed.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if words:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print_line(words)
        launcher.stop()
    except KeyboardInterrupt:
        with signals_held():
            launcher.kill()
        raise


@contextlib.contextmanager
def _told_to_end_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end this process as Ctrl-C does, with its workers."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spent(joined: JoinedStudy) -> bool:
    with told_if_gone(joined):
        step = foreseen(joined)
    return step.step is BudgetStep.SPENT and not step.failing


def train_once(path: Path, out: Path, *, force: bool) -> None:
    """Train one configuration, telling of each epoch, and write the folder ``out``.

    A run that was interrupted goes on after its last finished epoch.

    Raises:
        InputError: The configuration cannot be used, or ``out`` exists and ``force`` is False.
        WorkError: The training diverged before an epoch could be measured.
    """
    config = load_run_config(path)
    try:
        taken = out.exists() and not (force and (out / CONFIG_NAME).is_file())
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None
    if taken:
        raise InputError(f"{out}: exists; choose another folder, or --force to replace an export")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{out}: cannot be written: {above.name} is no folder")
    from qa_hpo.finetune.run import fine_tune  # noqa: PLC0415
    from qa_hpo.results.export import Exported, write_export  # noqa: PLC0415

    unfinished = out.with_name(f".{out.name}.run")
    tuned = fine_tune(
        config,
        unfinished,
        on_epoch=print_epoch,
        on_build=lambda name: print_line(f"building start {name}"),
    )
    if tuned.best is None or tuned.checkpoint is None:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise WorkError(f"{path}: the training diverged before an epoch could be measured")
    exported = Exported(
        config=config,
        checkpoint=tuned.checkpoint,
        records=tuned.records,
        best=tuned.best,
        origin=f"a run of the configuration {config.run.name!r}",
        facts={"run": config.run.name},
    )
    write_export(exported, out, force=force)
    shutil.rmtree(unfinished, ignore_errors=True)
    print_line(f"{out}: the checkpoint of epoch {tuned.best.epoch}, its metrics and its model card")


@contextlib.contextmanager
def open_study(study: StudyFile | str | Path, storage: str | None) -> Iterator[JoinedStudy]:
    """Open a study that exists, by its study file or by its name.

    Args:
        study: A study file, its path, or a study's name.
        storage: The storage's URL, if it is given.

    Raises:
        InputError: There is no such file or study.
    """
    if not isinstance(study, StudyFile) and (str(study).endswith(".toml") or Path(study).is_file()):
        study = load_study_file(Path(study))
    if isinstance(study, StudyFile):
        file = study
        name, url = file.study.name, storage_url(file.study, storage)
    else:
        name, url = str(study), storage or os.environ.get("QA_HPO_STORAGE") or DEFAULT_STORAGE
    opened = open_storage(url, create=False)
    try:
        # Optuna reads its rows without a look at what else than JSON and numbers they may be.
        with telling_of_damage(opened, ValueError, RecursionError, AssertionError):
            joined = load_study(name, opened)
            check_trials(joined)
        with telling_of_damage(opened):
            yield joined
    finally:
        opened.close()
