"""What commands print: tables and live progress on a terminal, plain lines elsewhere."""

import contextlib
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from sqlalchemy.exc import SQLAlchemyError

from qa_hpo.errors import MissingStudyError, OutageError, StorageError
from qa_hpo.legible import legible, mask
from qa_hpo.results.progress import Snapshot, describe_trial, headline, render, snapshot
from qa_hpo.search.asking import release_trials
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.retrying import first_line
from qa_hpo.search.study import foreseen, told_if_gone
from qa_hpo.search.trials import DOING
from qa_hpo.workers.launcher import Death, Launcher

if TYPE_CHECKING:
    from qa_hpo.finetune.records import EpochRecord
    from qa_hpo.squad.corpus import Corpus

__all__ = [
    "console",
    "print_epoch",
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


def console() -> Console:
    """Return where commands print."""
    made = Console(highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = _PLAIN_WIDTH
    return made


def print_line(text: str) -> None:
    """Print one line."""
    console().print(legible(text), markup=False, soft_wrap=True)


def print_epoch(record: "EpochRecord") -> None:
    """Print what an epoch measured."""
    print_line(
        f"epoch {record.epoch}: training loss {record.train_loss:.3f}, validation loss "
        f"{record.val_loss:.3f}, F1 {record.metrics['f1']:.2f} at 0, "
        f"{record.metrics['best_f1']:.2f} at {record.metrics['best_f1_thresh']:g}, "
        f"{record.seconds:.1f} s"
    )


def print_preflight(corpora: "Mapping[str, Corpus]", starts: Mapping[str, str]) -> None:
    """Print which data and starts a study has, and what was left out of the data."""
    for name, corpus in corpora.items():
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
    screen = console()
    screen.print(f"study {now.study}: {headline(now)}", markup=False, soft_wrap=True)
    if now.busy:
        screen.print(render(now))


def watch(joined: JoinedStudy, launcher: Launcher) -> None:
    """Show a study's progress, and look after its workers, until it is over or none works.

    An outage of the database ends neither: the workers wait for it, and so does the progress.
    """
    screen = console()
    teller = _Teller(joined, launcher, screen)
    with contextlib.ExitStack() as stack:
        live = None
        if screen.is_terminal:
            live = stack.enter_context(Live(console=screen, auto_refresh=False, transient=True))
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
    _Deaths(joined, launcher, console()).tell()


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
        self.told_pauses: set[tuple[int, int]] = set()
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
            self._pauses(now)
        step = foreseen(self.joined)
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

    def _pauses(self, now: Snapshot) -> None:
        """Tell of trials whose last epoch may have been too short before the pause to be seen."""
        for paused in now.paused:
            key = (paused.number, paused.epoch)
            if key not in self.told_pauses:
                self.told_pauses.add(key)
                self._line(
                    f"trial {paused.number} waits at a rung, epoch {paused.epoch} of "
                    f"{paused.epochs}: best F1 {paused.f1 or 0:.2f}"
                )

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)
