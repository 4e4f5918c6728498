"""Stores of checkpoints: a folder, and a bucket of a real S3 server on this host."""

import errno
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qa_hpo.errors import ArtifactError, DiskFullError, InputError
from qa_hpo.search.artifacts import CheckpointStore, artifact_id, metadata, open_store, owner
from s3_server import S3Server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture(params=["folder", "s3", "s3-prefix"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CheckpointStore:
    if request.param == "folder":
        return open_store(str(tmp_path / "it's an ünusual" / "folder"))
    server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = server.bucket()
    return open_store(f"s3://{bucket}" + ("/a/prefix" if request.param == "s3-prefix" else ""))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "ünusual name.json").write_text("{}")
    (folder / "inner").mkdir()
    (folder / "inner" / "empty").touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_put_can_be_got(store: CheckpointStore, folder: Path, tmp_path: Path):
    key = artifact_id("3f9a1c2e", 12, 3)
    store.put(key, folder)
    store.get(key, tmp_path / "elsewhere" / "got")
    assert contents(tmp_path / "elsewhere" / "got") == contents(folder)
    # Nothing lies about, here or there.
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["got"]
    assert store.keys("3f9a1c2e") == {key}
    assert store.keys("3f9a1c2f") == set()
    # It is one file that Optuna's own way of reading artifacts finds, a tar of everybody's.
    with (
        store.artifacts.open_reader(key) as reader,
        tarfile.open(fileobj=io.BytesIO(reader.read())) as tar,
    ):
        assert sorted(tar.getnames()) == [
            "inner", "inner/empty", "model.safetensors", "ünusual name.json"
        ]  # fmt: skip
    other = artifact_id("3f9a1c2e", 12, 4)
    store.put(other, folder)
    store.remove([key, key])  # the second time there is nothing to remove
    assert store.keys("3f9a1c2e") == {other}
    with pytest.raises(ArtifactError, match="a checkpoint that should be there is not"):
        store.get(key, tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_store_that_works_passes_the_check(store: CheckpointStore):
    store.check()
    assert store.keys("00000000") == set()


def test_a_damaged_checkpoint_leaves_nothing(store: CheckpointStore, tmp_path: Path):
    key = artifact_id("3f9a1c2e", 1, 1)
    store.artifacts.write(key, io.BytesIO(b"no tar at all" * 1000))
    with pytest.raises(ArtifactError, match="a checkpoint is damaged"):
        store.get(key, tmp_path / "got")
    assert list(tmp_path.glob("*got*")) == []


def test_keys():
    key = artifact_id("3f9a1c2e", 12, 3)
    assert owner(key) == 12
    assert key.startswith("3f9a1c2e-000012-0003-")
    assert set(key) <= set("0123456789abcdef-")  # as the dashboard's addresses want it
    assert key != artifact_id("3f9a1c2e", 12, 3)
    name, value = metadata(key, "checkpoint.tar")
    assert name == f"artifacts:{key}"
    assert '"filename": "checkpoint.tar"' in value


@pytest.mark.parametrize("place", ["ftp://host/x", "s3:///x", "gs://bucket"])
def test_places_that_are_not_supported(place: str):
    with pytest.raises(ArtifactError, match="is neither a folder nor s3://BUCKET/PREFIX"):
        open_store(place)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ArtifactError, match=r"boto3 is missing; pip install 'qa_hpo\[s3\]'"):
        open_store("s3://bucket")


def test_a_missing_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"artifacts\.folder: s3://no-such-bucket: .*NoSuchBucket"):
        open_store("s3://no-such-bucket").check()


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"artifacts\.folder: .*file/folder: Not a directory"):
        open_store(str(tmp_path / "file" / "folder")).check()


def test_a_killed_writers_part_is_found_and_removed(tmp_path: Path, folder: Path):
    store = open_store(str(tmp_path / "store"))
    key = artifact_id("3f9a1c2e", 7, 1)
    store.put(key, folder)
    (tmp_path / "store" / key).rename(tmp_path / "store" / f".{key}.part")
    assert store.keys("3f9a1c2e") == {key}
    store.remove([key])
    assert list((tmp_path / "store").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small file system to fill")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_what_is_there_whole(small_disk: Path, folder: Path, tmp_path: Path):
    store = open_store(str(small_disk / "store"))
    first = artifact_id("3f9a1c2e", 1, 1)
    store.put(first, folder)
    (folder / "more").write_bytes(os.urandom(900_000))
    line = rf"{small_disk}/store: no space left on the device"
    with pytest.raises(DiskFullError, match=line):
        store.put(artifact_id("3f9a1c2e", 1, 2), folder)
    assert [path.name for path in (small_disk / "store").iterdir()] == [first]
    store.get(first, tmp_path / "got")
    assert "more" not in contents(tmp_path / "got")
    # And there is no space to unpack it.
    big = open_store(str(tmp_path / "big"))
    big.put(artifact_id("3f9a1c2e", 1, 3), folder)
    with pytest.raises(DiskFullError, match="no space left"):
        big.get(big.keys("3f9a1c2e").pop(), small_disk / "got")
    assert not (small_disk / "got").exists()


def test_other_errors_of_a_disk(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(str(tmp_path / "store"))

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store.artifacts, "write", fails)
    with pytest.raises(ArtifactError, match="store: Input/output error"):
        store.put(artifact_id("3f9a1c2e", 1, 1), folder)
