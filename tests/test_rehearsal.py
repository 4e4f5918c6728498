"""``qa-hpo run --dry-run`` tells what a run would do, and leaves every folder as it was."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import create_trial

from cli_helpers import Ended, run_cli
from qa_hpo.config import load_study_file
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.paths import CachePaths
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study


@pytest.fixture
def study(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file in the folder in which commands run, on a host without GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("QA_HPO_STORAGE", raising=False)
    path = tmp_path / "study.toml"
    path.write_text(
        f"""
[study]
name = "tiny"
seed = 3
[data]
train = {json.dumps(str(tiny / "train.json"))}
validation = {json.dumps(str(tiny / "validation.json"))}
max_length = 40
[starts]
base = {json.dumps(str(tiny / "base"))}
[search.learning_rate]
low = 1e-3
high = 1e-2
log = true
[training]
epochs = 3
doc_stride = 8
cpu_threads = 1
[evaluation]
doc_stride = 8
[budget]
trials = 5
epochs = 12
""",
        encoding="utf-8",
    )
    return path


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder; of a file, when it was changed and what it holds.

    Not when a folder was changed, nor SQLite's side files, which come and go with whoever reads.
    """
    return {
        str(path.relative_to(folder)): (
            (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else (0, b"")
        )
        for path in folder.rglob("*")
        if not path.name.endswith(("-shm", "-wal"))
    }


def rehearsed(study: Path, *options: str) -> Ended:
    before = listing(study.parent)
    ended = run_cli("run", study, "--dry-run", *options)
    assert listing(study.parent) == before
    return ended


def created(study: Path) -> None:
    file = load_study_file(study)
    storage = open_storage("sqlite:///storage/qa_hpo.db", create=True)
    found = fingerprints(file, Inputs(CachePaths()))
    joined = create_study(file, storage, fingerprints=found)
    records = [{"epoch": n, "train_loss": 1.0, "val_loss": 1.0} for n in (1, 2, 3)]
    joined.optuna_study.add_trial(
        create_trial(
            value=50.0,
            params={"learning_rate": 2e-3},
            distributions=joined.space.distributions,
            user_attrs={"epochs": records, "best_f1": 50.0},
        )
    )
    storage.close()


def test_a_study_that_would_be_created(study: Path) -> None:
    ended = rehearsed(study, "--workers", "2")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("train: 240 questions")
    assert lines[-4] == f"study 'tiny' would be created in sqlite:///{Path.cwd()}/storage/qa_hpo.db"
    assert lines[-3] == "budget: 5 trials, 12 epochs, all of it left"
    assert lines[-2].startswith("workers: 2 on the CPU, with ")
    assert lines[-1] == "dry run: nothing was written, and nothing was started"
    assert [path.name for path in study.parent.iterdir()] == ["study.toml"]


def test_a_study_that_would_continue(study: Path) -> None:
    created(study)
    ended = rehearsed(study, "--trials", "4")
    assert (ended.code, ended.err) == (0, "")
    assert "study 'tiny' would continue: 1 of 4 trials, 3 of 12 epochs" in ended.out
    assert "budget: 3 of 4 trials, 9 of 12 epochs left" in ended.out
    assert "workers: 1 on the CPU" in ended.out
    # The budget that was given here was not stored.
    assert "1 of 5 trials" in run_cli("status", study).out


def test_a_study_that_is_over(study: Path) -> None:
    created(study)
    ended = rehearsed(study, "--trials", "1")
    assert "The budget is spent: nothing to do. --trials N gives it more." in ended.out
    assert "workers:" not in ended.out


def test_what_a_run_would_refuse(study: Path) -> None:
    created(study)
    text = study.read_text(encoding="utf-8")
    study.write_text(text.replace("high = 1e-2", "high = 2e-2"), encoding="utf-8")
    ended = rehearsed(study)
    assert ended.code == 2
    assert ended.err.startswith("error: study 'tiny' exists and differs: search.learning_rate.high")
    study.write_text(text.replace("train.json", "trian.json"), encoding="utf-8")
    assert rehearsed(study).code == 2
    assert rehearsed(study, "--storage", "mysql://me:secret@host/db").code == 2


def both(study: Path, *options: str) -> Ended:
    """How a dry run ended, which has to be how the run ends."""
    dry = rehearsed(study, *options)
    real = run_cli("run", study, "--workers", "1", *options)
    assert (dry.code, dry.err) == (real.code, real.err)
    return dry


def given(study: Path, old: str, new: str) -> None:
    text = study.read_text(encoding="utf-8")
    assert old in text
    study.write_text(text.replace(old, new), encoding="utf-8")


def test_studies_to_learn_from(study: Path) -> None:
    created(study)
    given(study, 'name = "tiny"', 'name = "second"\nlearn_from = ["tiny"]')
    assert "study 'second' would be created" in rehearsed(study).out
    storage = open_storage("sqlite:///storage/qa_hpo.db", create=False)
    optuna.create_study(study_name="theirs", storage=storage.rdb)
    storage.close()
    for name, why in {"tinny": "has no study 'tinny'", "theirs": "is not a qa_hpo study"}.items():
        line = study.read_text(encoding="utf-8").split("\n")[3]
        given(study, line, f'learn_from = ["{name}"]')
        ended = both(study)
        assert ended.code == 2
        assert ended.err.startswith("error: study.learn_from: ")
        assert why in ended.err


def test_a_study_to_learn_from_where_there_is_no_storage_yet(study: Path) -> None:
    given(study, "seed = 3", 'seed = 3\nlearn_from = ["nobody"]')
    ended = both(study)
    assert ended.code == 2
    shown = f"sqlite:///{study.parent}/storage/qa_hpo.db"
    assert ended.err == f"error: study.learn_from: {shown} has no study 'nobody'; it holds none\n"


@pytest.mark.parametrize("directions", [["minimize"], ["maximize"], ["maximize", "maximize"]])
def test_a_study_of_another_program_has_the_name(study: Path, directions: list[str]) -> None:
    url = f"sqlite:///{study.parent}/others.db"
    theirs = optuna.create_study(study_name="tiny", storage=url, directions=directions)
    theirs.add_trial(create_trial(values=[1.0] * len(directions)))
    ended = both(study, "--storage", url)
    assert ended.code == 2
    assert ended.err == f"error: {url}: 'tiny' is not a qa_hpo study; choose another study.name\n"


@pytest.mark.parametrize("folder", ["/proc/none", "/proc/none/deeper", "/proc", "file", "file/in"])
def test_a_place_for_checkpoints_that_cannot_be_made(study: Path, folder: str) -> None:
    (study.parent / "file").write_text("in the way", encoding="utf-8")
    given(study, "[budget]", f'[artifacts]\nfolder = "{folder}"\n[budget]')
    ended = both(study)
    assert ended.code == 2
    assert ended.err.startswith(f"error: artifacts.folder: {folder}: ")


@pytest.mark.parametrize("url", ["sqlite:////proc/none/qa.db", "sqlite:////proc/qa.db"])
def test_a_storage_that_cannot_be_made(study: Path, url: str) -> None:
    ended = both(study, "--storage", url)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {url}: ")


def test_what_a_bucket_takes_is_not_tried(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    given(study, "[budget]", '[artifacts]\nfolder = "s3://bucket"\n[budget]')
    ended = rehearsed(study)
    assert (ended.code, ended.err) == (0, "")
    assert "artifacts.folder: s3://bucket is not tried, which would write\n" in ended.out


def test_gpus_and_other_launchers(
    study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("locks")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert "workers: 2, on GPU 4, 7\n" in rehearsed(study).out
    assert "workers: 3, on GPU 4, 7, 4\n" in (
        rehearsed(study, "--workers", "3", "--workers-per-device", "2").out
    )
    ended = rehearsed(study, "--launcher", "ray")
    assert "workers: one for each free GPU, on the Ray cluster\n" in ended.out


def test_the_storage_is_shown_without_its_password(study: Path) -> None:
    ended = rehearsed(study, "--storage", "postgresql://me:secret@127.0.0.1:1/db")
    assert ended.code == 2
    assert "secret" not in ended.out + ended.err
