"""Studies with an old task whose trials end as they are told to, each with a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from qa_hpo.config import StudyFile
from qa_hpo.search.artifacts import artifact_id, open_store
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import collect
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import Kept, finish, record_epoch

__all__ = ["TWO", "ToldStudy"]

TWO = {"name": "demo", "seed": 3, "objectives": ["best_f1", "old_task_f1"]}

SECTIONS: dict[str, Any] = {
    "study": {"name": "demo", "seed": 3},
    "data": {"train": "train.json", "validation": "validation.json"},
    "starts": {"base": "some/base", "v1": "some/v1"},
    "search": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 4},
    },
    "evaluation": {"old_task": "old.json"},
    "budget": {"trials": 500},
}

METRICS: dict[str, Any] = {
    "exact": 40.0, "f1": 50.0, "total": 10, "HasAns_exact": 1.0, "HasAns_f1": 2.0,
    "HasAns_total": 6, "NoAns_exact": 3.0, "NoAns_f1": 4.0, "NoAns_total": 4, "best_exact": 35.5,
    "best_exact_thresh": -1.25, "best_f1_thresh": -2.125, "crossfit_f1": 41.0,
    "HasAns_f1_no_null": 77.0,
}  # fmt: skip


class ToldStudy:
    """A study, with a store in a folder.

    Args:
        storage: Where it is kept.
        folder: Where its artifacts are.
        sections: Sections of the study file, in place of the ones above.
    """

    def __init__(self, storage: StudyStorage, folder: Path, **sections: Any) -> None:
        artifacts = {"folder": str(folder / "artifacts"), **sections.pop("artifacts", {})}
        file = StudyFile.from_dict({**SECTIONS, **sections, "artifacts": artifacts})
        prints = {"data.train": "aaaa", "data.validation": "bbbb"}
        self.joined: JoinedStudy = create_study(file, storage, fingerprints=prints)
        self.store = open_store(file.artifacts.folder)
        self.folder = folder

    def end(
        self,
        best_f1: float | None,
        old_task_f1: float | None = None,
        drop: float | None = None,
        *,
        state: TrialState = TrialState.COMPLETE,
        losses: Sequence[float] = (1.0,),
        start: str = "v1",
        stop_reason: str | None = None,
    ) -> int:
        """Have a trial end, its last epoch the best, and return its number.

        Args:
            best_f1: Its best F1; None if no epoch could be measured.
            old_task_f1: That on the old task.
            drop: How far that is below its start's.
            state: How it ends.
            losses: Its validation losses, one an epoch.
            start: Its start.
            stop_reason: Why it ended early; overfitting of a pruned one.
        """
        params = {"start": start, "learning_rate": 1e-4, "epochs": len(losses)}
        self.joined.optuna_study.enqueue_trial(params)
        asked = ask(self.joined, worker="me")
        assert isinstance(asked, Asked)
        number, last = asked.trial.number, len(losses)
        scores: dict[str, Any] = {}
        if best_f1 is not None:
            scores = {**METRICS, "best_f1": best_f1, **_old_task(old_task_f1, drop)}
        for epoch, loss in enumerate(losses, start=1):
            record = {"epoch": epoch, "train_loss": 1.0, "val_loss": loss, **scores}
            timing = {"seconds": 60.0, "eval_seconds": 6.0}
            kept = self._keep(number, epoch) if scores and epoch == last else None
            record_epoch(self.joined, asked.trial, {**record, **timing}, kept=kept)
        named = ("f1", "exact", "best_f1", "best_exact", "crossfit_f1")
        attrs = {name: value for name, value in scores.items() if name in named}
        attrs |= {name: value for name, value in scores.items() if name.startswith("old_task")}
        if scores:
            attrs |= {"best_epoch": last, "threshold": scores["best_f1_thresh"]}
        if state is TrialState.PRUNED:
            stop_reason = stop_reason or "overfitting"
        finish(
            self.joined,
            asked.trial,
            state=state,
            stop_reason=stop_reason,
            attrs={**attrs, "train_seconds": 60.0 * last},
        )
        return number

    def _keep(self, number: int, epoch: int) -> Kept:
        weights = self.folder / "weights"
        weights.mkdir(exist_ok=True)
        (weights / "model.safetensors").write_text(f"of trial {number}")
        key = artifact_id(self.joined.uid, number, epoch)
        self.store.put(key, weights)
        return Kept(epoch, None, key, epoch)

    def collect(self) -> None:
        """Collect what no trial needs any more."""
        collect(self.joined, self.store)

    def kept(self) -> set[int]:
        """The trials whose checkpoints are in the store."""
        return {int(key.split("-")[1]) for key in self.store.keys(self.joined.uid)}


def _old_task(f1: float | None, drop: float | None) -> dict[str, float]:
    if f1 is None:
        return {}
    found = {"old_task_f1": f1, "old_task_exact": f1 - 5, "old_task_f1_no_null": f1 + 1}
    if drop is not None:
        found |= {"old_task_drop": drop, "old_task_drop_no_null": drop - 0.5}
    return found
