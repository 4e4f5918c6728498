"""What commands print: tables and live progress on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from qa_hpo.config import StudyFile
from qa_hpo.results.leaderboard import Leaderboard, Row
from qa_hpo.results.progress import Snapshot, describe_trial, headline, render, snapshot
from qa_hpo.search.study import JoinedStudy
from qa_hpo.search.trials import DOING
from qa_hpo.workers.local import LocalWorkers

if TYPE_CHECKING:
    from qa_hpo.finetune.records import EpochRecord
    from qa_hpo.squad.corpus import Corpus

__all__ = [
    "print_epoch",
    "print_leaderboard",
    "print_line",
    "print_metrics",
    "print_preflight",
    "print_status",
    "watch",
]

_POLL_SECONDS = 1.0
# Without a terminal there is no width to keep to, and a table that is cut is of no use in a log.
_PLAIN_WIDTH = 160

# What a leaderboard calls the parameters, in the order of its columns.
_SHOWN = {
    "start": "start",
    "learning_rate": "learning rate",
    "weight_decay": "decay",
    "doc_stride": "stride",
    "batch_size": "batch",
    "warmup": "warmup",
    "scheduler": "scheduler",
    "max_grad_norm": "clip",
    "dropout": "dropout",
}


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def print_line(text: str) -> None:
    """Print one line."""
    _console().print(text, markup=False, soft_wrap=True)


def print_epoch(record: "EpochRecord") -> None:
    """Print what an epoch measured."""
    print_line(
        f"epoch {record.epoch}: training loss {record.train_loss:.3f}, validation loss "
        f"{record.val_loss:.3f}, F1 {record.metrics['f1']:.2f} at 0, "
        f"{record.metrics['best_f1']:.2f} at {record.metrics['best_f1_thresh']:g}, "
        f"{record.seconds:.1f} s"
    )


def print_preflight(train: "Corpus", validation: "Corpus", starts: Mapping[str, str]) -> None:
    """Print which data and starts a study has, and what was left out of the data."""
    for name, corpus in (("train", train), ("validation", validation)):
        unanswerable = sum(not answers for answers in corpus.answers)
        line = f"{name}: {len(corpus):,} questions, {unanswerable:,} of them unanswerable"
        print_line(f"{line} ({corpus.source})")
        if corpus.skipped:
            print_line(f"  {len(corpus.skipped):,} questions are left out:")
            for skip in corpus.skipped[:5]:
                print_line(f"    {skip.id}: {skip.reason}")
            if len(corpus.skipped) > 5:
                print_line(f"    and {len(corpus.skipped) - 5:,} more")
    for name, what in starts.items():
        print_line(f"start {name}: {what}")


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print metrics, one a line."""
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        shown = f"{value:g}" if name.endswith("total") else f"{value:.4f}"
        print_line(f"{name:<{width}}  {shown}")


def print_status(now: Snapshot) -> None:
    """Print how a study stands."""
    console = _console()
    console.print(f"study {now.study}: {headline(now)}", markup=False, soft_wrap=True)
    if now.busy:
        console.print(render(now))


def print_leaderboard(board: Leaderboard, file: StudyFile) -> None:
    """Print a study's trials, best first, and the best against the baseline.

    Args:
        board: The leaderboard.
        file: The study, which tells what is searched: only that has columns.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=None)
    searched = [name for name in _SHOWN if name in file.search]
    numbers = ["best F1", "cross-fit", "F1 at 0", "threshold"]
    for heading in ("trial", "ended", *(_SHOWN[name] for name in searched), "epoch", *numbers):
        left = heading in {"ended", "start", "scheduler"}
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    table.add_column("validation loss per epoch", no_wrap=True)
    for row in board.trials:
        table.add_row(*_cells(row, searched), style="bold" if row == board.winner else None)
    _console().print(table)
    if board.winner is not None:
        print_line(_verdict(board.winner, board.baseline))


def _cells(row: Row, searched: list[str]) -> list[str]:
    ended = row.state.lower() + (f", {row.stop_reason}" if row.stop_reason else "")
    params = [_value(row.params[name]) for name in searched]
    epochs = row.params["epochs"]
    best = f"{row.best_epoch} of {epochs}" if row.best_epoch else f"- of {epochs}"
    scores = [
        "" if value is None else f"{value:.2f}"
        for value in (row.best_f1, row.crossfit_f1, row.f1, row.threshold)
    ]
    losses = " ".join("nan" if loss is None else f"{loss:.3f}" for loss in row.val_loss)
    return [str(row.number), ended, *params, best, *scores, losses]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _verdict(winner: Row, baseline: Row | None) -> str:
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
    return (
        f"{line}; the baseline (trial {baseline.number}) has {baseline.best_f1:.2f}: {gain:+.2f}."
    )


def watch(joined: JoinedStudy, workers: LocalWorkers) -> None:
    """Show a study's progress until its workers have ended."""
    console = _console()
    teller = _Teller(joined, workers, console)
    if not console.is_terminal:
        while workers.alive():
            teller.tell(live=False)
            time.sleep(_POLL_SECONDS)
        teller.tell(live=False)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while workers.alive():
            live.update(render(teller.tell(live=True)), refresh=True)
            time.sleep(_POLL_SECONDS)
        teller.tell(live=True)


class _Teller:
    """Tells once of everything that happens."""

    def __init__(self, joined: JoinedStudy, workers: LocalWorkers, console: Console) -> None:
        self.joined = joined
        self.workers = workers
        self.console = console
        self.told = {
            trial.number
            for trial in joined.optuna_study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        }
        self.told_workers: set[str] = set()
        self.told_doing: set[tuple[int, str]] = set()
        self.told_epochs: set[tuple[int, int]] = set()

    def tell(self, *, live: bool) -> Snapshot:
        """Print what is new, with each epoch unless a live table shows them."""
        for trial in self.joined.optuna_study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self.told:
                self.told.add(trial.number)
                self._line(describe_trial(self.joined, trial))
            doing = trial.system_attrs.get(DOING, "")
            if trial.state is TrialState.RUNNING and doing.startswith("building"):
                key = (trial.number, doing)
                if key not in self.told_doing:
                    self.told_doing.add(key)
                    self._line(f"{trial.user_attrs.get('worker')}: {doing}")
        now = snapshot(self.joined)
        if not live:
            self._epochs(now)
        for worker in self.workers.failed():
            if worker.label not in self.told_workers:
                self.told_workers.add(worker.label)
                code = worker.process.returncode
                self._line(
                    f"{worker.label} (process {worker.process.pid}) ended with code {code}; "
                    f"the end of {worker.log}:\n{worker.tail()}"
                )
        return now

    def _epochs(self, now: Snapshot) -> None:
        for busy in now.busy:
            key = (busy.number, busy.epoch)
            if busy.epoch and key not in self.told_epochs:
                self.told_epochs.add(key)
                loss = "nan" if busy.loss is None else f"{busy.loss:.3f}"
                left = "" if now.seconds_left is None else f"; {now.seconds_left:.0f} s left"
                self._line(
                    f"{busy.worker}: trial {busy.number} ({busy.start}), epoch {busy.epoch} of "
                    f"{busy.epochs}: loss {loss}, best F1 {busy.f1 or 0:.2f} "
                    f"[{now.spent.trials} trials done{left}]"
                )

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)
