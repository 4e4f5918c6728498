"""Leases of GPUs: two workers never share one unless that is asked for, whoever started them.

A lease is a lock on files in a folder of the user on this host. The worker inherits the open
files, so that the lease ends with the worker and not before, even if its launcher is killed.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from qa_hpo.errors import InputError

__all__ = ["Gpu", "Lease", "Leases", "gpus"]


@dataclass(frozen=True)
class Gpu:
    """A GPU of this host.

    Attributes:
        name: What ``CUDA_VISIBLE_DEVICES`` calls it.
        key: What it is called by everyone: its UUID, or its name where that is not known.
    """

    name: str
    key: str


def gpus() -> list[Gpu]:
    """Return the GPUs that may be used: those of ``CUDA_VISIBLE_DEVICES``, or all.

    Asked of the driver's own tool: torch would take seconds, and memory on each GPU.
    """
    installed = _installed()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # By UUID, as CUDA may number the GPUs in another order than the tool does.
        return [Gpu(uuid or index, uuid or index) for index, uuid in installed.items()]
    names = [name.strip() for name in visible.split(",")]
    found: dict[str, Gpu] = {}
    for name in names:
        if name not in {"", "-1"}:
            gpu = Gpu(name, _key(name, installed))
            found.setdefault(gpu.key, gpu)
    return list(found.values())


def _key(name: str, installed: dict[str, str]) -> str:
    if name in installed:
        return installed[name] or name
    # CUDA takes the beginning of a UUID, too.
    matches = [uuid for uuid in installed.values() if name and uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else name


def _installed() -> dict[str, str]:
    """Return the UUIDs of the host's GPUs by their index; empty where it is not known."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    asked = subprocess.run(
        [tool, "--query-gpu=index,uuid", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        return {}
    found = {}
    for line in asked.stdout.split("\n"):
        index, _, uuid = (part.strip() for part in line.partition(","))
        # Without a device it may say so in words, and call that a success.
        if index.isdecimal():
            found[index] = uuid if uuid.startswith("GPU-") else ""
    return found


class Lease:
    """A share of a GPU, held while one of its files is open in any process."""

    def __init__(self, gpu: Gpu, files: Sequence[int]) -> None:
        self.gpu = gpu
        self.files = tuple(files)

    def close(self) -> None:
        """Close this process's files; a worker that inherited them holds the lease on."""
        for file in self.files:
            os.close(file)
        self.files = ()


class Leases:
    """Gives leases of the GPUs of this host.

    Args:
        devices: The GPUs.
        folder: Of the locks, shared by all that are to heed each other; one per user of this
            host if left out.
    """

    def __init__(self, devices: Sequence[Gpu], folder: Path | None = None) -> None:
        self.devices = tuple(devices)
        self.folder = folder or Path(tempfile.gettempdir()) / f"qa_hpo-gpus-{os.getuid()}"

    def take(self, most: int | None, per_device: int) -> list[Lease]:
        """Take leases of GPUs, one worker on each before any gets a second.

        Args:
            most: How many at most; all that can be had if None.
            per_device: How many workers may share a GPU. With 1, nobody else gets it meanwhile.

        Returns:
            As many as were free.

        Raises:
            InputError: The folder of the locks cannot be used.
        """
        leases: list[Lease] = []
        try:
            with self._one_at_a_time():
                for _ in range(per_device):
                    for gpu in self.devices:
                        lease = None
                        if most is None or len(leases) < most:
                            lease = self._lease(gpu, per_device)
                        if lease is not None:
                            leases.append(lease)
        except BaseException:
            for lease in leases:
                lease.close()
            raise
        return leases

    def free(self, per_device: int) -> int:
        """Return how many leases could be had now.

        Raises:
            InputError: The folder of the locks cannot be used.
        """
        leases = self.take(None, per_device)
        for lease in leases:
            lease.close()
        return len(leases)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Let nobody else look for free GPUs meanwhile: a look takes them for a moment."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.stat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "it belongs to another user")
            file = self._open("taking")
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be used for the locks of GPUs: {error.strerror}; "
                "set TMPDIR to a folder of this host that can"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _lease(self, gpu: Gpu, per_device: int) -> Lease | None:
        name = quote(gpu.key, safe="")
        alone = per_device == 1
        device = self._locked(name, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if device is None or alone:
            return None if device is None else Lease(gpu, [device])
        for number in range(1, per_device + 1):
            slot = self._locked(f"{name}.{number}", fcntl.LOCK_EX)
            if slot is not None:
                return Lease(gpu, [device, slot])
        os.close(device)
        return None

    def _locked(self, name: str, kind: int) -> int | None:
        file = self._open(f"{name}.lock")
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def _open(self, name: str) -> int:
        # Never removed: a lock on a file that another process has just unlinked is worth nothing.
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
