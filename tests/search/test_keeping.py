"""What is collected from the artifact store, and what never is."""

import io
import logging
import tarfile
import warnings
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import TrialState
from search_helpers import asked, created, record

from qa_hpo.errors import ArtifactError
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.paths import RunPaths
from qa_hpo.search.artifacts import artifact_id, open_store, owner
from qa_hpo.search.asking import Asked, hand_back
from qa_hpo.search.failures import Cause
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import Keeper, collect
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import fail, finish, kept, record_epoch


class Bench:
    """A study, its store, and runs that leave small files."""

    def __init__(self, joined: JoinedStudy, folder: Path) -> None:
        self.joined = joined
        self.folder = folder
        self.store = open_store(joined.file.artifacts.folder)

    def keeper(self, asked: Asked) -> Keeper:
        paths = RunPaths(self.folder / f"run-{asked.trial.number}")
        return Keeper(self.joined, self.store, asked.trial, paths)

    def train(self, asked: Asked, scores: list[float], *, last: bool = False) -> Keeper:
        """Train one epoch for each score."""
        keeper = self.keeper(asked)
        records: list[EpochRecord] = []
        for epoch, score in enumerate(scores, start=1):
            for path in (keeper.paths.resume_state(epoch), keeper.paths.checkpoint(epoch)):
                path.mkdir(parents=True)
                (path / "weights").write_text(f"{asked.trial.number} {epoch}")
            records.append(EpochRecord(epoch, 1.0, 1.0, 1.0, 1.0, {"best_f1": score}))
            now = keeper.keep(records, last=last and epoch == len(scores))
            flat = {"epoch": epoch, "val_loss": 1.0, "best_f1": score}
            assert record_epoch(self.joined, asked.trial, flat, kept=now)
            keeper.recorded(now)
        return keeper

    def end(self, asked: Asked, best: float) -> None:
        keeper = self.train(asked, [best], last=True)
        attrs = {"best_f1": best, "best_epoch": 1}
        finish(
            self.joined,
            asked.trial,
            state=TrialState.COMPLETE,
            attrs=attrs,
            system_attrs=keeper.metadata(),
        )

    def stored(self) -> list[tuple[int, int]]:
        keys = self.store.keys(self.joined.uid)
        return sorted((owner(key), int(key.split("-")[2])) for key in keys)


@pytest.fixture
def bench(sqlite: StudyStorage, tmp_path: Path) -> Bench:
    artifacts = {"folder": str(tmp_path / "artifacts"), "keep": 2}
    joined = created(sqlite, artifacts=artifacts, budget={"trials": 100})
    return Bench(joined, tmp_path)


def test_of_a_running_trial_the_newest_state_and_the_best_epoch_are_kept(bench: Bench):
    answer = asked(bench.joined)
    bench.train(answer, [50.0, 60.0, 55.0])
    state = kept(bench.joined.storage.rdb.get_trial(answer.trial._trial_id))
    assert state is not None
    assert (state.epoch, state.checkpoint_epoch) == (3, 2)
    assert bench.stored() == [(0, 2), (0, 3)]
    collect(bench.joined, bench.store)
    assert bench.stored() == [(0, 2), (0, 3)]


def test_another_worker_gets_the_state(bench: Bench, tmp_path: Path):
    answer = asked(bench.joined)
    bench.train(answer, [50.0, 60.0, 55.0])
    hand_back(bench.joined, answer.trial)
    collect(bench.joined, bench.store)  # it waits, and needs it
    again = asked(bench.joined)
    keeper = bench.keeper(again)
    keeper.paths = RunPaths(tmp_path / "another host")
    keeper.restore()
    state = keeper.paths.resume_state(3)
    assert (state / "weights").read_text() == "0 3"


def test_a_state_that_is_gone_lets_the_trial_begin_anew(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    answer = asked(bench.joined)
    bench.train(answer, [50.0, 60.0])
    bench.store.remove(bench.store.keys(bench.joined.uid))
    hand_back(bench.joined, answer.trial)
    keeper = bench.keeper(asked(bench.joined))
    keeper.restore()
    assert keeper.kept is None
    assert "trial 0 begins anew: " in caplog.text


def test_a_store_that_refuses_for_a_moment_costs_no_epochs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """The trial fails, and is tried again with what it has, instead of beginning anew."""
    answer = asked(bench.joined)
    bench.train(answer, [50.0, 60.0])
    hand_back(bench.joined, answer.trial)
    keeper = bench.keeper(asked(bench.joined))

    def refuses(*_: Any) -> Any:
        raise ArtifactError("s3://bucket: not now")

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.store), "get", refuses)
        with pytest.raises(ArtifactError, match="not now"):
            keeper.restore()
    assert keeper.kept is not None


def test_a_failed_trials_state_is_kept_while_it_is_tried_again(bench: Bench):
    answer = asked(bench.joined)
    bench.train(answer, [50.0])
    fail(bench.joined, answer.trial, Cause.WORKER_DIED, "killed")
    collect(bench.joined, bench.store)
    assert len(bench.stored()) == 2
    retry = asked(bench.joined)
    collect(bench.joined, bench.store)
    assert len(bench.stored()) == 2  # the retry has not put anything there of its own
    fail(bench.joined, retry.trial, Cause.DATA, "and for good")
    collect(bench.joined, bench.store)
    assert bench.stored() == []


def test_who_cannot_win_any_more_is_collected(bench: Bench):
    for best in (50.0, 70.0, 60.0):
        bench.end(asked(bench.joined), best)
        collect(bench.joined, bench.store)
    assert bench.stored() == [(1, 1), (2, 1)]
    offered = {
        trial.number: [name for name in trial.system_attrs if name.startswith("artifacts:")]
        for trial in bench.joined.storage.rdb.get_all_trials(1)
    }
    assert [len(names) for names in offered.values()] == [0, 1, 1]


def test_a_dashboard_offers_the_checkpoint(bench: Bench, tmp_path: Path):
    bench.end(asked(bench.joined), 70.0)
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard

        artifacts = FileSystemArtifactStore(tmp_path / "artifacts")
        application = optuna_dashboard.wsgi(bench.joined.storage.rdb, artifact_store=artifacts)
    trial = bench.joined.storage.rdb.get_all_trials(1)[0]
    state = kept(trial)
    assert state is not None
    answer: dict[str, str] = {}
    environment = {"PATH_INFO": f"/artifacts/1/{trial._trial_id}/{state.checkpoint}"}
    setup_testing_defaults(environment)
    content = application(environment, lambda status, *_: answer.update(status=status))
    body = b"".join(content)
    content.close()
    assert answer["status"].startswith("200")
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert tar.getnames() == ["weights"]


def test_what_killed_workers_left_is_collected(bench: Bench, tmp_path: Path):
    running, finished = asked(bench.joined), asked(bench.joined)
    bench.end(finished, 50.0)
    (tmp_path / "some").mkdir()

    def put(trial: int) -> str:
        key = artifact_id(bench.joined.uid, trial, 9)
        bench.store.put(key, tmp_path / "some")
        return key

    of_finished, of_running, of_later = put(1), put(0), put(2)
    others = artifact_id("00000000", 1, 9)
    bench.store.put(others, tmp_path / "some")
    collect(bench.joined, bench.store)
    left = bench.store.keys(bench.joined.uid)
    assert of_finished not in left
    # Their workers may be just about to record them.
    assert {of_running, of_later} <= left
    assert bench.store.keys("00000000") == {others}
    fail(bench.joined, running.trial, Cause.DATA, "over")
    collect(bench.joined, bench.store)
    assert of_running not in bench.store.keys(bench.joined.uid)


def test_a_store_that_refuses_costs_no_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuses(*_: Any) -> Any:
        raise ArtifactError("s3://bucket: not today")

    for best in (50.0, 70.0, 60.0):
        bench.end(asked(bench.joined), best)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(type(bench.store), "remove", refuses)
        collect(bench.joined, bench.store)
    assert "checkpoints are not collected: s3://bucket: not today" in caplog.text
    collect(bench.joined, bench.store)
    assert bench.stored() == [(1, 1), (2, 1)]


def test_records_without_a_store(bench: Bench):
    answer = asked(bench.joined)
    record_epoch(bench.joined, answer.trial, record(1))
    assert kept(bench.joined.storage.rdb.get_trial(answer.trial._trial_id)) is None
