import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from qa_hpo.config import StudyFile
from qa_hpo.results.leaderboard import Leaderboard, Row, best_of_starts, competes, leaderboard
from qa_hpo.results.progress import describe_trial
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.failures import Cause
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import fail, finish, record_epoch

FILE = {
    "study": {"name": "demo"},
    "data": {"train": "train.json", "validation": "validation.json"},
    "starts": {"base": "some/base"},
    "search": {
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "batch_size": {"value": 8},
    },
    "training": {"weight_decay": 0.01, "epochs": 3},
    "budget": {"trials": 50},
    "baseline": [{"name": "notebook", "learning_rate": 2e-5}, {"learning_rate": 3e-5}],
}

KEYS = [
    "number", "state", "stop_reason", "params", "best_epoch", "f1", "exact", "best_f1",
    "best_exact", "threshold", "crossfit_f1", "val_loss", "train_seconds", "worker",
    "repeat_of", "seeds", "seeds_f1", "seeds_f1_sd", "old_task_f1", "old_task_exact",
    "old_task_f1_no_null", "old_task_drop", "old_task_drop_no_null", "best_f1_interval", "on_front",
]  # fmt: skip


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[JoinedStudy]:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    file = StudyFile.model_validate_json(json.dumps(FILE))
    yield create_study(file, storage, fingerprints={"train": "a", "validation": "b"})
    storage.close()


def end(joined: JoinedStudy, state: TrialState, best_f1: float | None, **options: Any) -> int:
    """Run a trial to its end and return its number."""
    answer = ask(joined)
    assert isinstance(answer, Asked)
    for epoch, loss in enumerate(options.pop("losses", []), start=1):
        record_epoch(joined, answer.trial, {"epoch": epoch, "val_loss": loss})
    attrs = {"best_f1": best_f1, **options.pop("attrs", {})}
    finish(joined, answer.trial, state=state, attrs=attrs, **options)
    return answer.trial.number


def numbers(board: Leaderboard) -> list[int]:
    return [row.number for row in board.trials]


def test_an_empty_study(joined: JoinedStudy):
    board = leaderboard(joined)
    assert json.loads(board.to_json()) == {
        "study": "demo", "winner": None, "baseline": None, "trials": []
    }  # fmt: skip
    assert isinstance(ask(joined), Asked)
    assert leaderboard(joined).trials == []  # a running trial is not on it, nor a waiting one


def test_best_first_without_a_value_later_failed_last(joined: JoinedStudy):
    end(joined, TrialState.COMPLETE, 60.0)
    end(joined, TrialState.FAIL, 99.0)
    end(joined, TrialState.PRUNED, None, stop_reason="diverged")
    end(joined, TrialState.PRUNED, 61.5, stop_reason="overfitting")
    end(joined, TrialState.COMPLETE, 60.0)
    end(joined, TrialState.FAIL, None)
    end(joined, TrialState.COMPLETE, 0.0)
    ask(joined)
    board = leaderboard(joined)
    assert numbers(board) == [3, 0, 4, 6, 2, 1, 5]
    assert board.winner is not None
    assert (board.winner.number, board.winner.state) == (3, "PRUNED")
    assert board.baseline is not None
    assert board.baseline.number == 0


def test_a_study_in_which_everything_failed_has_no_winner(joined: JoinedStudy):
    end(joined, TrialState.FAIL, 50.0)
    board = leaderboard(joined)
    assert board.winner is None
    assert board.baseline is not None
    assert board.baseline.state == "FAIL"


def test_the_best_trial_of_each_start():
    def row(number: int, start: str, best_f1: float | None, state: str = "COMPLETE") -> Row:
        empty = dict.fromkeys(name for name, of in Row.model_fields.items() if of.is_required())
        given = {"number": number, "state": state, "params": {"start": start}, "val_loss": []}
        return Row(**{**empty, **given, "best_f1": best_f1})

    rows = [
        row(4, "v1", 70.0),  # the winner, by the mean of its seeds
        row(5, "base", 61.0),
        row(3, "v1", 72.0, "PRUNED"),
        row(2, "v1", 72.0),
        row(6, "v2", None, "PRUNED"),
        row(1, "base", 99.0, "FAIL"),
    ]
    best = best_of_starts(rows)
    assert [(start, row.number) for start, row in best.items()] == [("v1", 2), ("base", 5)]
    assert [row.number for row in rows if competes(row)] == [4, 5, 3, 2]


def test_the_json_of_a_row(joined: JoinedStudy):
    attributes = {
        "best_epoch": 2, "f1": 66.35, "exact": 62.73, "best_exact": 63.1, "threshold": -1.25,
        "crossfit_f1": 66.9, "train_seconds": 12.5, "worker": "host:1", "cause": "not on the board",
    }  # fmt: skip
    losses = [1.235, 1.2170000000000001, math.nan]
    end(
        joined,
        TrialState.PRUNED,
        0.1 + 0.2,
        losses=losses,
        stop_reason="overfitting",
        attrs=attributes,
    )
    text = leaderboard(joined).to_json()
    board = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(board) == ["study", "winner", "baseline", "trials"]
    row = board["winner"]
    assert row == board["baseline"] == board["trials"][0]
    assert list(row) == KEYS
    assert (
        row
        == {
            "number": 0,
            "state": "PRUNED",
            "stop_reason": "overfitting",
            "params": {
                "learning_rate": 2e-5,
                "epochs": 3,
                "weight_decay": 0.01,
                "doc_stride": 128,
                "batch_size": 8,
                "warmup": 0.0,
                "scheduler": "linear",
                "max_grad_norm": 1.0,
                "dropout": None,
                "retention.method": "none",
                "start": "base",
            },
            "best_epoch": 2,
            "f1": 66.35,
            "exact": 62.73,
            "best_f1": 0.30000000000000004,  # as stored
            "best_exact": 63.1,
            "threshold": -1.25,
            "crossfit_f1": 66.9,
            "val_loss": [1.235, 1.2170000000000001, None],
            "train_seconds": 12.5,
            "worker": "host:1",
            "repeat_of": None,
            "seeds": 1,
            "seeds_f1": None,
            "seeds_f1_sd": None,
            **dict.fromkeys(KEYS[-7:]),
        }
    )


def test_numbers_that_are_not_finite_are_null(joined: JoinedStudy):
    end(joined, TrialState.COMPLETE, 1.0)
    row = leaderboard(joined).trials[0]
    odd = row.model_copy(update={"threshold": math.inf, "val_loss": [math.nan]})
    board = Leaderboard(study="demo", winner=odd, baseline=None, trials=[odd])
    written = json.loads(board.to_json(), parse_constant=pytest.fail)
    assert (written["winner"]["threshold"], written["winner"]["val_loss"]) == (None, [None])


def test_the_baseline_is_the_first_one_in_its_latest_attempt(joined: JoinedStudy):
    first = ask(joined)
    assert isinstance(first, Asked)
    end(joined, TrialState.COMPLETE, 70.0)  # the second baseline
    assert leaderboard(joined).baseline is None
    record_epoch(joined, first.trial, {"epoch": 1, "val_loss": 1.0})
    fail(joined, first.trial, Cause.WORKER_DIED, "it ended")
    assert leaderboard(joined).baseline is None  # it is tried again: the failure says nothing
    end(joined, TrialState.COMPLETE, 60.0)
    board = leaderboard(joined)
    assert board.baseline is not None
    assert board.baseline.number == 2
    assert board.baseline.params["learning_rate"] == 2e-5
    assert board.baseline.val_loss == [1.0]  # what the first attempt recorded
    assert numbers(board) == [1, 2]  # one row for both attempts


def test_the_line_on_a_trial_that_has_ended(joined: JoinedStudy):
    attributes = {"best_epoch": 2, "train_seconds": 12.5, "peak_memory_mib": 1540.2}
    losses = [1.2, 1.1, 1.3]
    end(
        joined,
        TrialState.PRUNED,
        61.234,
        losses=losses,
        stop_reason="overfitting",
        attrs=attributes,
    )
    del attributes["peak_memory_mib"]  # as of a trial that was only finished
    end(joined, TrialState.COMPLETE, 50.0, losses=losses[:1], attrs=attributes)
    first, second = joined.optuna_study.trials
    assert describe_trial(joined, first) == (
        "trial 0 (base, learning rate 2e-05, 3 of 3 epochs) pruned, overfitting: best F1 61.23 in "
        "epoch 2, 12 s, 1,540 MiB at most"
    )
    assert describe_trial(joined, second) == (
        "trial 1 (base, learning rate 3e-05, 1 of 3 epochs) complete: best F1 50.00 in epoch 2, "
        "12 s"
    )
