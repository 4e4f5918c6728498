"""A promoted trial is the one that was never stopped: records and weights are the same."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from qa_hpo.config import Runtime
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.results.export import write_export
from qa_hpo.results.select import exported_trial
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.stopping import PAUSED
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import epoch_records, kept
from tiny import study_file

HORIZON = 4
# The worse of the two that a study has learns slowly, but not so that it is worse than guessing.
SECTIONS: dict[str, Any] = {
    "data": {"train_limit": 96},
    "search": {"learning_rate": {"choices": [3e-3, 1e-3, 1e-4]}, "epochs": {"value": HORIZON}},
    "training": {"batch_size": 8},
    "budget": {"trials": 2},
}
GOOD, BAD, WORSE = ({"learning_rate": rate} for rate in (3e-3, 1e-3, 1e-4))


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    opened = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    yield opened
    opened.close()


class Study:
    """A study whose two trials are queued, in this order."""

    def __init__(
        self,
        tiny: Path,
        inputs: Inputs,
        storage: StudyStorage,
        folder: Path,
        queued: list[dict[str, float]],
        **pruning: Any,
    ) -> None:
        name = folder.name
        file = study_file(
            tiny, folder, **SECTIONS, study={"name": name}, pruning={"patience": 9, **pruning}
        )
        self.joined: JoinedStudy = create_study(
            file, storage, fingerprints=fingerprints(file, inputs)
        )
        for params in queued:
            self.joined.optuna_study.enqueue_trial(params)
        self.inputs = inputs

    def take(self) -> Asked:
        asked = ask(self.joined, worker="me")
        assert isinstance(asked, Asked)
        return asked

    def objective(self) -> Objective:
        return Objective(self.joined, self.inputs, Runtime(cpu_threads=1))

    def measured(self, number: int) -> list[dict[str, Any]]:
        records = epoch_records(self.joined.optuna_study.trials[number])
        return [{k: v for k, v in record.items() if "seconds" not in k} for record in records]

    def exported(self, number: int, out: Path) -> dict[str, str]:
        """The digests of an export's weights."""
        with exported_trial(self.joined, number) as export:
            write_export(export, out)
        return {
            path.name: hashlib.blake2b(path.read_bytes()).hexdigest()
            for path in out.iterdir()
            if path.suffix in {".safetensors", ".bin"}
        }


def same_as_unstopped(study: Study, number: int, tiny: Path, storage: StudyStorage) -> None:
    folder = Path(study.joined.file.artifacts.folder).parent
    queued = [WORSE, GOOD] if number else [GOOD, BAD]
    alone = Study(tiny, study.inputs, storage, folder / "unstopped", queued, across="none")
    for _ in range(number + 1):
        alone.objective().run(alone.take())
    unstopped = alone.joined.optuna_study.trials[number]
    assert (unstopped.state, len(epoch_records(unstopped))) == (TrialState.COMPLETE, HORIZON)
    assert study.measured(number) == alone.measured(number)
    losses = [record["val_loss"] for record in study.measured(number)]
    assert len(set(losses)) == HORIZON
    weights = study.exported(number, folder / "out")
    assert weights == alone.exported(number, folder / "out-unstopped")
    assert "model.safetensors" in weights


def test_one_that_is_promoted_at_once(
    tiny: Path, inputs: Inputs, storage: StudyStorage, tmp_path: Path
) -> None:
    promote = {"across": "promote", "reduction_factor": 2}
    study = Study(tiny, inputs, storage, tmp_path / "promoted", [WORSE, GOOD], **promote)
    worker = study.objective()
    assert worker.run(study.take()) == PAUSED
    asked = study.take()
    assert (asked.trial.number, asked.epochs_reserved) == (1, 1)
    # It passes the first rung at once, and is the only one at the second.
    assert worker.run(asked) == PAUSED
    assert len(epoch_records(study.joined.optuna_study.trials[1])) == 2
    last = study.take()
    while last.trial.number == 0:
        assert last.stop_reason == "hopeless"
        assert worker.run(last) == "hopeless"
        last = study.take()
    assert (last.trial.number, last.epochs_reserved, last.stop_reason) == (1, HORIZON, None)
    assert worker.run(last) is None
    same_as_unstopped(study, 1, tiny, storage)


def test_one_that_waits_and_goes_on_elsewhere(
    tiny: Path, inputs: Inputs, storage: StudyStorage, tmp_path: Path
) -> None:
    promote = {"across": "promote", "reduction_factor": 2}
    study = Study(tiny, inputs, storage, tmp_path / "promoted", [GOOD, BAD], **promote)
    first = study.objective()
    assert first.run(study.take()) == PAUSED
    waiting = study.joined.optuna_study.trials[0]
    assert (waiting.state, len(epoch_records(waiting))) == (TrialState.WAITING, 1)
    state = kept(waiting)
    assert state is not None
    assert state.resume is not None
    first.collect()
    assert state.keys() <= first.store.keys(study.joined.uid)
    assert list(inputs.cache.runs.glob("run-*")) == []  # its scratch folder is gone
    assert first.run(study.take()) == "hopeless"

    for epochs in (2, HORIZON):
        asked = study.take()
        assert (asked.trial.number, asked.epochs_reserved) == (0, epochs)
        ended = study.objective().run(asked)
        assert ended == (PAUSED if epochs == 2 else None)
    bad = study.joined.optuna_study.trials[1]
    assert (bad.state, bad.user_attrs["stop_reason"]) == (TrialState.PRUNED, "hopeless")
    assert bad.value == study.measured(1)[0]["best_f1"]
    first.collect()
    # Nothing is left to go on from.
    resumed = [kept(trial) for trial in study.joined.optuna_study.trials]
    assert [state and state.resume is None for state in resumed] == [True, False]
    assert resumed[1] is not None
    assert resumed[1].resume not in first.store.keys(study.joined.uid)
    same_as_unstopped(study, 0, tiny, storage)
