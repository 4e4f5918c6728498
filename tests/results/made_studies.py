"""Studies whose trials are written down as they would have ended, in no time."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState, create_trial

from qa_hpo.config import StudyFile
from qa_hpo.search.artifacts import CheckpointStore, artifact_id, open_store
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.study import create_study, load_study
from qa_hpo.search.trials import KEPT, Kept
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.scoring import QuestionScores

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench/ is not installed
from bench.postgres import OwnPostgres

__all__ = ["MadeStudy", "OwnPostgres", "made_answers"]

SECTIONS: dict[str, Any] = {
    "study": {"name": "made"},
    "data": {"train": "train.json", "validation": "validation.json"},
    "starts": {"base": "some/base", "v1": "some/v1", "v2": "some/v2"},
    "search": {
        "start": {"choices": ["base", "v1", "v2"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 8},
    },
    "budget": {"trials": 1000},
}


class MadeStudy:
    """A study in a database, with the answers of its trials in a folder.

    Args:
        folder: Where its artifacts are kept, and its database unless a URL is given.
        url: Its storage.
        sections: Sections of the study file, in place of the ones above.
    """

    def __init__(self, folder: Path, url: str | None = None, **sections: Any) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder}/made.db"
        artifacts = {"folder": str(folder / "artifacts")}
        given = {**SECTIONS, "artifacts": artifacts, **sections}
        file = StudyFile.model_validate_json(json.dumps(given))
        self.storages: list[StudyStorage] = [open_storage(self.url, create=True)]
        self.joined = create_study(file, self.storages[0], fingerprints={"data.train": "a"})
        self.store: CheckpointStore = open_store(file.artifacts.folder)

    def joined_again(self) -> JoinedStudy:
        """The study as another worker has it, with connections of its own."""
        self.storages.append(open_storage(self.url, create=False))
        return load_study(self.joined.file.study.name, self.storages[-1])

    def close(self) -> None:
        for storage in self.storages:
            storage.close()

    def add(
        self,
        f1: Sequence[float] = (50.0,),
        losses: Sequence[float | None] | None = None,
        *,
        looks: Sequence[Sequence[float | None]] = (),
        answers: Answered | None = None,
        start: str = "base",
        epochs: int | None = None,
        state: TrialState = TrialState.COMPLETE,
        system_attrs: dict[str, Any] | None = None,
        **attrs: Any,
    ) -> int:
        """Add a trial and return its number.

        Args:
            f1: Its best F1 after each epoch.
            losses: Its validation losses; falling ones if left out.
            looks: Its losses within each epoch.
            answers: What its best checkpoint answered, which is then kept, and tells its F1.
            start: Its start.
            epochs: How many it was to train; as many as it did if left out.
            state: How it ended.
            system_attrs: System attributes.
            attrs: User attributes.
        """
        joined = self.joined
        if answers is not None:
            f1 = [100 * float(answers.f1.mean())]
        losses = losses or [1.0 - 0.01 * epoch for epoch in range(len(f1))]
        records = [
            {"epoch": epoch, "train_loss": 1.0, "val_loss": loss, "best_f1": best, "seconds": 1.0}
            for epoch, (loss, best) in enumerate(zip(losses, f1, strict=True), start=1)
        ]
        for record, own in zip(records, looks, strict=False):
            before, parts = record["epoch"] - 1, len(own) + 1
            record["looks"] = [[before + n / parts, loss] for n, loss in enumerate(own, start=1)]
        user_attrs = {"epochs": records, **attrs}
        best = max(f1, default=None)
        if state is not TrialState.FAIL and best is not None:
            user_attrs |= {
                "best_f1": best,
                "best_epoch": 1 + list(f1).index(best),
                "threshold": 0.0,
            }
        number = len(joined.optuna_study.get_trials(deepcopy=False))
        given = {"start": start, "learning_rate": 2e-5, "epochs": epochs or max(1, len(f1))}
        # Where all have the same number of epochs, it is no parameter.
        params = {
            name: value for name, value in given.items() if name in joined.space.distributions
        }
        made = create_trial(
            state=state,
            value=None if state is TrialState.FAIL or not state.is_finished() else best,
            params=params,
            distributions={name: joined.space.distributions[name] for name in params},
            user_attrs=user_attrs,
            system_attrs={**self._kept(number, answers), **(system_attrs or {})},
            intermediate_values={
                epoch: -loss for epoch, loss in enumerate(losses, start=1) if loss is not None
            },
        )
        created = joined.storage.rdb.create_trial(joined.key, made)
        assert created.number == number
        return number

    def _kept(self, number: int, answers: Answered | None) -> dict[str, Any]:
        checkpoint = artifact_id(self.joined.uid, number, 1)
        key = None
        if answers is not None:
            key = artifact_id(self.joined.uid, number, 1)
            self.store.put_bytes(key, answers.to_bytes())
        return {KEPT: asdict(Kept(1, None, checkpoint, 1, key))}


def made_answers(scores: Sequence[float] | np.ndarray, groups: Sequence[int]) -> Answered:
    """Answers whose F1 per question is ``scores`` at the tuned threshold, which is -1.

    All questions have gold answers, and all are answered.
    """
    f1 = np.asarray(scores, dtype=np.float64)
    size = len(f1)
    none, nowhere = np.zeros(size), np.zeros(size, dtype=np.int32)
    told = QuestionScores(np.floor(f1), f1, none, none, none == 0, np.full(size, -1.0))
    return Answered(nowhere, nowhere, told, np.asarray(groups, dtype=np.int32))
