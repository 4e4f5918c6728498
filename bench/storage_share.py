"""What asking, recording and finishing cost per epoch, with many workers on one database."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from optuna.trial import TrialState

from qa_hpo.config import StudyFile
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import finish, record_epoch, with_reports

__all__ = ["Share", "measure_share"]

WORKERS = 8
TRIALS = 500
PAUSE_S = 1.0
"""What stands for an epoch."""

FILE = {
    "study": {"name": "share", "seed": 3},
    "data": {"train": "train.json", "validation": "validation.json"},
    "starts": {"base": "some/base", "v1": "some/v1"},
    "search": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 4},
        "weight_decay": {"low": 0.0, "high": 0.1},
    },
    "budget": {"trials": TRIALS},
}


@dataclass(frozen=True)
class Share:
    """What the storage cost.

    Attributes:
        workers: Workers at once.
        pause_s: Seconds of an epoch that are not the storage's.
        trials: Trials that all of them ran.
        epochs: Their epochs.
        median_ms: Of the trials, milliseconds of the storage per epoch.
        mean_ms: Of all epochs.
    """

    workers: int
    pause_s: float
    trials: int
    epochs: int
    median_ms: float
    mean_ms: float


def measure_share(url: str) -> Share:
    """Let eight workers run 500 trials of sleep, and return what was not sleep."""
    storage = open_storage(url, create=True)
    create_study(StudyFile.model_validate_json(json.dumps(FILE)), storage, fingerprints={})
    storage.close()
    command = [sys.executable, "-m", "bench.storage_share", url]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    if any(worker.returncode for worker in workers):
        raise RuntimeError("a worker of the benchmark failed; its error stands above")
    trials = [(int(epochs), float(cost)) for epochs, cost in (line.split() for line in lines)]
    if len(trials) != TRIALS:
        raise RuntimeError(f"{len(trials)} trials ran, and the budget was {TRIALS}")
    total = sum(epochs for epochs, _ in trials)
    return Share(
        workers=WORKERS,
        pause_s=PAUSE_S,
        trials=len(trials),
        epochs=total,
        median_ms=1000 * statistics.median(cost / epochs for epochs, cost in trials),
        mean_ms=1000 * sum(cost for _, cost in trials) / total,
    )


def _work(joined: JoinedStudy) -> None:
    """Run trials until the budget is spent; print the epochs and the storage's seconds of each."""
    while True:
        begun = time.monotonic()
        answer = ask(joined, worker="bench")
        if not isinstance(answer, Asked):
            if answer.step is BudgetStep.SPENT:
                return
            time.sleep(0.1)
            continue
        slept, losses = 0.0, dict[int, float | None]()
        for epoch in range(1, answer.epochs_reserved + 1):
            before = time.monotonic()
            time.sleep(PAUSE_S)
            slept += time.monotonic() - before
            losses[epoch] = 1.0 / epoch
            record_epoch(joined, answer.trial, {"epoch": epoch, "val_loss": losses[epoch]})
            trial = with_reports(answer.trial, losses)
            joined.optuna_study.pruner.prune(joined.optuna_study, trial)
        attributes = {"best_f1": 50.0, "best_epoch": 1, "f1": 49.0, "train_seconds": slept}
        finish(joined, answer.trial, state=TrialState.COMPLETE, attrs=attributes)
        print(answer.epochs_reserved, time.monotonic() - begun - slept)


if __name__ == "__main__":
    from qa_hpo.search.study import load_study

    _work(load_study("share", open_storage(sys.argv[1], create=False)))
