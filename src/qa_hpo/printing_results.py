"""What commands print of a study's results."""

from typing import Any

from rich.table import Table

from qa_hpo.config import StudyFile
from qa_hpo.printing import console, print_line
from qa_hpo.results.certainty import Compared
from qa_hpo.results.leaderboard import (
    COLUMNS,
    Leaderboard,
    Row,
    forgets_too_much,
    searched_columns,
)

__all__ = ["print_comparison", "print_leaderboard"]

_WORDS = {"ended", "start", "scheduler", "retention", "validation loss per epoch"}
# Columns that are left out, one after the other, where a terminal is too narrow for all.
_DISPENSABLE = (
    *("validation loss per epoch", "F1 at 0", "clip", "scheduler", "dropout", "warmup", "batch"),
    *("stride", "decay", "cross-fit", "forgotten", "threshold", "epoch", "mean of seeds"),
    *("learning rate", "95% interval", "old-task F1", "front"),
)


def print_leaderboard(
    board: Leaderboard, file: StudyFile, against_baseline: Compared | None = None
) -> None:
    """Print a study's trials, best first, and the best against the baseline.

    Args:
        board: The leaderboard.
        file: The study, which tells what is searched: only that has columns.
        against_baseline: The winner and the baseline, if they can be compared.
    """
    screen = console()
    most = file.constraints.max_forgetting
    columns = _columns(board, searched_columns(file), most)
    for heading in _DISPENSABLE:
        if sum(_width(heading, cells) + 2 for heading, cells in columns.items()) <= screen.width:
            break
        columns.pop(heading, None)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=None)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in _WORDS else "right", no_wrap=True)
    for row, cells in zip(board.trials, zip(*columns.values(), strict=True), strict=True):
        table.add_row(*cells, style="bold" if row == board.winner else None)
    screen.print(table)
    if board.winner is not None:
        print_line(_verdict(board.winner, board.baseline, against_baseline))
        for line in (*_kept_to(board.winner, most), *_front(board)):
            print_line(line)


def print_comparison(found: Compared, winner: Row | None = None) -> None:
    """Print which of two trials' checkpoints scores higher, and whether one is the winner."""
    first, second, difference = found.first, found.second, found.difference
    print_line(f"trial {first.number}: best F1 {first.best_f1:.2f} ({_configuration(first)})")
    print_line(f"trial {second.number}: best F1 {second.best_f1:.2f} ({_configuration(second)})")
    print_line(
        f"difference {difference.mean:+.2f}, 95% interval {difference.low:+.2f} to "
        f"{difference.high:+.2f}; trial {first.number} scores higher with probability "
        f"{difference.p_better:.3f}"
    )
    if winner is not None and winner.number in (first.number, second.number):
        chosen = f"trial {winner.number}, the winner, was chosen for its score"
        print_line(f"{chosen}: the difference flatters it")


def _configuration(row: Row) -> str:
    return ", ".join(
        f"{COLUMNS[name]} {_value(row.params[name])}"
        for name in ("start", "learning_rate", "weight_decay", "doc_stride", "batch_size")
    )


def _width(heading: str, cells: list[str]) -> int:
    return max(map(len, [heading, *cells]))


def _columns(board: Leaderboard, searched: list[str], most: float | None) -> dict[str, list[str]]:
    """Return the leaderboard's cells by their column's heading; columns without any are not there.

    Args:
        board: The leaderboard.
        searched: The parameters that have columns.
        most: Points of F1 that may be forgotten, if the study says so.
    """
    columns: dict[str, list[str]] = {}
    for row in board.trials:
        for heading, cell in _cells(row, searched, most).items():
            columns.setdefault(heading, []).append(cell)
    optional = {"mean of seeds", "old-task F1", "forgotten", "front"}
    return {
        heading: cells
        for heading, cells in columns.items()
        if heading not in optional or any(cells)
    }


def _cells(row: Row, searched: list[str], most: float | None) -> dict[str, str]:
    ended = row.state.lower() + (f", {row.stop_reason}" if row.stop_reason else "")
    interval = row.best_f1_interval
    seeds = "" if row.seeds_f1 is None else f"{row.seeds_f1:.2f} ({row.seeds})"
    return {
        "trial": str(row.number),
        "ended": ended,
        **{COLUMNS[name]: _value(row.params.get(name)) for name in searched},
        "epoch": f"{row.best_epoch or '-'} of {row.params['epochs']}",
        "mean of seeds": seeds,
        "best F1": _score(row.best_f1),
        "95% interval": "" if interval is None else f"{interval[0]:.1f} - {interval[1]:.1f}",
        "cross-fit": _score(row.crossfit_f1),
        "F1 at 0": _score(row.f1),
        "threshold": _score(row.threshold),
        "old-task F1": _score(row.old_task_f1),
        "forgotten": _score(row.old_task_drop)
        + (" (too much)" if forgets_too_much(row, most) else ""),
        "front": "*" if row.on_front else "",
        "validation loss per epoch": " ".join(
            "nan" if loss is None else f"{loss:.3f}" for loss in row.val_loss
        ),
    }


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _verdict(winner: Row, baseline: Row | None, against: Compared | None) -> str:
    ended = f"pruned, {winner.stop_reason}" if winner.stop_reason else "complete"
    line = (
        f"Winner: trial {winner.number} ({ended}), start {winner.params['start']}, best F1 "
        f"{winner.best_f1:.2f} in epoch {winner.best_epoch} with the threshold "
        f"{winner.threshold:.2f}"
    )
    if baseline is None or baseline.best_f1 is None or winner.best_f1 is None:
        return f"{line}."
    if baseline.number == winner.number:
        return f"{line}. It is the baseline."
    gain = winner.best_f1 - baseline.best_f1
    line += f"; the baseline (trial {baseline.number}) has {baseline.best_f1:.2f}: {gain:+.2f}"
    if against is None:
        return f"{line}."
    low, high = against.difference.low, against.difference.high
    sure = "" if low > 0 or high < 0 else ": which of them is better is not certain"
    return f"{line}, 95% interval {low:+.2f} to {high:+.2f}{sure}."


def _kept_to(winner: Row, most: float | None) -> list[str]:
    """Return whether the winner forgets no more than the study allows, where it says so."""
    if most is None:
        return []
    bound = f"constraints.max_forgetting, {most:g} points of F1 on the old task"
    if forgets_too_much(winner, most):
        return [
            f"No trial keeps to {bound}: trial {winner.number} is the winner because it forgets "
            f"the least, {winner.old_task_drop:.2f} points."
        ]
    return [f"It is the best of those that keep to {bound}."]


def _front(board: Leaderboard) -> list[str]:
    """Return which trials are on the front, in a study with two objectives."""
    numbers = [str(row.number) for row in board.trials if row.on_front]
    if not numbers:
        return []
    return [
        f"On the front of best F1 and old-task F1 (*): trial{'s' * (len(numbers) > 1)} "
        f"{', '.join(numbers)}. 'qa-hpo export' takes the winner; --prefer old_task_f1 or --prefer "
        "'forgetting<=X' another one."
    ]
