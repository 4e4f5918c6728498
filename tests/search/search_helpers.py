"""A study file to search with, and trials that cost nothing."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import StudyFile
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import finish, record_epoch

FINGERPRINTS = {"data.train": "aaaa", "data.validation": "bbbb"}

SECTIONS: dict[str, Any] = {
    "study": {"name": "demo", "seed": 3},
    "data": {"train": "train.json", "validation": "validation.json", "max_length": 384},
    "starts": {"base": "some/base", "v1": "some/v1"},
    "search": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 4},
    },
    "budget": {"trials": 10},
}


def study_file(**sections: Any) -> StudyFile:
    """The study above with whole sections replaced, or left out where None."""
    given = {key: value for key, value in {**SECTIONS, **sections}.items() if value is not None}
    return StudyFile.model_validate_json(json.dumps(given))


@contextlib.contextmanager
def opened(url: str, **settings: Any) -> Iterator[StudyStorage]:
    storage = open_storage(url, create=True, **settings)
    try:
        yield storage
    finally:
        storage.close()


def created(storage: StudyStorage, **sections: Any) -> JoinedStudy:
    return create_study(study_file(**sections), storage, fingerprints=FINGERPRINTS)


def asked(joined: JoinedStudy, **options: Any) -> Asked:
    answer = ask(joined, **options)
    assert isinstance(answer, Asked), answer
    return answer


def record(epoch: int, val_loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "val_loss": val_loss, **more}


def run(joined: JoinedStudy, trial: FrozenTrial, epochs: int, best_f1: float = 50.0) -> None:
    """Train for ``epochs`` epochs and complete the trial."""
    for epoch in range(1, epochs + 1):
        record_epoch(joined, trial, record(epoch))
    finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": best_f1})
