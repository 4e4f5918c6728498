"""What commands print: tables and live progress on a terminal, plain lines elsewhere."""

import contextlib
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from qa_hpo.config import StudyFile
from qa_hpo.errors import MissingStudyError, OutageError, StorageError
from qa_hpo.results.certainty import Compared
from qa_hpo.results.leaderboard import Leaderboard, Row
from qa_hpo.results.progress import Snapshot, describe_trial, headline, render, snapshot
from qa_hpo.search.asking import release_trials
from qa_hpo.search.budget import BudgetStep, next_step
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.retrying import first_line
from qa_hpo.search.storage import mask
from qa_hpo.search.study import FORGIVEN, told_if_gone
from qa_hpo.search.trials import DOING
from qa_hpo.workers.launcher import Death, Launcher

if TYPE_CHECKING:
    from qa_hpo.finetune.records import EpochRecord
    from qa_hpo.squad.corpus import Corpus

__all__ = [
    "print_comparison",
    "print_epoch",
    "print_leaderboard",
    "print_line",
    "print_metrics",
    "print_preflight",
    "print_status",
    "tell_deaths",
    "watch",
]

_POLL_SECONDS = 1.0
# Without a terminal there is no width to keep to, and a table that is cut is of no use in a log.
_PLAIN_WIDTH = 200

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


def print_preflight(corpora: "Mapping[str, Corpus | None]", starts: Mapping[str, str]) -> None:
    """Print which data and starts a study has, and what was left out of the data."""
    for name, corpus in corpora.items():
        if corpus is None:
            continue
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


def print_leaderboard(
    board: Leaderboard, file: StudyFile, against_baseline: Compared | None = None
) -> None:
    """Print a study's trials, best first, and the best against the baseline.

    Args:
        board: The leaderboard.
        file: The study, which tells what is searched: only that has columns.
        against_baseline: The winner and the baseline, if they can be compared.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=None)
    searched = [name for name in _SHOWN if name in file.search]
    numbers = ["best F1", "95% interval", "cross-fit", "F1 at 0", "threshold"]
    several = any(row.seeds_f1 is not None for row in board.trials)
    if several:
        numbers.insert(0, "mean of seeds")
    for heading in ("trial", "ended", *(_SHOWN[name] for name in searched), "epoch", *numbers):
        left = heading in {"ended", "start", "scheduler"}
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    old_task = any(row.old_task_f1 is not None for row in board.trials)
    if old_task:
        table.add_column("old task", justify="right", no_wrap=True)
        table.add_column("forgotten", justify="right", no_wrap=True)
    table.add_column("validation loss per epoch", no_wrap=True)
    for row in board.trials:
        table.add_row(
            *_cells(row, searched, several=several, old_task=old_task),
            style="bold" if row == board.winner else None,
        )
    _console().print(table)
    if board.winner is not None:
        print_line(_verdict(board.winner, board.baseline, against_baseline))


def print_comparison(found: Compared) -> None:
    """Print whether one trial is better than another."""
    first, second, difference = found.first, found.second, found.difference
    print_line(f"trial {first.number}: best F1 {first.best_f1:.2f} ({_configuration(first)})")
    print_line(f"trial {second.number}: best F1 {second.best_f1:.2f} ({_configuration(second)})")
    print_line(
        f"difference {difference.mean:+.2f}, 95% interval {difference.low:+.2f} to "
        f"{difference.high:+.2f}; trial {first.number} is better with probability "
        f"{difference.p_better:.3f}"
    )


def _configuration(row: Row) -> str:
    return ", ".join(
        f"{_SHOWN[name]} {_value(row.params[name])}"
        for name in ("start", "learning_rate", "weight_decay", "doc_stride", "batch_size")
    )


def _cells(row: Row, searched: list[str], *, several: bool, old_task: bool) -> list[str]:
    ended = row.state.lower() + (f", {row.stop_reason}" if row.stop_reason else "")
    params = [_value(row.params[name]) for name in searched]
    epochs = row.params["epochs"]
    best = f"{row.best_epoch} of {epochs}" if row.best_epoch else f"- of {epochs}"
    best_f1, *others = (
        "" if value is None else f"{value:.2f}"
        for value in (row.best_f1, row.crossfit_f1, row.f1, row.threshold)
    )
    low_high = row.best_f1_interval
    interval = "" if low_high is None else f"{low_high[0]:.1f} - {low_high[1]:.1f}"
    scores = [best_f1, interval, *others]
    if several:
        scores.insert(0, "" if row.seeds_f1 is None else f"{row.seeds_f1:.2f} ({row.seeds})")
    if old_task:
        forgotten = (row.old_task_f1, row.old_task_drop)
        scores += ["" if value is None else f"{value:.2f}" for value in forgotten]
    losses = " ".join("nan" if loss is None else f"{loss:.3f}" for loss in row.val_loss)
    return [str(row.number), ended, *params, best, *scores, losses]


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


def watch(joined: JoinedStudy, launcher: Launcher) -> None:
    """Show a study's progress, and look after its workers, until it is over or none works.

    An outage of the database ends neither: the workers wait for it, and so does the progress.
    """
    console = _console()
    teller = _Teller(joined, launcher, console)
    with contextlib.ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))
        while True:
            working = launcher.working()
            now = teller.tell(live=live is not None)
            if live is not None and now is not None:
                live.update(render(now), refresh=True)
            if teller.over or not working:
                return
            time.sleep(_POLL_SECONDS)


def tell_deaths(joined: JoinedStudy, launcher: Launcher) -> None:
    """Print which workers have died since the last look."""
    _Deaths(joined, launcher, _console()).tell()


_DATABASE_ERRORS = (StorageError, OutageError, StorageInternalError, SQLAlchemyError)


class _Deaths:
    """Tells of workers that died, and frees their trials for others."""

    def __init__(self, joined: JoinedStudy, launcher: Launcher, console: Console) -> None:
        self.joined = joined
        self.launcher = launcher
        self.console = console
        self.unreleased: list[str] = []

    def tell(self) -> None:
        """Print each death since the last call."""
        for worker in self.unreleased.copy():
            if self._release(worker) is not None:
                self.unreleased.remove(worker)
        for death in self.launcher.poll():
            trials = self._release(death.worker)
            if trials is None:
                self.unreleased.append(death.worker)
            text = _describe(death, trials or [])
            self.console.print(mask(text), markup=False, soft_wrap=True)

    def _release(self, worker: str) -> list[int] | None:
        """Return the trials that the worker had; None if the database does not answer."""
        try:
            with self.joined.storage.rdb.fenced():
                return release_trials(self.joined, worker)
        except _DATABASE_ERRORS:
            return None


def _describe(death: Death, trials: list[int]) -> str:
    if death.code is None:
        how = "ended unseen"
    elif death.code < 0:
        how = f"was ended by {_signal_name(-death.code)}"
    else:
        how = f"ended with code {death.code}"
    at = f" at trial {', '.join(map(str, trials))}" if trials else ""
    process = "" if death.pid is None else f" (process {death.pid} on {death.host})"
    again = "started again" if death.restarted else "not started again"
    end = f"the end of {death.log}:\n{death.tail}" if death.tail else f"its log is {death.log}"
    return f"worker {death.worker}{process} {how}{at}, {again}; {end}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


class _Teller:
    """Tells once of everything that happens."""

    def __init__(self, joined: JoinedStudy, launcher: Launcher, console: Console) -> None:
        self.joined = joined
        self.console = console
        self.deaths = _Deaths(joined, launcher, console)
        self.over = False
        """Whether the study is over: its budget is spent, or too many trials failed."""
        self.told = {
            trial.number
            for trial in joined.optuna_study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        }
        self.told_doing: set[tuple[int, str]] = set()
        self.told_epochs: set[tuple[int, int]] = set()
        self.told_outage = False

    def tell(self, *, live: bool) -> Snapshot | None:
        """Print what is new, with each epoch unless a live table shows them.

        Returns:
            How the study stands; None where the database does not answer.
        """
        self.deaths.tell()
        try:
            # At once or not at all: workers die and are started again during an outage, too.
            with self.joined.storage.rdb.fenced(), told_if_gone(self.joined):
                now = self._progress(live=live)
        except MissingStudyError:
            raise
        except _DATABASE_ERRORS as error:
            if not self.told_outage:
                self.told_outage = True
                self._line(
                    f"the database does not answer; the workers wait for it ({first_line(error)})"
                )
            return None
        if self.told_outage:
            self.told_outage = False
            self._line("the database answers again")
        return now

    def _progress(self, *, live: bool) -> Snapshot:
        for trial in self.joined.optuna_study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self.told:
                self._line(describe_trial(self.joined, trial))
                self.told.add(trial.number)
            doing = trial.system_attrs.get(DOING, "")
            if trial.state is TrialState.RUNNING and doing.startswith("building"):
                key = (trial.number, doing)
                if key not in self.told_doing:
                    self.told_doing.add(key)
                    self._line(f"{trial.user_attrs.get('worker')}: {doing}")
        now = snapshot(self.joined)
        if not live:
            self._epochs(now)
        study = self.joined.optuna_study
        forgiven = study.user_attrs.get(FORGIVEN, 0)
        file = self.joined.file
        step = next_step(study, file.budget, evaluation=file.evaluation, forgiven=forgiven)
        # When hours are spent, or trials fail, others may still be at their last epoch.
        self.over = step.step is BudgetStep.SPENT and not step.spent.running
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
