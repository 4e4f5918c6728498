"""Many workers on one study, on this host and as if on several."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from bench.postgres import OwnPostgres
from optuna.trial import FrozenTrial, TrialState

from processes import finished, start
from qa_hpo.config import to_toml
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths
from qa_hpo.results.export import write_export
from qa_hpo.results.select import exported_trial, run_config
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study, load_study
from qa_hpo.search.trials import epoch_records
from qa_hpo.workers.worker import work
from s3_server import S3Server
from tiny import study_file


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    server = OwnPostgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/not there yet/study.db"
    server: OwnPostgres = request.getfixturevalue("server")
    return server.url(f"many_{abs(hash(tmp_path.name)) % 10**8}")


def join(url: str, sections: dict[str, Any], tiny: str, folder: str, label: str) -> None:
    """What ``qa-hpo run`` and its worker do, in one process: create or continue, then work."""
    os.environ["QA_HPO_CACHE"] = f"{folder}/cache"
    file = study_file(Path(tiny), Path(folder) / "artifacts", **sections)
    inputs = Inputs(CachePaths())
    storage = open_storage(url, create=True)
    create_study(file, storage, fingerprints=fingerprints(file, inputs))
    storage.close()
    work("tiny", url, label=label)


def trials_of(url: str) -> list[FrozenTrial]:
    storage = open_storage(url, create=False)
    try:
        return load_study("tiny", storage).optuna_study.get_trials()
    finally:
        storage.close()


def measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in records]


@pytest.mark.slow
def test_sixteen_workers_join_a_study_that_does_not_exist(
    url: str, tiny: Path, tmp_path: Path
) -> None:
    """All at once; the database does not exist either."""
    sections = {
        "training": {"epochs": 1, "cpu_threads": 1},
        "data": {"train_limit": 48, "validation_limit": 8},
        "budget": {"trials": 40},
    }
    workers = [
        start(join, url, sections, str(tiny), str(tmp_path), f"worker-{n}") for n in range(16)
    ]
    finished(*workers, seconds=240)
    trials = trials_of(url)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 40
    assert len({trial.params["learning_rate"] for trial in trials}) == 40
    by_worker = Counter(trial.user_attrs["worker"] for trial in trials)
    assert len(by_worker) > 8  # who comes last may find nothing left to do


@pytest.mark.slow
def test_workers_may_come_before_the_study(url: str, tiny: Path, tmp_path: Path) -> None:
    """Neither the database's file nor its tables are there when they come."""
    workers = [start(work_elsewhere, url, str(tmp_path), {"wait_s": 60}) for _ in range(3)]
    time.sleep(2)
    assert all(worker.is_alive() for worker in workers)
    sections = {"training": {"epochs": 1, "cpu_threads": 1}, "budget": {"trials": 4}}
    finished(start(join, url, sections, str(tiny), str(tmp_path), "creator"), *workers)
    assert [trial.state for trial in trials_of(url)] == [TrialState.COMPLETE] * 4


# ------------------------------------------------------------------------ other hosts


class Host:
    """A folder of its own, as on another host: it shares the database and a bucket, no disk."""

    def __init__(self, folder: Path, url: str, environment: dict[str, str]) -> None:
        self.folder = folder
        self.url = url
        self.environment = environment
        folder.mkdir()

    def worker(self, **options: Any) -> BaseProcess:
        return start(work_elsewhere, self.url, str(self.folder), options, self.environment)


def work_elsewhere(
    url: str, folder: str, options: dict[str, Any], environment: dict[str, str] | None = None
) -> None:
    os.environ.update(environment or {})
    os.chdir(folder)
    os.environ["QA_HPO_CACHE"] = "cache"
    work("tiny", url, **options)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server(tmp_path / "s3.log") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def wait_for_epoch(url: str, epoch: int, worker: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not any(len(epoch_records(trial)) >= epoch for trial in trials_of(url)):
        assert worker.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_trial_goes_on_on_another_host(
    tiny: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host is gone for good; the next one has the bucket and the database, and goes on."""
    url = f"sqlite:///{tmp_path}/study.db"
    file = study_file(
        tiny,
        tmp_path,
        data={"train_limit": 120},
        search={"learning_rate": {"value": 3e-3}},
        training={"epochs": 12, "cpu_threads": 1},
        pruning={"control_fraction": 1.0},
        budget={"trials": 1},
        artifacts={"folder": f"s3://{s3.bucket()}/studies/one"},
    )
    storage = open_storage(url, create=True)
    inputs = Inputs(CachePaths(tmp_path / "cache"))
    create_study(file, storage, fingerprints=fingerprints(file, inputs))
    soon = {"heartbeat_s": 1, "grace_s": 2}
    first, second = (Host(tmp_path / name, url, s3.environment) for name in ("first", "second"))
    worker = first.worker(**soon)
    wait_for_epoch(url, 3, worker)
    worker.kill()
    worker.join()
    shutil.rmtree(first.folder)
    before = epoch_records(trials_of(url)[0])

    finished(second.worker(**soon))
    dead, trial = trials_of(url)
    assert (dead.state, trial.state) == (TrialState.FAIL, TrialState.COMPLETE)
    records = epoch_records(trial)
    assert 3 <= len(before) < 12
    assert records[: len(before)] == before
    # And its records are those of a run that was never interrupted.
    monkeypatch.chdir(tmp_path)
    joined = load_study("tiny", storage)
    alone = fine_tune(run_config(joined, trial), tmp_path / "alone", inputs=inputs)
    assert measured(records) == measured([record.as_dict() for record in alone.records])

    # A third host takes the winner home.
    monkeypatch.setenv("QA_HPO_CACHE", str(tmp_path / "third"))
    with exported_trial(joined, None) as exported:
        assert write_export(exported, tmp_path / "winner")
    storage.close()
    ours = (tmp_path / "winner" / "model.safetensors").read_bytes()
    assert alone.checkpoint is not None
    assert ours == (alone.checkpoint / "model.safetensors").read_bytes()
    metrics = json.loads((tmp_path / "winner" / "metrics.json").read_text())
    assert metrics["best_f1"] == trial.value


@pytest.mark.slow
def test_hosts_that_differ_are_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    """By the command, as somebody on that host sees it."""
    data = Path(shutil.copy(tiny / "train.json", tmp_path / "train.json"))
    url = f"sqlite:///{tmp_path}/study.db"
    file = study_file(tiny, tmp_path / "artifacts", data={"train": str(data)})
    storage = open_storage(url, create=True)
    inputs = Inputs(CachePaths(tmp_path / "cache"))
    joined = create_study(file, storage, fingerprints=fingerprints(file, inputs))

    def refused() -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "qa_hpo", "worker", "--study", "tiny", "--storage", url],
            env=os.environ | {"QA_HPO_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.count("\n") == 1
        return ended.stderr

    own = data.read_text()
    data.write_text(own.replace("who built", "who dug", 1))
    assert "study 'tiny': data.train is not the one that the study was created" in refused()
    data.write_text(own)
    versions = dict(joined.optuna_study.user_attrs["versions"])
    joined.optuna_study.set_user_attr("versions", versions | {"transformers": "6.1.0"})
    assert "was created with transformers 6.1.0, and here is transformers 5." in refused()
    storage.close()
    assert trials_of(url) == []


# ------------------------------------------------------------------------ a database that goes


@pytest.mark.slow
def test_training_goes_on_through_an_outage(
    server: OwnPostgres, tiny: Path, tmp_path: Path
) -> None:
    """The server is gone for longer than the grace; no epoch is done again, no trial is lost."""
    url = server.url("outage")
    sections = {
        "data": {"train_limit": 120},
        "search": {"learning_rate": {"value": 3e-3}},
        "training": {"epochs": 12, "cpu_threads": 1},
        "pruning": {"control_fraction": 1.0},
        "budget": {"trials": 1},
    }
    file = study_file(tiny, tmp_path / "artifacts", **sections)
    inputs = Inputs(CachePaths(tmp_path / "cache"))
    with contextlib.closing(open_storage(url, create=True)) as storage:
        create_study(file, storage, fingerprints=fingerprints(file, inputs))
    soon = {"heartbeat_s": 1, "grace_s": 2}
    (tmp_path / "a").mkdir()
    worker = start(work_elsewhere, url, str(tmp_path / "a"), {**soon, "label": "first"})
    wait_for_epoch(url, 2, worker)
    server.stop()
    time.sleep(3)
    server.start()
    (tmp_path / "b").mkdir()
    other = start(work_elsewhere, url, str(tmp_path / "b"), {**soon, "label": "second"})
    finished(worker, other)
    (trial,) = trials_of(url)
    assert (trial.state, trial.user_attrs["worker"]) == (TrialState.COMPLETE, "first")
    assert [record["epoch"] for record in epoch_records(trial)] == list(range(1, 13))
    with contextlib.closing(open_storage(url, create=False)) as storage:
        config = run_config(load_study("tiny", storage), trial)
    alone = fine_tune(config, tmp_path / "alone", inputs=inputs)
    assert measured(epoch_records(trial)) == measured([r.as_dict() for r in alone.records])


@pytest.mark.slow
def test_a_worker_that_starts_in_an_outage_waits(
    server: OwnPostgres, tiny: Path, tmp_path: Path
) -> None:
    url = server.url("starting")
    sections = {"training": {"epochs": 1}, "budget": {"trials": 1}}
    file = study_file(tiny, tmp_path / "artifacts", **sections)
    inputs = Inputs(CachePaths(tmp_path / "cache"))
    with contextlib.closing(open_storage(url, create=True)) as storage:
        create_study(file, storage, fingerprints=fingerprints(file, inputs))
    server.stop()
    try:
        worker = start(work_elsewhere, url, str(tmp_path), {})
        time.sleep(2)
        assert worker.is_alive()
    finally:
        server.start()
    finished(worker)
    assert [trial.state for trial in trials_of(url)] == [TrialState.COMPLETE]


# ------------------------------------------------------------------------ several runs


def run_command(folder: Path, url: str, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "qa_hpo", "run", "study.toml", "--storage", url, *options],
        cwd=folder,
        env={**os.environ, "QA_HPO_CACHE": "cache"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_runs_of_one_study_share_the_budget(
    server: OwnPostgres, tiny: Path, tmp_path: Path
) -> None:
    """From two shells, at once, on a database that is empty; the URL as people write it."""
    url = server.url("two_runs").replace("postgresql://", "postgres://")
    sections = {
        "training": {"epochs": 6, "cpu_threads": 1},
        "pruning": {"control_fraction": 1.0},
        "budget": {"trials": 9},
        "artifacts": {"folder": "artifacts"},
    }
    file = study_file(tiny, tmp_path, **sections)
    (tmp_path / "study.toml").write_text(to_toml(file), encoding="utf-8")
    runs = [run_command(tmp_path, url) for _ in range(2)]
    outputs = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    trials = trials_of(url)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 9
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    assert sum("study 'tiny' created" in output for output in outputs) == 1
    assert sum("study 'tiny' continues" in output for output in outputs) == 1
    winner = max(trials, key=lambda trial: (trial.value, -trial.number))
    for output in outputs:
        assert f"Winner: trial {winner.number} " in output
    # Each has its own logs.
    logs = list((tmp_path / "artifacts" / "tiny" / "logs").glob("*.log"))
    assert len(logs) == 2
    assert all("trial " in log.read_text() for log in logs)


@pytest.mark.slow
def test_a_password_is_shown_nowhere(server: OwnPostgres, tiny: Path, tmp_path: Path) -> None:
    """In no output, log, artifact or attribute of a whole run with a password in its URL."""
    secret = "s3cr3t-p4ss"
    plain = server.url("masked")
    url = plain.replace("postgres:@", "postgres@").replace("postgres@", f"postgres:{secret}@")
    assert secret in url
    sections = {
        "study": {"storage": url},
        "training": {"epochs": 1, "cpu_threads": 1},
        "budget": {"trials": 1},
        "artifacts": {"folder": "artifacts"},
    }
    file = study_file(tiny, tmp_path, **sections)
    (tmp_path / "study.toml").write_text(to_toml(file), encoding="utf-8")
    run = run_command(tmp_path, url)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    export = subprocess.run(
        [sys.executable, "-m", "qa_hpo", "export", "study.toml", "winner"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ":***@" in output
    with contextlib.closing(open_storage(plain, create=False)) as storage:
        study = load_study("tiny", storage).optuna_study
        stored = json.dumps([study.user_attrs, str(study.get_trials())])
    (tmp_path / "study.toml").unlink()  # where the user wrote it
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for text in (output, export.stdout, export.stderr, stored):
        assert secret not in text
    assert not any(secret.encode() in content for content in written)
