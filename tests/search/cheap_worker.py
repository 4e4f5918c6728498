"""A worker process of the tests: ``cheap_worker.py URL ACTION``.

join: creates or continues the study, prints "new" or "joined", runs trials until the budget is
spent, and prints their numbers.  lock: takes the study's lock, prints "locked" and holds it for
ever.  die: takes a trial, records an epoch and dies.  die-asking: dies when it has created a
trial and not yet given it its parameters.
"""

import os
import sys
import time

from optuna.trial import TrialState
from search_helpers import asked, created, record

from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.retrying import RetryingRDBStorage
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import load_study
from qa_hpo.search.trials import finish, record_epoch


def work(joined: JoinedStudy) -> None:
    while True:
        answer = ask(joined, worker=str(os.getpid()))
        if isinstance(answer, Asked):
            for epoch in range(1, answer.epochs_reserved + 1):
                record_epoch(joined, answer.trial, record(epoch))
            stopped = answer.epochs_reserved < answer.parameters.epochs
            finish(
                joined,
                answer.trial,
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                stop_reason="budget" if stopped else None,
                attrs={"best_f1": 50.0 + answer.trial.number},
            )
            print(answer.trial.number)
        elif answer.step is BudgetStep.WAIT:
            time.sleep(0.05)
        else:
            return


def hold() -> None:
    print("locked", flush=True)
    time.sleep(600)


def die(*_: object) -> None:
    os._exit(9)


def main(url: str, action: str, budget: str) -> None:
    if action == "join":
        kind, _, amount = budget.partition("=")
        joined = created(open_storage(url, create=True), budget={kind: int(amount)})
        print("new" if joined.created else "joined")
        work(joined)
        return
    storage = open_storage(url, create=False)
    joined = load_study("demo", storage)
    if action == "lock":
        storage.locked("demo", hold)
    if action == "die-asking":
        RetryingRDBStorage.record_heartbeat = die  # type: ignore[method-assign]
        ask(joined)
    record_epoch(joined, asked(joined).trial, record(1, 0.5))
    die()


if __name__ == "__main__":
    main(*sys.argv[1:])
