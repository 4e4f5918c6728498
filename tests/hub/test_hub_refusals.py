"""Where the hub says no: one line that says what to do, exit code 2, and no token anywhere."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest
from hub_processes import Place
from hub_server import Hub
from hub_studies import study
from hub_world import SQUAD, SQUAD_V2, Contents

from qa_hpo.errors import CheckpointError
from qa_hpo.hub import telling

KNOWN = "hf_aTokenThatIsKnown"
WRONG = "hf_aTokenThatIsWrong"


@pytest.fixture
def closed(hub: Hub, contents: Contents) -> Hub:
    """The hub with repositories that not everybody may read."""
    hub.tokens = {KNOWN: set(), "hf_aMember": {"org/private", "org/gated"}}
    for kind, files in (("model", contents.bert), ("dataset", contents.squad_v2)):
        hub.add(kind, "org/private", files, private=True)
        hub.add(kind, "org/gated", files, gated=True)
    return hub


def files_with(text: str, folder: Path) -> Iterable[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("name", "token", "expected"),
    [
        (
            "org/private",
            None,
            "{hub} has no such model, or it is private and you are not logged in: check the "
            "spelling, set HF_TOKEN or run 'hf auth login', or give a folder",
        ),
        (
            "org/private",
            KNOWN,
            "{hub} has no such model, or it is private and your token may not read it: check the "
            "spelling, set HF_TOKEN or run 'hf auth login', or give a folder",
        ),
        (
            "org/gated",
            None,
            "the model is gated: ask for access at {hub}/org/gated, then set HF_TOKEN or run "
            "'hf auth login'",
        ),
        (
            "org/gated",
            KNOWN,
            "the model is gated, and your token's account has not been granted access: ask for it "
            "at {hub}/org/gated, or set HF_TOKEN or run 'hf auth login' with another account's",
        ),
        (
            "org/private",
            WRONG,
            "{hub} does not accept your token: set HF_TOKEN or run 'hf auth login' with a valid "
            "one",
        ),
        (
            "distilbert/distilbert-base-uncasd",
            None,
            "{hub} has no such model, or it is private and you are not logged in: check the "
            "spelling, set HF_TOKEN or run 'hf auth login', or give a folder",
        ),
    ],
)
def test_a_model_that_may_not_be_read(
    closed: Hub, place: Place, name: str, token: str | None, expected: str
) -> None:
    file = study(place.folder, base=name)
    more = {} if token is None else {"HF_TOKEN": token}
    ended = place.run("check", file, **more)
    assert ended.code == 2
    assert ended.error == f"starts.base: {name}: {expected.format(hub=closed.url)}"
    # The client did send it, and nothing here kept it or told it.
    assert all(asked.authorized is (token is not None) for asked in closed.log[-1:])
    assert token is None or not [*files_with(token, place.folder)]


@pytest.mark.parametrize(
    ("name", "token", "expected"),
    [
        ("org/private", None, "{hub} has no such data set, or it is private and you are not"),
        ("org/gated", None, "the data set is gated: ask for access at {hub}/datasets/org/gated, "),
        ("org/gated", KNOWN, "the data set is gated, and your token's account has not been"),
        ("rajpurkar/squad_v2", WRONG, "{hub} does not accept your token: set HF_TOKEN or run"),
        ("rajpurkar/sqaud", KNOWN, "{hub} has no such data set, or it is private and your token"),
    ],
)
def test_data_that_may_not_be_read(
    closed: Hub, place: Place, name: str, token: str | None, expected: str
) -> None:
    more = {} if token is None else {"HF_TOKEN": token}
    ended = place.run("check", study(place.folder, train=name), **more)
    assert ended.code == 2
    assert ended.error.startswith(f"{name}: {expected.format(hub=closed.url)}")
    assert token is None or not [*files_with(token, place.folder)]


def test_the_right_token_opens_both(closed: Hub, place: Place) -> None:
    token = "hf_aMember"
    file = study(place.folder, base="org/private", train="org/gated")
    ended = place.run("check", file, HF_TOKEN=token)
    assert (ended.code, "Traceback" in ended.err) == (0, False)
    # It goes to the hub, and not to the host that large files come from.
    hosts = {(asked.host.partition(":")[0], asked.authorized) for asked in closed.log[1:]}
    assert hosts == {("127.0.0.1", True), ("localhost", False)}
    assert not [*files_with(token, place.folder)]


def test_a_token_that_cannot_be_sent(closed: Hub, place: Place) -> None:
    ended = place.run("check", study(place.folder, base="org/private"), HF_TOKEN="hf_pastéd")
    assert ended.code == 2
    assert ended.error == (
        "starts.base: org/private: your token has a character that no token has: set HF_TOKEN or "
        "run 'hf auth login' with a valid one"
    )


def test_a_message_that_quotes_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", KNOWN)
    with pytest.raises(CheckpointError) as refused, telling("model", "org/name"):
        raise OSError(f"a proxy did not like\n'Authorization: Bearer {KNOWN}'")
    assert str(refused.value) == ("org/name: a proxy did not like 'Authorization: Bearer ***'")


def test_an_address_with_a_token(closed: Hub, place: Place) -> None:
    for before in ("s3cret", "me:s3cret"):
        address = closed.url.replace("//", f"//{before}@")
        ended = place.run("check", study(place.folder, base="org/none"), HF_ENDPOINT=address)
        assert ended.code == 2
        assert "***@127.0.0.1" in ended.error
        assert "s3cret" not in ended.err


def test_what_is_no_id_and_no_folder(place: Place, hub: Hub) -> None:
    ended = place.run("check", study(place.folder, base="bert--base"))
    assert ended.code == 2
    assert ended.error.startswith("starts.base: bert--base: is no hub id: ")
    assert "Cannot have --" in ended.error
    assert [asked.path for asked in hub.log] == []


def test_pickled_weights_are_neither_loaded_nor_fetched(
    place: Place, hub: Hub, contents: Contents
) -> None:
    pickled = {p: c for p, c in contents.bert.items() if not p.endswith(".safetensors")}
    hub.add("model", "org/pickled", pickled)
    ended = place.run("check", study(place.folder, base="org/pickled"))
    assert ended.code == 2
    assert ended.error == (
        "starts.base: org/pickled: has no safetensors (model.safetensors) on the hub, and weights "
        "of no other kind are loaded; choose a model that has, or convert it and give the folder"
    )
    assert not [asked for asked in hub.log if asked.path.endswith(".bin")]


def test_a_model_with_an_adapter_beside_it(place: Place, hub: Hub, contents: Contents) -> None:
    adapter = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"-"}
    hub.add("model", "org/both", contents.bert | adapter)
    hub.add("model", "org/adapter", adapter)
    for name in ("org/both", "org/adapter"):
        ended = place.run("check", study(place.folder, base=name))
        assert ended.code == 2
        assert ended.error == (
            f"starts.base: {name}: holds a PEFT adapter (adapter_config.json); merge it into its "
            "model and give the merged one"
        )


def test_code_of_a_repository_is_neither_run_nor_fetched(
    place: Place, hub: Hub, contents: Contents
) -> None:
    own = b'{"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.OwnConfig"}}'
    hub.add("model", "org/own", contents.bert | {"config.json": own})
    ended = place.run("check", study(place.folder, base="org/own"))
    assert ended.code == 2
    assert ended.error.startswith("starts.base: org/own: cannot be loaded: ")
    assert not [asked for asked in hub.log if asked.path.endswith(".py")]
    assert not [*place.home.rglob("*.py")]


def test_a_data_set_with_a_script(place: Place, hub: Hub) -> None:
    script = b"raise SystemExit('the script of the repository was run')\n"
    hub.add("dataset", "org/scripted", {"README.md": b"# old", "scripted.py": script})
    ended = place.run("check", study(place.folder, train="org/scripted"))
    assert ended.code == 2
    assert ended.error == (
        "org/scripted: is a data set with a loading script, which is never run; give one that has "
        "its data as Parquet or JSON files, or save it with save_to_disk and give the folder"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [(f"{SQUAD}:no_such", "no_such"), (f"{SQUAD_V2}:squad_v2", "")],
)
def test_a_configuration_of_a_data_set(place: Place, source: str, said: str) -> None:
    ended = place.run("check", study(place.folder, train=source))
    if said:
        assert ended.code == 2
        assert ended.error.startswith(
            f"{source}: the split \"train\" cannot be loaded from the hub: BuilderConfig '{said}'"
        )
    else:
        assert f"train: 60 questions, 15 of them unanswerable ({source})" in ended.out


def test_a_commit_that_the_hub_has_no_more(
    place: Place, hub: Hub, contents: Contents, tmp_path: Path
) -> None:
    """A study's commit was removed from the hub, and another host has no copy of it."""
    repository = hub.repositories["model", "google-bert/bert-base-uncased"]
    file = study(place.folder)
    place.create(file)
    first = repository.head
    with sqlite3.connect(place.folder / "storage" / "qa_hpo.db") as database:
        rows = dict(database.execute("SELECT key, value_json FROM study_user_attributes"))
    assert rows["hub_commits"] == f'{{"models/bert-base-uncased": "{first}"}}'
    repository.commit(contents.bert | {"config.json": contents.bert["config.json"] + b"\n"})
    del repository.commits[first]
    other = Place(place.folder, hub.url, {"HF_HOME": str(tmp_path / "other")})
    other.calls = 100
    ended = other.run("worker", "--study", "study")
    assert ended.code == 2
    assert ended.error == (
        f"starts.base: bert-base-uncased: {hub.url} has the model, but not its revision {first}: "
        "copy HF_HOME from a host that has it, or begin a new study, which takes the newest"
    )
    # Where it is in the cache, the study goes on with it, and the newest is not even looked for.
    with hub.watched() as asked:
        assert place.run("worker", "--study", "study").code == 0
    assert asked == []
    assert [path.name for path in place.home.glob("hub/*/snapshots/*")] == [first]
