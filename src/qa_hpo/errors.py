"""The errors a user may see, one line each.

    QaHpoError
    ├── InputError            the user's input was wrong             exit code 2
    │   ├── StudyFileError      a study file or configuration
    │   ├── CorpusError         question-answering data
    │   ├── WindowError         data, tokenizer and lengths do not go together
    │   ├── CheckpointError     a model folder or hub id
    │   └── StorageError        a study's database, or what it holds
    └── WorkError             the work itself failed                 exit code 1
        └── DivergedError       a loss that is not a finite number

The message is what the user reads: what is wrong, where, and what would be valid.
"""

__all__ = [
    "CheckpointError",
    "CorpusError",
    "DivergedError",
    "InputError",
    "QaHpoError",
    "StorageError",
    "StudyFileError",
    "WindowError",
    "WorkError",
]


class QaHpoError(Exception):
    """Base of every error that is told to the user in one line."""

    exit_code = 1


class InputError(QaHpoError):
    """What the user gave is wrong; nothing was changed."""

    exit_code = 2


class StudyFileError(InputError):
    """A study file or configuration that cannot be used."""


class CorpusError(InputError):
    """Question-answering data that cannot be read or does not hold what it must."""


class WindowError(InputError):
    """Questions that cannot be cut into windows with this tokenizer and these lengths."""


class CheckpointError(InputError):
    """A checkpoint that cannot be loaded as an extractive question-answering model."""


class StorageError(InputError):
    """A study storage that cannot be opened, or that holds something else."""


class WorkError(QaHpoError):
    """The input was fine and the work failed."""


class DivergedError(WorkError):
    """A training or validation loss is not a finite number."""
