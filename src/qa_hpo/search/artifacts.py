"""Where checkpoints and resume states are kept: a folder that all workers see, or an S3 bucket.

Bytes go first and whatever points to them afterwards, so that a pointer is never to half a file.
What nothing points to any more is collected. Artifacts are of Optuna's kind: a dashboard that
knows the store offers the checkpoints of the leading trials.
"""

import contextlib
import errno
import io
import json
import tarfile
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from qa_hpo.errors import ArtifactError, DiskFullError, InputError, LostArtifactError
from qa_hpo.paths import check_folder, new_folder

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

__all__ = ["CheckpointStore", "artifact_id", "metadata", "open_store", "owner"]

_BUFFER_BYTES = 2**20


def artifact_id(study_id: str, trial: int, epoch: int) -> str:
    """Return a new key for what trial ``trial`` keeps of epoch ``epoch``.

    It is of the form that a dashboard takes, hexadecimal digits and dashes; the digits of the
    numbers are decimal, for people: ``3f9a1c2e-000012-0003-…`` is of trial 12, epoch 3.
    """
    return f"{study_id}-{trial:06d}-{epoch:04d}-{uuid.uuid4().hex[:12]}"


def owner(key: str) -> int:
    """Return the number of the trial that the artifact ``key`` belongs to."""
    return int(key.split("-")[1])


def metadata(key: str, filename: str, mimetype: str = "application/x-tar") -> tuple[str, str]:
    """Return the system attribute, name and value, by which Optuna knows the artifact ``key``.

    Args:
        key: Its key.
        filename: What a download of it is called.
        mimetype: What it is.
    """
    meta = {
        "artifact_id": key,
        "filename": filename,
        "mimetype": mimetype,
        "encoding": None,
    }
    return f"artifacts:{key}", json.dumps(meta)


class _Listed(Protocol):
    """An Optuna artifact store that can tell what it holds."""

    def open_reader(self, artifact_id: str) -> BinaryIO: ...
    def write(self, artifact_id: str, content_body: BinaryIO) -> None: ...
    def remove(self, artifact_id: str) -> None: ...
    def keys(self, prefix: str) -> set[str]: ...


class _Folder:
    """Optuna's store in a folder, in which a file has its name only when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self.store.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = f".{artifact_id}.part"
        try:
            self.store.write(part, content_body)
            (self.folder / part).replace(self.folder / artifact_id)
        except BaseException:
            (self.folder / part).unlink(missing_ok=True)
            raise

    def remove(self, artifact_id: str) -> None:
        (self.folder / artifact_id).unlink(missing_ok=True)
        (self.folder / f".{artifact_id}.part").unlink(missing_ok=True)

    def keys(self, prefix: str) -> set[str]:
        # Parts that a killed process left are found too.
        paths = [*self.folder.glob(f"{prefix}*"), *self.folder.glob(f".{prefix}*.part")]
        return {path.name.removeprefix(".").removesuffix(".part") for path in paths}


class _Bucket:
    """Optuna's store in an S3 bucket, under a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415  (an extra)
        from optuna.artifacts import Boto3ArtifactStore  # noqa: PLC0415

        # Neither package is typed.
        patient = cast("Any", Config)(retries={"mode": "standard", "max_attempts": 8})
        self.client: Any = cast("Any", boto3).client("s3", config=patient)
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.store = Boto3ArtifactStore(bucket, self.client, avoid_buf_copy=True)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self.store.open_reader(self.prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.store.write(self.prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self.store.remove(self.prefix + artifact_id)

    def keys(self, prefix: str) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix
        )
        found = (entry["Key"] for page in pages for entry in page.get("Contents", []))
        return {key.removeprefix(self.prefix) for key in found}


if TYPE_CHECKING:
    _folder: ArtifactStore = _Folder(Path())
    _bucket: ArtifactStore = _Bucket("", "")


@dataclass(frozen=True)
class CheckpointStore:
    """Keeps folders, each as one tar file, and files that are small.

    Attributes:
        place: The folder or URL, for people.
        artifacts: The Optuna artifact store.
    """

    place: str
    artifacts: _Listed

    def put(self, key: str, folder: Path) -> None:
        """Keep the files of ``folder`` as ``key``, whole or not at all.

        Raises:
            DiskFullError: There is no space left, here or there.
            ArtifactError: The store refuses.
        """
        # The file lies beside the folder: a place that has the space for checkpoints.
        with _explaining(self.place), tempfile.TemporaryFile(dir=folder.parent) as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for path in sorted(folder.iterdir()):
                    tar.add(path, arcname=path.name)
            file.seek(0)
            self.artifacts.write(key, file)

    def get(self, key: str, folder: Path) -> None:
        """Put the files kept as ``key`` into the new folder ``folder``, all or none.

        Raises:
            LostArtifactError: They are not there, or damaged.
            ArtifactError: The store refuses.
            DiskFullError: There is no space left.
        """
        with (
            _explaining(self.place),
            new_folder(folder) as new,
            contextlib.closing(self.artifacts.open_reader(key)) as reader,
            tarfile.open(fileobj=reader, mode="r|", bufsize=_BUFFER_BYTES) as tar,
        ):
            tar.extractall(new, filter="data")

    def put_bytes(self, key: str, content: bytes) -> None:
        """Keep ``content`` as ``key``, whole or not at all.

        Raises:
            DiskFullError: There is no space left.
            ArtifactError: The store refuses.
        """
        with _explaining(self.place):
            self.artifacts.write(key, io.BytesIO(content))

    def get_bytes(self, key: str) -> bytes:
        """Return the bytes kept as ``key``.

        Raises:
            LostArtifactError: They are not there.
            ArtifactError: The store refuses.
        """
        with (
            _explaining(self.place, "a file"),
            contextlib.closing(self.artifacts.open_reader(key)) as reader,
        ):
            return reader.read()

    def remove(self, keys: Iterable[str]) -> None:
        """Remove what is kept as ``keys``; what is not there is no mistake.

        Raises:
            ArtifactError: The store refuses.
        """
        with _explaining(self.place):
            for key in keys:
                self.artifacts.remove(key)

    def keys(self, study_id: str) -> set[str]:
        """Return the keys of all that is kept of a study.

        Raises:
            ArtifactError: The store refuses.
        """
        with _explaining(self.place):
            return self.artifacts.keys(f"{study_id}-")

    def check(self) -> None:
        """Keep something and remove it again.

        Raises:
            InputError: That cannot be done.
        """
        key = artifact_id("0" * 8, 0, 0)
        with tempfile.TemporaryDirectory() as workshop:
            probe = Path(workshop) / "probe"
            probe.mkdir()
            (probe / "probe").write_text("written to see whether it can be\n")
            with _naming_the_setting():
                self.put(key, probe)
                self.remove([key])

    def check_place(self) -> None:
        """Check a folder as :meth:`check` does, but leave everything as it is.

        What a bucket takes, only writing shows: it is not asked.

        Raises:
            InputError: The folder can neither be written to nor made.
        """
        if isinstance(self.artifacts, _Folder):
            with _naming_the_setting(), _explaining(self.place):
                check_folder(self.artifacts.folder)


def open_store(place: str) -> CheckpointStore:
    """Return the store at ``place``: a folder, or ``s3://BUCKET`` with or without ``/PREFIX``.

    Raises:
        ArtifactError: It is no place that is supported, or a package is missing.
    """
    if "://" not in place:
        return CheckpointStore(place, _Folder(Path(place)))
    url = urlsplit(place)
    if url.scheme != "s3" or not url.netloc:
        raise ArtifactError(f"{place}: is neither a folder nor s3://BUCKET/PREFIX")
    try:
        with _explaining(place):
            bucket = _Bucket(url.netloc, url.path.strip("/"))
    except ImportError:
        raise ArtifactError(f"{place}: boto3 is missing; pip install 'qa_hpo[s3]'") from None
    return CheckpointStore(place, bucket)


@contextlib.contextmanager
def _naming_the_setting() -> Iterator[None]:
    try:
        yield
    except (ArtifactError, DiskFullError) as error:
        raise InputError(f"artifacts.folder: {error}") from None


@contextlib.contextmanager
def _explaining(place: str, what: str = "a checkpoint") -> Iterator[None]:
    """Tell of what a store or a disk refuses in one line."""
    try:
        yield
    except ArtifactNotFound:
        raise LostArtifactError(f"{place}: {what} that should be there is not") from None
    except tarfile.TarError as error:
        raise LostArtifactError(f"{place}: {what} is damaged: {error}") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"{place}: no space left on the device") from None
        raise ArtifactError(f"{place}: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"boto3", "botocore", "urllib3"}:
            raise
        raise ArtifactError(f"{place}: {' '.join(str(error).split())}") from None
