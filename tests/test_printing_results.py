"""The leaderboard on terminals of any width."""

import io
from typing import Any

import pytest
from rich.console import Console

from qa_hpo import printing_results
from qa_hpo.config import StudyFile
from qa_hpo.parameters import Parameters
from qa_hpo.printing_results import print_leaderboard
from qa_hpo.results.leaderboard import Leaderboard, Row

FILE = StudyFile.from_dict(
    {
        "study": {"name": "demo"},
        "data": {"train": "a", "validation": "b"},
        "starts": {"base": "c"},
        "search": {
            "learning_rate": {"low": 1e-5, "high": 1e-3},
            "weight_decay": {"low": 0.0, "high": 0.1},
            "doc_stride": {"choices": [64, 128]},
        },
        "budget": {"trials": 2},
    }
)


def row(number: int, **changes: Any) -> Row:
    given: dict[str, Any] = {
        "number": number,
        "state": "COMPLETE",
        "stop_reason": None,
        "params": Parameters(start="base", learning_rate=0.00025, epochs=3).model_dump(),
        "best_epoch": 2,
        "f1": 80.04,
        "exact": 70.0,
        "best_f1": 83.63,
        "best_exact": 75.0,
        "threshold": -1.25,
        "crossfit_f1": 82.11,
        "val_loss": [0.5, 0.4, None],
        "train_seconds": 10.0,
        "worker": "w",
        "best_f1_interval": (79.51, 86.54),
    }
    return Row(**{**given, **changes})


def printed(width: int, monkeypatch: pytest.MonkeyPatch, *rows: Row) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False)
    monkeypatch.setattr(printing_results, "console", lambda: console)
    monkeypatch.setattr(printing_results, "print_line", lambda text: None)
    board = Leaderboard(study="demo", winner=rows[0], baseline=None, trials=list(rows))
    print_leaderboard(board, FILE)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_wide_one_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    head, first = printed(200, monkeypatch, row(4))
    assert head.split("  ")[0] == "trial"
    for word in ("95% interval", "cross-fit", "F1 at 0", "threshold", "validation loss per epoch"):
        assert word in head
    for cell in ("83.63", "79.5 - 86.5", "82.11", "80.04", "-1.25", "0.500 0.400 nan", "2 of 3"):
        assert cell in first
    assert "mean of seeds" not in head
    assert "old-task F1" not in head
    assert "front" not in head


@pytest.mark.parametrize("width", [50, 80, 100, 120])
def test_a_narrow_one_leaves_columns_out_and_cuts_none(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(4), row(12, state="PRUNED", stop_reason="overfitting")]
    lines = printed(width, monkeypatch, *rows)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    assert "trial" in lines[0]
    assert "best F1" in lines[0]
    assert all("83.63" in line for line in lines[1:])
    assert "pruned, overfitting" in lines[2]
    # The losses go first, the interval among the last.
    assert "validation loss" not in lines[0]
    assert ("95% interval" in lines[0]) == (width > 50)


def test_what_only_some_studies_have(monkeypatch: pytest.MonkeyPatch) -> None:
    finalist = row(4, seeds=3, seeds_f1=82.5, seeds_f1_sd=0.4, old_task_f1=71.0, old_task_drop=9.5)
    head, first, second = printed(220, monkeypatch, finalist, row(5))
    for word in ("mean of seeds", "old-task F1", "forgotten"):
        assert word in head
    for cell in ("82.50 (3)", "71.00", "9.50"):
        assert cell in first
        assert cell not in second
