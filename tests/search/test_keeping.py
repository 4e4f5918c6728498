"""What is collected from the artifact store, and what never is."""

import io
import json
import logging
import tarfile
import warnings
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import TrialState
from search_helpers import asked, created, record

from qa_hpo.errors import ArtifactError
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.paths import RunPaths, write_bytes
from qa_hpo.search.artifacts import artifact_id, open_store, owner
from qa_hpo.search.asking import Asked, ask, hand_back
from qa_hpo.search.failures import Cause
from qa_hpo.search.finalists import finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import Keeper, collect, read_answers
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import fail, finish, kept, record_epoch
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.corpus import Corpus, load_corpus
from qa_hpo.squad.spans import Predictions


class Bench:
    """A study, its store, and runs that leave small files."""

    def __init__(self, joined: JoinedStudy, folder: Path) -> None:
        self.joined = joined
        self.folder = folder
        self.corpus: Corpus | None = None
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
            if self.corpus is not None:
                write_bytes(keeper.paths.answers(epoch), answers(self.corpus, epoch).to_bytes())
            records.append(EpochRecord(epoch, 1.0, 1.0, 1.0, 1.0, {"best_f1": score}))
            now = keeper.keep(records, last=last and epoch == len(scores))
            flat = {"epoch": epoch, "val_loss": 1.0, "best_f1": score}
            assert record_epoch(self.joined, asked.trial, flat, kept=now)
            keeper.recorded(now)
        return keeper

    def end(self, asked: Asked, best: float) -> None:
        keeper = self.train(asked, [best], last=True)
        if self.corpus is not None:
            records = [EpochRecord(1, 1.25, 1.0, 0.5, 1.5, {"best_f1": best})]
            keeper.keep_tables(records, keeper.answers(), self.corpus)
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


def answers(corpus: Corpus, epoch: int) -> Answered:
    """The first ``epoch`` questions are answered with their first ten characters."""
    size = len(corpus)
    margin = np.where(np.arange(size) < epoch, -1.0, 1.0)
    zeros = np.zeros(size)
    return Answered.of(corpus, Predictions(zeros.astype(int), np.full(size, 10), zeros, margin))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    rows = [(f"q{n}", f"article {n % 2}") for n in range(6)]
    lines = [
        {
            "id": name,
            "title": title,
            "question": "Who?",
            "context": "Somebody or other was here.",
            "answers": {"text": ["Somebody o"], "answer_start": [0]},
        }
        for name, title in rows
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return load_corpus(path, "validation")


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


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_what_may_still_win_the_finals_is_kept(sqlite: StudyStorage, tmp_path: Path, keep: int):
    joined = created(
        sqlite,
        artifacts={"folder": str(tmp_path / "artifacts"), "keep": keep},
        evaluation={"seeds": 3, "finalists": 3},
        budget={"trials": 12},
    )
    bench = Bench(joined, tmp_path)
    scores = iter([60.0, 70.0, 69.0, 68.0, 50.0, 51.0, 10.0, 10.0, 20.0, 20.0, 60.0, 60.0])
    while isinstance(answer := ask(joined), Asked):
        bench.end(answer, next(scores))
        collect(joined, bench.store)
    # Of the means 30, 36.3 and 62.7 the last is that of trial 3, third of the first runs.
    assert finished_trials(joined)[0].number == 3
    assert 3 in {number for number, _ in bench.stored()}


# ---------------------------------------------------------------------------- answers and tables


def told(bench: Bench, number: int) -> dict[str, str]:
    """Names of the artifacts that dashboards know of a trial, and their keys."""
    # Optuna keeps finished trials as it has read them, so the database is asked.
    trial = bench.joined.optuna_study.get_trials(deepcopy=False)[number]
    attrs = bench.joined.storage.rdb.get_trial(trial._trial_id).system_attrs
    known = [json.loads(value) for name, value in attrs.items() if name.startswith("artifacts:")]
    return {meta["filename"]: meta["artifact_id"] for meta in known}


def test_of_all_trials_the_answers_stay_and_of_leading_ones_the_predictions(
    bench: Bench, corpus: Corpus
):
    bench.corpus = corpus
    for best in (50.0, 70.0, 60.0):
        bench.end(asked(bench.joined), best)
    collect(bench.joined, bench.store)
    always = {"epochs.csv", "scores-epoch-1.npz"}
    leading = {*always, "checkpoint-epoch-1.tar", "predictions-epoch-1.json"}
    assert [set(told(bench, number)) for number in range(3)] == [always, leading, leading]
    keys = {key for number in range(3) for key in told(bench, number).values()}
    assert bench.store.keys(bench.joined.uid) == keys, "what is there is known, and nothing else"

    predictions = json.loads(bench.store.get_bytes(told(bench, 1)["predictions-epoch-1.json"]))
    assert list(predictions) == [f"q{n}" for n in range(6)]
    assert set(predictions.values()) == {"Somebody o"}  # the best threshold answers all of them
    table = bench.store.get_bytes(told(bench, 0)["epochs.csv"]).decode().splitlines()
    assert table[0] == "epoch,train_loss,val_loss,best_f1,seconds,eval_seconds"
    assert table[1] == "1,1.25,1.5,50.0,1.0,0.5"


def test_answers_go_with_the_best_epoch_to_whoever_goes_on(bench: Bench, corpus: Corpus):
    bench.corpus = corpus
    answer = asked(bench.joined)
    bench.train(answer, [50.0, 60.0, 55.0])
    assert bench.stored() == [(0, 2), (0, 2), (0, 3)]  # weights, answers, and the resume state
    hand_back(bench.joined, answer.trial)
    collect(bench.joined, bench.store)
    keeper = bench.keeper(asked(bench.joined))
    found = keeper.answers()
    assert found is not None
    assert found.scores.null_margin.tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]  # of epoch 2
    trial = bench.joined.optuna_study.get_trials()[0]
    again = read_answers(bench.joined, trial)
    assert again is not None
    assert again.to_bytes() == found.to_bytes()


def test_answers_that_are_gone_cost_no_trial(
    bench: Bench, corpus: Corpus, caplog: pytest.LogCaptureFixture
):
    bench.corpus = corpus
    answer = asked(bench.joined)
    keeper = bench.train(answer, [50.0])
    assert keeper.kept is not None
    assert keeper.kept.answers is not None
    bench.store.remove([keeper.kept.answers])
    assert keeper.answers() is None
    assert "the answers of a checkpoint are not there" in caplog.text


def test_tables_that_cannot_be_kept_cost_no_trial(
    bench: Bench,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    bench.corpus = corpus
    keeper = bench.train(asked(bench.joined), [50.0], last=True)
    answered = keeper.answers()

    def refuses(*_: Any) -> Any:
        raise ArtifactError("s3://bucket: not now")

    monkeypatch.setattr(type(bench.store), "put_bytes", refuses)
    keeper.keep_tables([EpochRecord(1, 1.0, 1.0, 1.0, 1.0, {})], answered, corpus)
    assert keeper.tables == {}
    assert "epochs.csv of trial 0 is not kept: s3://bucket: not now" in caplog.text
