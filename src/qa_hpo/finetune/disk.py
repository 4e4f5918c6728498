"""A full disk, told in one line."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qa_hpo.errors import DiskFullError, is_disk_full

__all__ = ["probe", "telling_of_a_full_disk"]

_PROBE = 1 << 20  # bytes: more than a file's buffer or a disk's block


@contextlib.contextmanager
def telling_of_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn what libraries raise when a disk or a quota is full into one line.

    Args:
        folder: Where the block writes.

    Raises:
        DiskFullError: The block found no space left.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(f"{folder}: no space left on the device") from None


@contextlib.contextmanager
def probe(folder: Path) -> Iterator[None]:
    """Find out why the block, which writes into ``folder``, failed: torch's writer does not say.

    Raises:
        OSError: A RuntimeError came, and nothing else can be written there either.
    """
    try:
        yield
    except RuntimeError:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
        raise
