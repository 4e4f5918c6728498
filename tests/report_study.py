"""Studies to report on: trials of all kinds, with what they answered, and nothing trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from qa_hpo.config import StudyFile
from qa_hpo.results.significance import tuned_interval
from qa_hpo.search.artifacts import artifact_id, open_store
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import REPEAT_OF, Kept, fail, finish, record_epoch
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.scoring import QuestionScores, crossfit

__all__ = ["HOSTILE", "ReportStudy", "full_study"]

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "pipe": "a|b",
    "dollar": "$x$",
    "image": "</script><img src=x onerror=alert(2)>",
    "link": "[a](javascript:alert(3)) https://evil.example/ www.evil.example",
    "quotes": "\"'`</pre><b>",
    "secret": "postgresql://me:hunter2@db.example/qa_hpo",
}

SECTIONS: dict[str, Any] = {
    "study": {"name": "demo", "seed": 3},
    "data": {"train": "train.json", "validation": "validation.json"},
    "starts": {"base": "some/base", "v1": {"from": "base", "train": "squad.json"}},
    "search": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 4},
    },
    "pruning": {"across": "none"},
    "budget": {"trials": 50},
    "baseline": [{"name": "notebook", "start": "base", "learning_rate": 5e-5, "epochs": 3}],
}


class ReportStudy:
    """A study whose trials end as they are told to.

    Attributes:
        joined: The study.
        answers: What each trial answered, by its number, where that is kept.
    """

    def __init__(self, storage: StudyStorage, folder: Path, **sections: Any) -> None:
        given = {**SECTIONS, "artifacts": {"folder": str(folder)}, **sections}
        given = {name: section for name, section in given.items() if section is not None}
        file = StudyFile.model_validate_json(json.dumps(given))
        prints = {"data.train": "aaaa", "data.validation": "bbbb", "starts.base": "cccc"}
        self.joined: JoinedStudy = create_study(file, storage, fingerprints=prints)
        self.answers: dict[int, Answered] = {}

    def ask(self, params: dict[str, Any] | None = None, repeat_of: int | None = None) -> Asked:
        """Begin a trial: the baseline, or one with these parameters."""
        if params is not None:
            user_attrs = {} if repeat_of is None else {REPEAT_OF: repeat_of}
            self.joined.optuna_study.enqueue_trial(params, user_attrs=user_attrs)
        asked = ask(self.joined, worker=f"worker-{len(self.answers) % 2}")
        assert isinstance(asked, Asked)
        return asked

    def fail(self, cause: str, error: str, params: dict[str, Any] | None = None) -> int:
        """Have a trial fail before its first epoch."""
        asked = self.ask(params)
        fail(self.joined, asked.trial, cause, error)
        return asked.trial.number

    def end(
        self,
        losses: list[float | None],
        answered: Answered | None = None,
        params: dict[str, Any] | None = None,
        **options: Any,
    ) -> int:
        """Have a trial end after these losses, one an epoch.

        Args:
            losses: Validation losses, in nats.
            answered: What it answered in its best epoch; its F1 follows from that.
            params: As of :meth:`ask`.
            options: ``best_epoch``, 1 if left out; ``lost``, by how much each epoch's F1 is below
                the best; ``keep``, whether the answers are; ``repeat_of``; what ``finish`` takes.
        """
        asked = self.ask(params, options.pop("repeat_of", None))
        number, best_epoch = asked.trial.number, options.pop("best_epoch", 1)
        lost = options.pop("lost", [0.0] * len(losses))
        kept, scores = None, {}
        if answered is not None:
            scores = metrics(answered)
            kept = self._keep(number, answered, best_epoch) if options.pop("keep", True) else None
        for epoch, (loss, less) in enumerate(zip(losses, lost, strict=True), start=1):
            record = {"val_loss": loss, "train_loss": 1.0, "seconds": 60.0, "eval_seconds": 6.0}
            if answered is not None:
                record |= {"best_f1": scores["best_f1"] - less, "total": len(answered)}
                record |= {"NoAns_total": int((~answered.scores.has_answer).sum())}
            record_epoch(self.joined, asked.trial, {"epoch": epoch, **record}, kept=kept)
        attrs = {"train_seconds": 60.0 * len(losses), **scores}
        if answered is not None:
            attrs["best_epoch"] = best_epoch
        options = {"state": TrialState.COMPLETE, **options}
        finish(self.joined, asked.trial, attrs=attrs, **options)
        return number

    def _keep(self, number: int, answered: Answered, epoch: int) -> Kept:
        key = artifact_id(self.joined.uid, number, epoch)
        open_store(self.joined.file.artifacts.folder).put_bytes(key, answered.to_bytes())
        self.answers[number] = answered
        return Kept(epoch, None, f"{key}-weights", epoch, key)


def metrics(answered: Answered) -> dict[str, Any]:
    """The attributes of a trial that answered so."""
    interval = tuned_interval(answered)
    found = {
        "f1": 100 * float(answered.scores.at(0.0)[1].mean()),
        "exact": 100 * float(answered.scores.at(0.0)[0].mean()),
        "best_f1": 100 * float(answered.f1.mean()),
        "best_exact": 100 * float(answered.scores.at(answered.threshold)[0].mean()),
        "threshold": answered.threshold,
        "crossfit_f1": crossfit(answered.scores, answered.groups.astype(np.int64)),
    }
    if interval is not None:
        found["best_f1_interval"] = [interval.low, interval.high]
    return found


def answers(share: float, *, articles: int = 12, seed: int = 0) -> Answered:
    """Answers to 20 questions an article, the same ones each time, of which a share is right."""
    rng = np.random.default_rng(99)
    size = 20 * articles
    has_answer = rng.random(size) < 0.6
    luck: NDArray[np.float64] = 0.8 * rng.random(size)
    own = np.random.default_rng(seed)
    right = luck + 0.2 * own.random(size) < share
    span = np.where(has_answer, np.where(right, 1.0, 0.25), 0.0)
    margin = np.where(has_answer, -1.0, 1.0) + own.standard_normal(size)
    null = (~has_answer).astype(np.float64)
    scores = QuestionScores(np.floor(span), span, null, null, has_answer, margin)
    nowhere = np.zeros(size, dtype=np.int32)
    return Answered(nowhere, nowhere, scores, np.repeat(np.arange(articles, dtype=np.int32), 20))


def full_study(storage: StudyStorage, folder: Path, *, names: dict[str, str]) -> ReportStudy:
    """A study with all that a report can tell of.

    Trials 0 to 8: the baseline; two of the same configuration, the winner's; two that were pruned,
    one of them without a measured epoch; three more; and one that failed. All are controls.
    """
    other = names["script"]
    study = ReportStudy(
        storage,
        folder,
        data={"train": names["image"], "validation": names["pipe"]},
        starts={"base": names["link"], other: {"from": "base", "train": names["quotes"]}},
        search={
            "start": {"choices": ["base", other]},
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "epochs": {"low": 1, "high": 4},
            "weight_decay": {"low": 0.0, "high": 0.5},
            "dropout": {"value": 0.25},
        },
        pruning={"across": "none", "control_fraction": 1.0},
        evaluation={"seeds": 2, "finalists": 1},
        baseline=[
            {
                "name": names["dollar"],
                "start": "base",
                "learning_rate": 5e-5,
                "epochs": 3,
                "weight_decay": 0.125,
            }
        ],
    )
    best = {"start": other, "learning_rate": 1.23456789e-4, "epochs": 4, "weight_decay": 0.05}
    some = {"start": "base", "learning_rate": 3.3e-5, "epochs": 4, "weight_decay": 0.1}
    # It rises after its first epoch, and would have been pruned.
    study.end([1.0, 1.1, 0.9], answers(0.5, seed=1), best_epoch=3, lost=[4.0, 3.0, 0.0])
    study.end([0.8, 0.7, 0.65, 0.6], answers(0.83, seed=2), best, best_epoch=4, lost=[9, 6, 3, 0])
    study.end(
        [0.8, 0.71, 0.9], answers(0.78, seed=3), best, repeat_of=1, best_epoch=2, lost=[9, 0, 3],
        state=TrialState.PRUNED, stop_reason="overfitting",
    )  # fmt: skip
    study.end(
        [1.2, 1.25], answers(0.6, seed=4), some, state=TrialState.PRUNED, stop_reason="overfitting"
    )
    study.end(
        [None], None, {**some, "start": other}, state=TrialState.PRUNED, stop_reason="diverged"
    )
    for number, share in ((5, 0.75), (6, 0.7), (7, 0.4)):
        study.end([1.0, 0.9], answers(share, seed=number), {**some, "epochs": 2}, lost=[0.0, 1.0])
    study.fail("data", f"{other} {names['secret']} {names['pipe']}", {**some, "epochs": 1})
    return study
