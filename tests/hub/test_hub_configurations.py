"""Data sets with several configurations, and what else datasets may have in its cache."""

import os
import shutil
import subprocess
import sys

import pytest
from hub_processes import Ended, Place
from hub_server import Hub
from hub_studies import study
from hub_world import SQUAD_V2, dataset

from tiny import squad

# A configuration of 20 training questions and one of 60: the numbers tell which one was read.
_CONFIGS = """configs:
- config_name: easy{default}
  data_files:
  - split: train
    path: easy/train-*
  - split: validation
    path: easy/validation-*
- config_name: hard
  data_files:
  - split: train
    path: hard/train-*
  - split: validation
    path: hard/validation-*
"""
EASY, HARD = "train: 20 questions", "train: 60 questions"


def configured(default: str = "\n  default: true") -> dict[str, bytes]:
    easy = dataset("easy", squad(20, seed=41), squad(10, seed=42))
    hard = dataset("hard", squad(60, seed=43), squad(30, seed=44))
    card = f"---\n{_CONFIGS.format(default=default)}---\n# Two\n"
    return easy | hard | {"README.md": card.encode()}


def check(place: Place, train: str, **environment: str) -> Ended:
    file = study(place.folder, train=train)
    return place.run("check", file, "--no-timing", **environment)


def read(place: Place, train: str, **environment: str) -> str:
    """Return what a study has read, as the command line tells it."""
    ended = check(place, train, **environment)
    assert (ended.code, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("train: ")]
    assert line.endswith(f"({train})")
    return line.partition(",")[0]


@pytest.fixture
def two(hub: Hub) -> str:
    hub.add("dataset", "org/two", configured())
    return "org/two"


def test_another_configuration_does_not_stand_in_for_the_default_one(
    place: Place, two: str
) -> None:
    assert read(place, f"{two}:hard") == HARD
    assert read(place, two) == EASY


def test_without_network_each_configuration_is_itself(place: Place, hub: Hub, two: str) -> None:
    assert read(place, f"{two}:hard") == HARD
    refused = check(place, two, HF_HUB_OFFLINE="1")
    assert refused.code == 2
    assert refused.error.startswith(f"{two}: the data set is not in the cache ({place.home}), and ")
    assert read(place, two) == EASY
    with hub.watched() as asked:
        assert read(place, two, HF_HUB_OFFLINE="1") == EASY
        assert read(place, f"{two}:hard", HF_HUB_OFFLINE="1") == HARD
    assert asked == []


def test_a_card_that_is_gone_from_the_cache(place: Place, hub: Hub, two: str) -> None:
    assert read(place, f"{two}:hard") == HARD
    assert read(place, two) == EASY
    shutil.rmtree(place.home / "hub" / "datasets--org--two" / "snapshots")
    assert read(place, two) == EASY
    assert hub.fetched()[f"datasets/{two}/easy/train-00000-of-00001.parquet"] == 1


def test_another_configuration_does_not_stand_in_where_the_hub_fails(
    place: Place, hub: Hub, two: str
) -> None:
    assert read(place, f"{two}:hard") == HARD
    hub.fail(rf"/api/datasets/{two}/(tree|revision|paths-info)", times=1000, status=500)
    ended = check(place, two)
    assert ended.code == 1
    assert ended.error.startswith(f"{two}: the hub failed, ")


def test_a_data_set_without_a_default_configuration(place: Place, hub: Hub) -> None:
    hub.add("dataset", "org/none", configured(default=""))
    said = (
        "org/none: has several configurations and none by default; give one of org/none:easy, "
        "org/none:hard"
    )
    for _ in range(2):  # before and after one of them is in the cache
        ended = check(place, "org/none")
        assert (ended.code, ended.error) == (2, said)
        assert read(place, "org/none:hard") == HARD


def test_settings_beside_the_card(place: Place, hub: Hub) -> None:
    """A repository's .huggingface.yaml comes before the head of its card."""
    settings = _CONFIGS.format(default="\n  default: true").encode()
    files = configured(default="") | {".huggingface.yaml": settings}
    hub.add("dataset", "org/settings", files)
    assert read(place, "org/settings:hard") == HARD
    assert read(place, "org/settings") == EASY
    assert read(place, "org/settings", HF_HUB_OFFLINE="1") == EASY


@pytest.mark.parametrize("card", [b"# No head\n", None])
def test_a_part_that_somebody_loaded_is_not_the_data_set(
    place: Place, hub: Hub, card: bytes | None
) -> None:
    """Where a card names no configuration, or there is no card, the only one is the default."""
    files = dataset("data", squad(60, seed=43), squad(30, seed=44))
    del files["README.md"]
    if card is not None:
        files["README.md"] = card
    part = dataset("data", squad(7, seed=45), squad(5, seed=46))
    files["extra/part.parquet"] = part["data/train-00000-of-00001.parquet"]
    commit = hub.add("dataset", "org/parts", files).head
    subprocess.run(
        [
            *(sys.executable, "-c"),
            "from datasets import load_dataset\n"
            "part = {'train': 'extra/part.parquet'}\n"
            f"loaded = load_dataset('org/parts', data_files=part, revision='{commit}')\n"
            "assert len(loaded['train']) == 7",
        ],
        env={**os.environ, **place.variables()},
        check=True,
        capture_output=True,
    )
    assert read(place, "org/parts") == HARD
    assert read(place, "org/parts", HF_HUB_OFFLINE="1") == HARD


@pytest.mark.parametrize("harm", ["gone", "cut", "of nothing"])
def test_prepared_files_that_are_damaged(place: Place, hub: Hub, harm: str) -> None:
    """They are prepared again where the hub is reached, without fetching anything twice."""
    assert read(place, SQUAD_V2) == HARD
    (arrow,) = place.home.glob("datasets/*/*/*/*/*-train.arrow")
    match harm:
        case "gone":
            arrow.unlink()
        case "cut":
            arrow.write_bytes(arrow.read_bytes()[:100])
        case "of nothing":
            (arrow.parent / "dataset_info.json").unlink()
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        ended = check(place, SQUAD_V2, **environment)
        assert ended.code == 2
        assert ended.error == (
            f"{SQUAD_V2}: its copy in the cache is damaged ({arrow.parent}), and could not be "
            "prepared again from the hub: run 'qa-hpo prepare STUDY' where there is a network and "
            "copy HF_HOME from there"
        )
    assert read(place, SQUAD_V2) == HARD
    assert set(hub.fetched().values()) == {1}
    assert read(place, SQUAD_V2, HF_HUB_OFFLINE="1") == HARD
