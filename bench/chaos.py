"""A study whose workers are killed and whose database is stopped, and what came of it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
from optuna.trial import FrozenTrial, TrialState

from bench.postgres import OwnPostgres
from qa_hpo.config import StudyFile, to_toml
from qa_hpo.paths import StudyPaths
from qa_hpo.search.failures import lineages
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import load_study
from qa_hpo.search.trials import epoch_records

__all__ = ["Chaos", "Outcome"]

_RUN = [sys.executable, "-m", "qa_hpo", "run", "study.toml"]

_STAMP = r"^(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) INFO "
_BEGUN = re.compile(_STAMP + r"trial (?P<number>\d+): learning_rate=")
_EPOCH = re.compile(_STAMP + r"trial (?P<number>\d+)(?: \(of trial \d+\))?, epoch (?P<epoch>\d+) ")


@dataclass(frozen=True)
class Outcome:
    """What came of a study.

    Attributes:
        budget: Trials that it was to finish.
        finished: Trials that are complete or pruned.
        kills: Workers that were sent SIGKILL or SIGTERM.
        outages: How often the database was stopped.
        doubled_epochs: Epochs that are recorded twice, or missing in between.
        redone_epochs: Epochs that a worker recorded although another one had.
        lost: Trials that began and are neither finished nor given up.
        given_up: Trials that failed for good.
        shared: Trials that two workers ran at the same time.
        interrupted: Trials that took more than one worker.
        seconds: How long it all took.
        code: The exit code of ``qa-hpo run``.
        output: What it printed.
        trials: All trials, for whoever wants to see more.
    """

    budget: int
    finished: int
    kills: int
    outages: int
    doubled_epochs: int
    redone_epochs: int
    lost: int
    given_up: int
    shared: int
    interrupted: int
    seconds: float
    code: int
    output: str
    trials: list[FrozenTrial] = field(repr=False)


@dataclass
class Chaos:
    """Runs a study with ``qa-hpo run`` and disturbs it.

    Attributes:
        file: The study. Its paths and its storage's are relative to ``folder``.
        folder: Where it runs.
        url: Its storage.
        workers: How many workers.
        kills: How many of them are killed, by SIGKILL and SIGTERM in turn.
        seconds_between: The least and the most seconds between two kills.
        server: The database's server, if it is stopped too.
        outages: How often that is.
        outage_seconds: For how long.
        seed: Of the choice of moments and victims.
    """

    file: StudyFile
    folder: Path
    url: str
    workers: int = 4
    kills: int = 30
    seconds_between: tuple[float, float] = (2.0, 6.0)
    server: OwnPostgres | None = None
    outages: int = 0
    outage_seconds: float = 5.0
    seed: int = 0
    limit_seconds: float = 1500.0

    def run(self) -> Outcome:
        """Run the study to its end, or kill it when it takes longer than the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "study.toml").write_text(to_toml(self.file), encoding="utf-8")
        log = self.folder / "run.log"
        begun = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_RUN, "--workers", str(self.workers)],
                cwd=self.folder,
                env=os.environ | {"QA_HPO_STORAGE": self.url, "QA_HPO_CACHE": "cache"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            kills, outages = self._disturb(process, begun + self.limit_seconds)
            code = process.wait(max(1.0, begun + self.limit_seconds - time.monotonic()))
        finally:
            for worker in _workers(process.pid):
                worker.kill()
            process.kill()
            process.wait()
        seconds = time.monotonic() - begun
        return self._outcome(kills, outages, seconds, code, log.read_text(errors="replace"))

    def _disturb(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[int, int]:
        rng = random.Random(self.seed)
        kills = outages = 0
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(rng.uniform(*self.seconds_between))
            if outages < self.outages and kills >= (outages + 1) * self.kills / (self.outages + 1):
                assert self.server is not None
                self.server.stop()
                time.sleep(self.outage_seconds)
                self.server.start()
                outages += 1
                continue
            if kills == self.kills:
                continue
            # One that is at a trial: others would only start again and again.
            busy = [worker for worker in _workers(process.pid) if self._is_busy(worker)]
            if busy:
                victim = rng.choice(sorted(busy, key=lambda worker: worker.pid))
                victim.send_signal(signal.SIGTERM if kills % 2 else signal.SIGKILL)
                kills += 1
        return kills, outages

    @property
    def _logs(self) -> Path:
        return StudyPaths(self.folder / self.file.artifacts.path, self.file.study.name).logs

    def _is_busy(self, worker: psutil.Process) -> bool:
        """Return whether a worker's log tells of a trial since its process began."""
        try:
            command, begun = worker.cmdline(), datetime.fromtimestamp(worker.create_time())
            label = command[command.index("--label") + 1]
        except (psutil.NoSuchProcess, ValueError):
            return False
        name, _, index = label.rpartition("-")
        log = self._logs / f"{name}-{index.partition('.')[0]}.log"
        return log.exists() and any(_moment(match) >= begun for match in _lines(log))

    def _outcome(self, kills: int, outages: int, seconds: float, code: int, output: str) -> Outcome:
        storage = open_storage(self.url, create=False)
        try:
            joined = load_study(self.file.study.name, storage)
            trials = joined.optuna_study.get_trials()
        finally:
            storage.close()
        runs, epochs = _logged(self._logs, trials)
        latest = [own[-1] for own in lineages(trials).values()]
        over = {TrialState.COMPLETE, TrialState.PRUNED}
        return Outcome(
            budget=self.file.budget.trials or 0,
            finished=sum(trial.state in over for trial in trials),
            kills=kills,
            outages=outages,
            doubled_epochs=sum(_doubled(trial) for trial in trials),
            redone_epochs=sum(count - 1 for count in epochs.values()),
            lost=sum(not trial.state.is_finished() for trial in latest),
            given_up=sum(trial.state is TrialState.FAIL for trial in latest),
            shared=_shared(runs),
            interrupted=sum(count > 1 for count in Counter(run.lineage for run in runs).values()),
            seconds=seconds,
            code=code,
            output=output,
            trials=trials,
        )


def _workers(pid: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children()
        return [child for child in children if "worker" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def _doubled(trial: FrozenTrial) -> int:
    numbers = [record["epoch"] for record in epoch_records(trial)]
    return sum(a != b for a, b in zip(numbers, range(1, len(numbers) + 1), strict=True))


@dataclass
class _Run:
    """What a log tells of one attempt at a trial: its last moment is that of its last line."""

    lineage: int
    begun: datetime
    last: datetime


def _logged(logs: Path, trials: list[FrozenTrial]) -> tuple[list[_Run], Counter[tuple[int, int]]]:
    """Return the attempts that the workers' logs tell of, and how often each epoch was recorded."""
    lineage = {trial.number: number for number, own in lineages(trials).items() for trial in own}
    runs: list[_Run] = []
    epochs: Counter[tuple[int, int]] = Counter()
    for log in sorted(logs.glob("*.log")):
        for match in _lines(log):
            number = lineage[int(match["number"])]
            at = _moment(match)
            if match.re is _BEGUN:
                runs.append(_Run(number, at, at))
            else:
                epochs[number, int(match["epoch"])] += 1
                runs[-1].last = at
    return runs, epochs


def _lines(log: Path) -> Iterator[re.Match[str]]:
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _BEGUN.match(line) or _EPOCH.match(line)
        if match:
            yield match


def _moment(match: re.Match[str]) -> datetime:
    return datetime.strptime(match["at"], "%Y-%m-%d %H:%M:%S,%f")


def _shared(runs: list[_Run]) -> int:
    """Return how many trials two workers worked on at once."""
    shared = set()
    for run in runs:
        for other in runs:
            together = run.lineage == other.lineage and run is not other
            if together and run.begun <= other.begun < run.last:
                shared.add(run.lineage)
    return len(shared)
