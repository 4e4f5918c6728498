"""The errors a user may see, one line each.

    QaHpoError
    ├── InputError            the user's input was wrong             exit code 2
    │   ├── StudyFileError      a study file or configuration
    │   ├── CorpusError         question-answering data
    │   ├── WindowError         data, tokenizer and lengths do not go together
    │   ├── CheckpointError     a model folder or hub id
    │   ├── ArtifactError       where checkpoints are kept
    │   │   └── LostArtifactError   one that should be there is not, or is damaged
    │   └── StorageError        a study's database, or what it holds
    │       ├── MissingStudyError   it holds no such study, and may later
    │       └── UnreachableError    it does not answer, and may later
    └── WorkError             the work itself failed                 exit code 1
        ├── DivergedError       a loss that is not a finite number
        ├── OutOfMemoryError    not even one window at a time fits
        ├── DiskFullError       no space left for a checkpoint, or what comes from the hub
        └── OutageError         a database that has not answered for too long

The message is what the user reads: what is wrong, where, and what would be valid.
"""

import errno

from qa_hpo.legible import legible

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "CorpusError",
    "DiskFullError",
    "DivergedError",
    "InputError",
    "LostArtifactError",
    "MissingStudyError",
    "OutOfMemoryError",
    "OutageError",
    "QaHpoError",
    "StorageError",
    "StudyFileError",
    "UnreachableError",
    "WindowError",
    "WorkError",
    "is_disk_full",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Who has made as many mistakes mends these first.
_MOST_LINES = 20


class QaHpoError(Exception):
    """Base of every error that is told to the user in one line."""

    exit_code = 1

    @property
    def lines(self) -> list[str]:
        """The message as it is shown: one line, whatever names are in it."""
        return [legible(str(self))]


class InputError(QaHpoError):
    """What the user gave is wrong; nothing was changed."""

    exit_code = 2


class StudyFileError(InputError):
    """A study file or configuration that cannot be used.

    Its message has a line for each mistake, none of which holds a line break of its own.
    """

    @property
    def lines(self) -> list[str]:
        """The mistakes as they are shown, each in one line; only so many of them."""
        lines = [legible(line) for line in str(self).split("\n")]
        if len(lines) > _MOST_LINES:
            more = len(lines) - _MOST_LINES + 1
            lines[_MOST_LINES - 1 :] = [f"and {more:,} more mistakes"]
        return lines


class CorpusError(InputError):
    """Question-answering data that cannot be read or does not hold what it must."""


class WindowError(InputError):
    """Questions that cannot be cut into windows with this tokenizer and these lengths."""


class CheckpointError(InputError):
    """A checkpoint that cannot be loaded as an extractive question-answering model."""


class StorageError(InputError):
    """A study storage that cannot be opened, or that holds something else."""


class MissingStudyError(StorageError):
    """A storage without the study that was asked for."""


class UnreachableError(StorageError):
    """A database server that does not answer, or has no connection left, and may have later."""


class ArtifactError(InputError):
    """A folder or bucket for checkpoints that cannot be used, or lacks what it must hold."""


class LostArtifactError(ArtifactError):
    """A checkpoint that should be there is not, or is damaged."""


class WorkError(QaHpoError):
    """The input was fine and the work failed."""


class DivergedError(WorkError):
    """A training or validation loss is not a finite number."""


class OutageError(WorkError):
    """A database has not answered for longer than a worker waits."""


class OutOfMemoryError(WorkError):
    """Not even one window at a time fits into the memory."""


class DiskFullError(WorkError):
    """No space is left where a checkpoint, or what comes from the hub, was to be written."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether a library's error says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors, tokenizers and hf_xet say it in Rust's words, each with an exception of its own
    # kind: "No space left on device (os error 28)".
    return any(f"(os error {number})" in str(error) for number in _FULL)
