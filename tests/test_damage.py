"""A study from whose records another program has removed something: one line says what."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import run_cli
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.search.storage import open_storage
from told_study import TWO, ToldStudy

EPOCH = {"epoch", "train_loss", "val_loss", "seconds", "eval_seconds"}
SCORES = {"f1", "exact", "best_f1", "best_exact", "best_f1_thresh", "total"}
OLD_TASK = {"old_task_f1_no_null", "old_task_drop_no_null"}

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A study with two objectives and one trial of two epochs."""
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url, create=True)
    told = ToldStudy(storage, tmp_path, study={**TWO, "name": "told"})
    told.end(80.0, 40.0, 20.0, losses=(1.0, 0.9))
    yield url
    storage.close()


def change(url: str, key: str, changed: Callable[[Any], Any]) -> None:
    """Change an attribute of the trial, or remove it where None is left of it."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        found = "trial_user_attributes WHERE key = ?"
        (row,) = database.execute(f"SELECT value_json FROM {found}", (key,)).fetchall()
        value = changed(json.loads(row[0]))
        if value is None:
            database.execute(f"DELETE FROM {found}", (key,))
        else:
            assignment = "UPDATE trial_user_attributes SET value_json = ? WHERE key = ?"
            database.execute(assignment, (json.dumps(value), key))
        database.commit()


def without(name: str, epoch: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """What removes something from an epoch's record."""
    return lambda records: [
        {key: value for key, value in record.items() if (key, record["epoch"]) != (name, epoch)}
        for record in records
    ]


def refusal(url: str, *command: str) -> str | None:
    """What a command says of damage, or None if it does what it should."""
    done = run_cli(*command, "--storage", url)
    assert "--debug" not in done.err
    if done.code == 0:
        return None
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "trial 0: " in done.err
    assert done.err.rstrip().endswith("another program has changed it, or damaged the database")
    return str(done.err)


def test_what_is_removed_here_is_what_a_record_has(url: str) -> None:
    assert set(EpochRecord.__dataclass_fields__) - {"metrics", "looks"} == EPOCH


@pytest.mark.parametrize("name", sorted(EPOCH | SCORES | OLD_TASK))
def test_an_export_names_what_is_missing_of_an_epoch(url: str, name: str, tmp_path: Path) -> None:
    change(url, "epochs", without(name, 2))
    said = refusal(url, "export", "told", str(tmp_path / "out"))
    assert said is not None
    assert re.search(rf"\bepochs[.:].*\b{name} (of epoch 2 )?is missing", said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(SCORES | OLD_TASK))
def test_tables_need_less(url: str, name: str) -> None:
    change(url, "epochs", without(name, 2))
    assert refusal(url, "leaderboard", "told") is None
    assert refusal(url, "status", "told") is None


@pytest.mark.parametrize("name", ["best_f1", "threshold"])
def test_a_trial_with_a_best_epoch_has_its_score_and_threshold(url: str, name: str) -> None:
    change(url, name, lambda value: None)
    said = refusal(url, "leaderboard", "told")
    assert said is not None
    assert f"{name} is missing, and best_epoch is 2" in said


def test_a_score_of_hundreds_of_digits_is_damage(url: str) -> None:
    change(url, "best_f1", lambda value: 10**400)
    said = refusal(url, "leaderboard", "told", "--json")
    assert said is not None
    assert "best_f1: is too large" in said


def test_an_export_needs_a_best_epoch(url: str, tmp_path: Path) -> None:
    change(url, "best_epoch", lambda value: None)
    said = refusal(url, "export", "told", "--trial", "0", str(tmp_path / "out"))
    assert said is not None
    assert "best_epoch is missing" in said


@pytest.mark.parametrize("looks", [[], [[0.25, 1.5], [0.5, None]]])
def test_what_is_whole_is_no_damage(url: str, looks: list[Any], tmp_path: Path) -> None:
    change(url, "epochs", lambda records: [{**record, "looks": looks} for record in records])
    assert refusal(url, "leaderboard", "told") is None
    done = run_cli("export", "told", "--storage", url, str(tmp_path / "out"))
    assert "damaged" not in done.err
