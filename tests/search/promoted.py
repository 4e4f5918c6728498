"""Studies that promote, with simulated workers whose trials measure what a table says."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from search_helpers import created

from qa_hpo.finetune.records import EpochRecord
from qa_hpo.search.asking import Asked, ask, hand_back, release_trials
from qa_hpo.search.budget import BudgetStep, NextStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.pruning import is_control
from qa_hpo.search.stopping import PAUSED, StoppingRules
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import epoch_records, finish, lineage_number, record_epoch

SEARCH: dict[str, Any] = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}


def promoting(
    storage: StudyStorage,
    *,
    horizon: int = 4,
    reduction_factor: int = 2,
    first_rung: int = 1,
    control_fraction: float = 0.0,
    **sections: Any,
) -> JoinedStudy:
    return created(
        storage,
        **{
            "starts": {"base": "some/base"},
            "search": {**SEARCH, "epochs": {"value": horizon}},
            "pruning": {
                "across": "promote",
                "first_rung": first_rung,
                "reduction_factor": reduction_factor,
                "control_fraction": control_fraction,
            },
            **sections,
        },
    )


def measured(epoch: int, best_f1: float, val_loss: float | None = None) -> EpochRecord:
    """A record; validation losses fall unless they are given."""
    loss = 2.0 / epoch if val_loss is None else val_loss
    return EpochRecord(epoch, 1.0, 1.0, 0.1, loss, {"best_f1": best_f1})


def tell(joined: JoinedStudy, asked: Asked, record: EpochRecord) -> None:
    record_epoch(joined, asked.trial, record.as_dict())


def end(joined: JoinedStudy, asked: Asked, records: list[EpochRecord], reason: str | None) -> None:
    finish(
        joined,
        asked.trial,
        state=TrialState.COMPLETE if reason is None else TrialState.PRUNED,
        stop_reason=reason,
        attrs={"best_f1": max(record.metrics["best_f1"] for record in records)},
    )


@dataclass
class _Worker:
    name: str
    asked: Asked | None = None
    records: list[EpochRecord] = field(default_factory=list)
    reason: str | None = None
    next: str = "ask"
    over: bool = False


class Simulation:
    """Workers that take turns by chance; some die, and some are told to end.

    Args:
        joined: The study.
        seed: Of all that is by chance.
        workers: How many.
        trouble: How probable it is that a worker dies or is told to end, at each of its steps.
        overfitting: The share of trials whose loss rises in the second epoch.
        watch: Called after each step of a worker, and with what was answered to one that asked.
    """

    def __init__(
        self,
        joined: JoinedStudy,
        seed: int,
        *,
        workers: int = 3,
        trouble: float = 0.0,
        overfitting: float = 0.0,
        watch: Callable[[Asked | NextStep | None], None] = lambda _: None,
    ) -> None:
        self.joined = joined
        self.seed = seed
        self.random = random.Random(seed)
        self.trouble = trouble
        self.overfitting = overfitting
        self.watch = watch
        self.rules = StoppingRules(joined)
        self.workers = [_Worker(f"w{number}") for number in range(workers)]
        self.born = workers
        self.trained: list[tuple[int, int]] = []
        """Lineage and epoch of each epoch that was trained."""
        self.steps = 0

    def overfits(self, lineage: int) -> bool:
        return random.Random(f"loss {self.seed} {lineage}").random() < self.overfitting

    def measure(self, lineage: int, epoch: int) -> EpochRecord:
        chance = random.Random(f"{self.seed} {lineage}")
        score = chance.choice([40.0, 50.0, 55.0, 60.0, 70.0]) + epoch
        rises = self.overfits(lineage) and epoch == 2
        return measured(epoch, score, 2.5 if rises else None)

    def run(self) -> None:
        while not all(worker.over for worker in self.workers):
            self.steps += 1
            assert self.steps < 5000, "it goes on for ever"
            worker = self.random.choice([worker for worker in self.workers if not worker.over])
            if worker.asked is not None and self.random.random() < self.trouble:
                self.end_worker(worker)
                self.watch(None)
            else:
                self.watch(getattr(self, f"_{worker.next}")(worker))

    def end_worker(self, worker: _Worker) -> None:
        """Kill it, or tell it to end; another one is started in its place."""
        assert worker.asked is not None
        if self.random.random() < 0.5:
            release_trials(self.joined, worker.name)
        else:
            hand_back(self.joined, worker.asked.trial)
        self.workers[self.workers.index(worker)] = _Worker(f"w{self.born}")
        self.born += 1

    def _ask(self, worker: _Worker) -> Asked | NextStep:
        answer = ask(self.joined, worker=worker.name)
        if isinstance(answer, NextStep):
            worker.over = answer.step is BudgetStep.SPENT
            return answer
        worker.asked = answer
        worker.records = [EpochRecord.from_dict(r) for r in epoch_records(answer.trial)]
        worker.reason = None
        if len(worker.records) < answer.epochs_reserved:
            # As a run does that goes on: what it knows is looked at again.
            if worker.records:
                worker.asked, worker.reason = self.rules.after(answer, worker.records)
            worker.next = "train" if worker.reason is None else "end"
        else:
            worker.reason = self.rules.reason(answer, worker.records)
            worker.next = "end"
        return answer

    def _train(self, worker: _Worker) -> None:
        assert worker.asked is not None
        lineage, epoch = worker.asked.lineage, len(worker.records) + 1
        record = self.measure(lineage, epoch)
        worker.records.append(record)
        tell(self.joined, worker.asked, record)
        self.trained.append((lineage, epoch))
        worker.next = "decide"

    def _decide(self, worker: _Worker) -> None:
        assert worker.asked is not None
        worker.asked, worker.reason = self.rules.after(worker.asked, worker.records)
        if worker.reason == PAUSED:
            worker.asked, worker.next = None, "ask"
        elif worker.reason is not None or len(worker.records) >= worker.asked.parameters.epochs:
            worker.next = "end"
        else:
            worker.next = "train"

    def _end(self, worker: _Worker) -> None:
        assert worker.asked is not None
        end(self.joined, worker.asked, worker.records, worker.reason)
        worker.asked, worker.next = None, "ask"


def standing(trials: list[FrozenTrial], rung: int, lineage: int) -> tuple[int, int]:
    """How many trials are ahead of one at a rung, and how many have come as far, by counting."""
    latest = {lineage_number(trial): trial for trial in trials}
    tables = {
        n: epoch_records(t)[:rung] for n, t in latest.items() if len(epoch_records(t)) >= rung
    }
    best = {n: max(r["best_f1"] for r in records) for n, records in tables.items()}
    losses = {n: min(r["val_loss"] for r in records) for n, records in tables.items()}
    ahead = sum(
        best[n] > best[lineage]
        or (best[n] == best[lineage] and (losses[n], latest[n].number)
            < (losses[lineage], latest[lineage].number))
        for n in tables
    )  # fmt: skip
    return ahead, len(tables)


def never_waits(joined: JoinedStudy, trial: FrozenTrial) -> bool:
    """Whether a trial is a control."""
    file = joined.file
    return is_control(file.study.seed, lineage_number(trial), file.pruning.control_fraction)
