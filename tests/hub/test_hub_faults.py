"""A hub that is not reached, fails, or loses connections; and several processes at once."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_processes import Place
from hub_server import Hub
from hub_studies import study
from hub_world import SQUAD_V2, Contents

from qa_hpo.errors import CheckpointError, DiskFullError, WorkError
from qa_hpo.hub import telling

BERT = "models/google-bert/bert-base-uncased"
# What a checkpoint is loaded from.
NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def whole(place: Place, contents: Contents) -> bool:
    """Whether the cache has the model's files as the hub has them."""
    (folder,) = place.home.glob("hub/models--bert-base-uncased/snapshots/*")
    return all((folder / name).read_bytes() == contents.bert[name] for name in NEEDED)


# ---------------------------------------------------------------------------- no network


def test_offline_with_an_empty_cache(place: Place, hub: Hub) -> None:
    file = study(place.folder, train=SQUAD_V2)
    ended = place.run("check", file, HF_HUB_OFFLINE="1")
    assert ended.code == 2
    assert ended.error == (
        f"{SQUAD_V2}: the data set is not in the cache ({place.home}), and HF_HUB_OFFLINE is set: "
        "run 'qa-hpo prepare STUDY' where there is a network and copy HF_HOME from there, or give "
        "a file or a folder"
    )
    ended = place.run("check", study(place.folder), HF_HUB_OFFLINE="1")
    assert ended.code == 2
    assert ended.error == (
        f"starts.base: bert-base-uncased: the model is not in the cache ({place.home}), and "
        "HF_HUB_OFFLINE is set: run 'qa-hpo prepare STUDY' where there is a network and copy "
        "HF_HOME from there, or give a folder"
    )
    assert hub.log == []


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address at which nothing listens: connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_a_hub_that_is_not_reached(place: Place, deaf: str) -> None:
    """With nothing in the cache it says so; else it goes on."""
    file = study(place.folder, train=SQUAD_V2)
    cold = Place(place.folder / "cold", deaf)
    ended = cold.run("check", file)
    assert ended.code == 2
    assert ended.error == (
        f"{SQUAD_V2}: the data set is not in the cache ({cold.home}), and {deaf} cannot be reached "
        "(ConnectError): run 'qa-hpo prepare STUDY' where there is a network and copy HF_HOME from "
        "there, or give a file or a folder"
    )
    ended = cold.run("check", study(cold.folder))
    assert ended.code == 2
    assert ended.error.startswith("starts.base: bert-base-uncased: the model is not in the cache (")
    assert f"{deaf} cannot be reached (ConnectError): run 'qa-hpo prepare STUDY'" in ended.error
    assert place.run("prepare", file).code == 0
    warm = place.run("check", file, HF_ENDPOINT=deaf)
    assert (warm.code, warm.err) == (0, "")


def test_what_is_in_the_cache_only_in_part(place: Place, hub: Hub) -> None:
    file = study(place.folder)
    assert place.run("prepare", file).code == 0
    (weights,) = place.home.glob("hub/models--bert-base-uncased/snapshots/*/model.safetensors")
    weights.unlink()
    ended = place.run("check", file, HF_HUB_OFFLINE="1")
    assert ended.code == 2
    assert ended.error.startswith("starts.base: bert-base-uncased: the model is not in the cache (")
    assert place.run("check", file).code == 0


# ---------------------------------------------------------------------------- failures


def test_a_hub_that_fails_in_passing(place: Place, hub: Hub, contents: Contents) -> None:
    """Each kind of request fails once, in each way; nothing is told, and nothing is damaged."""
    hub.fail(r"GET /api/models/bert-base-uncased$", status=0)
    hub.fail(r"GET /api/models/google-bert/bert-base-uncased$")
    hub.fail(r"HEAD /bert-base-uncased/resolve/\w{40}/config.json")
    hub.fail(r"GET /api/models/.*/tree/", status=502)
    hub.fail(r"HEAD /bert-base-uncased/resolve/\w{40}/tokenizer.json", status=0)
    hub.fail(r"GET /api/resolve-cache/.*/tokenizer_config.json", status=500)
    hub.fail(r"GET /files/.*/model.safetensors", status=503)
    hub.fail(r"GET /files/.*/model.safetensors", after=2000)
    ended = place.run("prepare", study(place.folder))
    assert (ended.code, ended.err) == (0, "")
    assert [fault.pattern.pattern for fault in hub.faults if fault.times > 0] == []
    assert whole(place, contents)


def test_a_data_hub_that_fails_in_passing(place: Place, hub: Hub) -> None:
    hub.fail(r"GET /files/datasets/.*/train-", status=503)
    hub.fail(r"GET /files/datasets/.*/validation-", after=1000)
    ended = place.run("check", study(place.folder, train=SQUAD_V2))
    assert ended.code == 0
    assert f"train: 60 questions, 15 of them unanswerable ({SQUAD_V2})" in ended.out
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_a_hub_that_goes_on_failing(place: Place, hub: Hub) -> None:
    hub.fail("/api/models/", times=1000, status=503)
    ended = place.run("check", study(place.folder))
    assert ended.code == 1
    assert ended.error == (
        "starts.base: bert-base-uncased: the hub failed again and again (its answer was 503); try "
        "again later"
    )


def test_older_data_do_not_stand_in_for_what_fails(
    place: Place, hub: Hub, contents: Contents
) -> None:
    """Where the hub fails, datasets takes what its cache has, of whatever commit."""
    file = study(place.folder, train=SQUAD_V2)
    assert place.run("prepare", file).code == 0
    new = {**contents.squad_v2, "README.md": contents.squad_v2["README.md"] + b"\nNew.\n"}
    hub.repositories["dataset", SQUAD_V2].commit(new)
    hub.fail(rf"/api/datasets/{SQUAD_V2}/(tree|revision)", times=1000, status=500)
    ended = place.run("check", file)
    assert ended.code == 1
    assert ended.error.startswith(f"{SQUAD_V2}: the hub failed")


# ---------------------------------------------------------------------------- at once


def test_several_processes_fetch_each_file_once(place: Place, hub: Hub, contents: Contents) -> None:
    file = study(place.folder, train=SQUAD_V2)
    running = [place.begin("check", file) for _ in range(3)]
    assert [(one.end().code, one.end().err) for one in running] == [(0, "")] * 3
    fetched = hub.fetched()
    train = f"datasets/{SQUAD_V2}/squad_v2/train-00000-of-00001.parquet"
    assert {f"{BERT}/{name}" for name in NEEDED} | {train} <= set(fetched)
    assert set(fetched.values()) == {1}
    assert whole(place, contents)


def test_a_copy_of_the_cache_is_enough(place: Place, hub: Hub) -> None:
    """As for a cluster without network: HF_HOME is all that goes there."""
    file = study(place.folder, train=SQUAD_V2, validation=f"{SQUAD_V2}:squad_v2")
    assert place.run("prepare", file, "--download-only").code == 0
    there = Place(place.folder / "cluster", hub.url, {"HF_HUB_OFFLINE": "1"})
    shutil.copytree(place.home, there.home, symlinks=True)
    for path in place.folder.glob("*.*"):
        shutil.copy(path, there.folder)
    with hub.watched() as asked:
        there.create(there.folder / file.name)
        assert there.run("worker", "--study", "study").code == 0
    assert asked == []


# ---------------------------------------------------------------------------- this host


@pytest.mark.parametrize(("data", "left"), [(False, 64), (True, 40), (True, 8)])
def test_a_disk_that_fills_up_while_fetching(place: Place, hub: Hub, data: bool, left: int) -> None:
    file = study(place.folder, train=SQUAD_V2 if data else "train.json")
    with small_disk(place.home):
        filler = place.home / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(place.home).free - left * 1024))
        ended = place.run("check", file, "--no-timing")
        assert ended.code == 1
        name = SQUAD_V2 if data else "starts.base: bert-base-uncased"
        # The client may have warned before it began with a file.
        assert ended.err.splitlines()[-1] == (
            f"error: {name}: no space left on the device for what comes from the hub "
            f"({place.home}); make room, or set HF_HOME to another folder"
        )
        filler.unlink()
        assert place.run("check", file, "--no-timing").code == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Make a folder a file system of 4 MiB of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs a small disk, and may not mount one (mount -t tmpfs, as root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_proxy_that_the_client_cannot_use(place: Place) -> None:
    file = study(place.folder)
    proxy = {"ALL_PROXY": "socks5://127.0.0.1:9", "HF_ENDPOINT": "http://example.invalid"}
    ended = place.run_anew("check", file, "--no-timing", **proxy)
    assert ended.code == 1
    assert ended.error.startswith(
        "starts.base: bert-base-uncased: the hub's client failed: Using SOCKS proxy, but "
    )


def test_a_hub_that_goes_away_between_two_requests(
    place: Place, deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has answered what is asked first, and then the client finds nothing in its cache."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "ENDPOINT", deaf)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place.home))

    def resolve() -> str:
        return HfApi(endpoint=deaf).resolve_revision("org/name", repo_type="model").resolved

    said = r"^org/name: the model is not in the cache \(.* cannot be reached \(ConnectError\): run "
    with pytest.raises(CheckpointError, match=said), telling("model", "org/name"):
        resolve()


def test_a_client_that_fails() -> None:
    """As the library that gets large files does, which knows RuntimeErrors alone."""
    with pytest.raises(WorkError) as failed, telling("model", "org/name"):
        raise RuntimeError("Data processing error: CAS service error\n(a cause)")
    assert str(failed.value) == (
        "org/name: the hub's client failed: Data processing error: CAS service error (a cause)"
    )
    full = RuntimeError("Data processing error: No space left on device (os error 28)")
    with pytest.raises(DiskFullError), telling("model", "org/name"):
        raise full
