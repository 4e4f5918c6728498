"""Every folder and file of a study, a run and the cache; writes that are whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = [
    "CONFIG_NAME",
    "METRICS_NAME",
    "CachePaths",
    "RunPaths",
    "StudyPaths",
    "check_folder",
    "new_folder",
    "read_json",
    "scratch_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

# What an exported folder holds beside the checkpoint.
CONFIG_NAME = "qa_hpo.toml"
METRICS_NAME = "metrics.json"


class CachePaths:
    """What can be computed again: windows, and starts that are built by a recipe.

    Args:
        folder: Root of the cache; ``QA_HPO_CACHE``, or ``storage/cache``, where it is left out.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get("QA_HPO_CACHE") or "storage/cache")

    @property
    def windows(self) -> Path:
        """Tokenised windows, by corpus, tokenizer and lengths."""
        return self.folder / "windows"

    @property
    def runs(self) -> Path:
        """Folders in which workers of this host train; each is gone when its run has ended."""
        return self.folder / "runs"

    @property
    def old_task(self) -> Path:
        """What starts score on the task that they have learnt before."""
        return self.folder / "old-task"

    @property
    def retention(self) -> Path:
        """What retention methods compute once per start, such as a Fisher information."""
        return self.folder / "retention"

    def start(self, name: str, key: str) -> Path:
        """The checkpoint of a start built by a recipe whose content hashes to ``key``."""
        shown = quote(name, safe=" ").replace(".", "%2E")[:80]
        return self.folder / "starts" / f"{shown}-{key[:16]}"


class StudyPaths:
    """What a study leaves on this host beside its checkpoints, under its artifact folder."""

    def __init__(self, artifacts: Path, study: str) -> None:
        self.folder = artifacts / study

    @property
    def logs(self) -> Path:
        """What workers that were started on this host printed."""
        return self.folder / "logs"


class RunPaths:
    """One fine-tuning run: its resume state, its best epoch's checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def resume(self) -> Path:
        """Folder of the resume states; gone when the run has ended."""
        return self.folder / "resume"

    def resume_state(self, epoch: int) -> Path:
        """What it takes to go on after ``epoch`` finished epochs."""
        return self.resume / f"epoch-{epoch:04d}"

    def resume_states(self) -> list[Path]:
        """The resume states that are whole, oldest first."""
        return sorted(self.resume.glob("epoch-*"))

    def checkpoint(self, epoch: int) -> Path:
        """The checkpoint of ``epoch``, kept while it is the run's best."""
        return self.folder / "checkpoint" / f"epoch-{epoch:04d}"

    def answers(self, epoch: int) -> Path:
        """What the checkpoint of ``epoch`` answered, kept while it is the run's best."""
        return self.folder / "answers" / f"epoch-{epoch:04d}.npz"

    def checkpoints(self) -> list[Path]:
        """The checkpoints that are there."""
        return sorted((self.folder / "checkpoint").glob("epoch-*"))


def check_folder(folder: Path) -> None:
    """Check that a folder can be written to, or could be made, and leave everything as it is.

    A file without a name is made in it, or in the nearest folder above it that is there.

    Raises:
        OSError: What making it, or writing into it, would raise.
    """
    there = folder = folder.absolute()
    while not _is_there(there):
        there = there.parent
    if there == folder and not there.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    tempfile.TemporaryFile(dir=there).close()


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give an empty folder in ``parent`` that is gone after the block.

    What processes left there that were killed is removed too: their locks ended with them.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with (parent / ".creating").open("a") as creating:
            # One at a time: a lock file that is not locked yet must not look like a dead one's.
            fcntl.flock(creating, fcntl.LOCK_EX)
            _sweep(parent)
            descriptor, name = tempfile.mkstemp(prefix="run-", suffix=".lock", dir=parent)
            lock = stack.enter_context(os.fdopen(descriptor, "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(name).with_suffix("")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(name).unlink(missing_ok=True)


def _sweep(parent: Path) -> None:
    for left in parent.glob("run-*.lock"):
        with left.open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``final`` when the block ends well, else is gone.

    The folder lies beside ``final``, so that the last step is a rename. It has no name that a
    reader of finished folders would pick up.

    Args:
        final: The folder's place.
        replace: Whether ``final`` may hold something, which is then removed. A full folder cannot
            be replaced in one step: it is put aside, and back again if the new one cannot come.
            What a process left there that was killed is removed first, or put back.

    Raises:
        OSError: ``final`` is not an empty folder, and ``replace`` is False.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        _clear_up(final)
    with _workshop(final) as workshop:
        new, old = workshop / "new", workshop / "old"
        new.mkdir()
        yield new
        if replace and final.exists():
            final.replace(old)
        try:
            new.replace(final)
        except OSError:
            if old.exists():
                old.replace(final)
            raise


@contextlib.contextmanager
def _workshop(final: Path) -> Iterator[Path]:
    """Give an empty folder beside ``final`` that is gone after the block, and locked during it."""
    descriptor = -1
    while True:
        workshop = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            descriptor = os.open(workshop, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if workshop.is_dir():  # else it was taken for a dead one's before it was locked
                break
        except FileNotFoundError:
            continue
        os.close(descriptor)
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        os.close(descriptor)


def _clear_up(final: Path) -> None:
    """Remove what killed processes left beside ``final``; if it was put aside, put it back."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.{'[a-z0-9_]' * 8}"):
        # Where there are no locks, nobody can tell whether its process lives: it stays. One that
        # lives may end meanwhile, and remove it itself.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if not {path.name for path in left.iterdir()} <= {"new", "old"}:
                continue
            descriptor = os.open(left, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (left / "old").is_dir() and not final.exists():
                (left / "old").replace(final)
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as workshop:
        new = Path(workshop) / path.name
        new.write_bytes(content)
        new.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what the JSON file ``path`` holds."""
    return json.loads(path.read_text(encoding="utf-8"))
