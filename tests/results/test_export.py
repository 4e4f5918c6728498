import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from qa_hpo.config import RunConfig, load_run_config
from qa_hpo.errors import InputError
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.results import export
from qa_hpo.results.export import Exported, check_place, write_export

METRICS = {
    "exact": 40.0, "f1": 50.0, "total": 10, "HasAns_exact": 1.0, "HasAns_f1": 2.0,
    "HasAns_total": 6, "NoAns_exact": 3.0, "NoAns_f1": 4.0, "NoAns_total": 4, "best_exact": 55.5,
    "best_exact_thresh": -1.25, "best_f1": 66.25, "best_f1_thresh": -2.125, "crossfit_f1": 61.0,
    "HasAns_f1_no_null": 77.0,
}  # fmt: skip

CONFIG = {
    "run": {"name": "demo trial 3", "seed": 12, "stop_after_epochs": 2},
    "data": {"train": 'a "train".json', "validation": "it's ünusual.json", "max_length": 128},
    "starts": {
        "base": "some/base",
        "v1": {"from": "base", "train": "v1.json", "epochs": 2, "learning_rate": 3e-5},
    },
    "parameters": {"start": "v1", "learning_rate": 1.2345678901234567e-5, "epochs": 4},
    "training": {"cpu_threads": 1},
    "evaluation": {"doc_stride": 32},
}


def exported(folder: Path, **changes: Any) -> Exported:
    """An export of two epochs, whose checkpoint is two files."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_text(name)
    first = EpochRecord(1, 2.5, 10.0, 1.0, 2.0, {**METRICS, "best_f1": 60.0})
    second = EpochRecord(2, 1.5, 10.0, 1.0, None, METRICS)
    given: dict[str, Any] = {
        "config": RunConfig.model_validate_json(json.dumps(CONFIG)),
        "checkpoint": checkpoint,
        "records": [first, second],
        "best": second,
        "origin": "trial 3 of study 'demo' (pruned: overfitting)",
        "facts": {"study": "demo", "trial": 3, "state": "PRUNED", "stop_reason": "overfitting"},
    }
    return Exported(**{**given, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_it_holds(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert write_export(exported(tmp_path), out) is True
    names = {"config.json", "model.safetensors", "qa_hpo.toml", "metrics.json", "README.md"}
    assert set(contents(out)) == names
    assert names_in(out.parent) == ["out"]  # nothing half-written beside it

    metrics = json.loads((out / "metrics.json").read_text())
    assert {name: metrics[name] for name in METRICS} == METRICS
    assert metrics["threshold"] == METRICS["best_f1_thresh"]
    assert metrics["best_epoch"] == 2
    assert metrics["val_loss"] is None
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert [epoch["best_f1"] for epoch in metrics["epochs"]] == [60.0, 66.25]
    assert (metrics["trial"], metrics["stop_reason"]) == (3, "overfitting")


def test_the_configuration_reads_back(tmp_path: Path) -> None:
    export = exported(tmp_path)
    write_export(export, tmp_path / "out")
    assert load_run_config(tmp_path / "out" / "qa_hpo.toml") == export.config
    text = (tmp_path / "out" / "qa_hpo.toml").read_text()
    assert tomllib.loads(text)["parameters"]["learning_rate"] == 1.2345678901234567e-5
    assert text.startswith("# trial 3 of study 'demo' (pruned: overfitting)\n")


def test_the_model_card(tmp_path: Path) -> None:
    write_export(exported(tmp_path), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    prose = " ".join(card.split())
    assert 'The answer is "" where the margin is above **-2.125**' in prose
    assert "it reaches F1 **66.25** with its tuned no-answer threshold, and 50.00" in prose
    assert "it is 61.00: the better guess" in prose
    assert "It is trial 3 of study 'demo' (pruned: overfitting)." in prose
    assert "| 1 | 2.500 | 2.000 | 50.00 | 60.00 | -2.125 |" in card
    assert "| 2 (exported) | 1.500 | not finite | 50.00 | 66.25 | -2.125 |" in card
    assert "| learning_rate | 1.2345678901234568e-05 |" in card
    assert "| dropout | the start’s own |" in card


@pytest.mark.parametrize(
    ("validation", "kind", "name", "config"),
    [
        ("rajpurkar/squad_v2", "rajpurkar/squad_v2", "rajpurkar/squad_v2", None),
        ("rajpurkar/squad_v2:plain", "rajpurkar/squad_v2", "rajpurkar/squad_v2", "plain"),
        ("/home/me/data/My Corpus, ünusual.json.gz", "my-corpus-unusual", None, None),
        ("saved/validation", "validation", "validation", None),
        ("問.json", "corpus", "問.json", None),
    ],
)
def test_the_card_names_the_corpora_as_the_hub_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: str, kind: str, name: str | None,
    config: str | None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved" / "validation").mkdir(parents=True)
    data = {**CONFIG["data"], "validation": validation}
    changed = RunConfig.model_validate_json(json.dumps({**CONFIG, "data": data}))
    test = {"f1": 1.0, "exact": 1.0, "f1_interval": None, "total": 7, "trials": 1}
    facts = {"test": {**test, "data": "some/other"}}
    write_export(exported(tmp_path, config=changed, facts=facts), tmp_path / "out")
    results = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    # A hub id gives its validation split, whatever it is used for.
    assert [result.dataset_split for result in results] == ["validation"] * 4
    assert [result.dataset_type for result in results[2:]] == ["some/other"] * 2
    for result in results[:2]:
        assert result.dataset_type == kind
        assert result.dataset_name == (name or "My Corpus, ünusual.json.gz")
        assert result.dataset_config == config


def test_the_card_without_articles_to_cross_fit_on(tmp_path: Path) -> None:
    record = EpochRecord(1, 2.5, 10.0, 1.0, 2.0, {**METRICS, "crossfit_f1": None})
    write_export(exported(tmp_path, records=[record], best=record), tmp_path / "out")
    assert "better guess" not in (tmp_path / "out" / "README.md").read_text()


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="out: cannot be written: "):
        write_export(exported(tmp_path), tmp_path / "file" / "out")


def test_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_export(exported(tmp_path), out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write_export(exported(tmp_path), out) is False
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert write_export(exported(tmp_path), tmp_path / "out") is True


@pytest.mark.parametrize("what", ["folder", "file", "other export"])
def test_what_is_there_is_left_alone_unless_forced(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "folder":
        (out / "thesis").mkdir(parents=True)
        (out / "thesis" / "thesis.tex").write_text("my only copy")
    elif what == "file":
        out.write_text("my only copy")
    else:
        write_export(exported(tmp_path, facts={"trial": 9}), out)
    new = exported(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="exists and holds something else; choose another folder"):
        write_export(new, out)
    assert contents(tmp_path) == before
    if what != "other export":
        # --force replaces exports, never what may be somebody's only copy of something else.
        with pytest.raises(InputError, match="exists and holds something else"):
            write_export(new, out, force=True)
        assert contents(tmp_path) == before
        return
    assert write_export(new, out, force=True) is True
    assert json.loads((out / "metrics.json").read_text())["trial"] == 3
    assert names_in(tmp_path) == ["checkpoint", "out"]


def test_a_place_can_be_looked_at_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "out"
    assert check_place(out) is False
    assert not out.parent.exists()
    write_export(exported(tmp_path), out)
    assert check_place(out) is True  # it stays, and no other can be written there
    assert check_place(out, force=True) is False
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="out: cannot be written: file is no folder"):
        check_place(tmp_path / "file" / "new" / "out")
    monkeypatch.setattr(export.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="mine: cannot be written: nothing may be written to "):
        check_place(tmp_path / "mine")


@pytest.mark.parametrize("before", ["nothing", "an older export"])
@pytest.mark.parametrize("step", ["copytree", "write_text", "write_json", "model_card"])
def test_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: str
) -> None:
    out = tmp_path / "out"
    if before == "an older export":
        write_export(exported(tmp_path, facts={"trial": 9}), out)
    old = contents(tmp_path / "out") if out.exists() else None

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export.shutil if step == "copytree" else export, step, fails)
        with pytest.raises(OSError, match="No space left"):
            write_export(exported(tmp_path), out, force=True)
    assert (contents(out) if out.exists() else None) == old
    assert names_in(tmp_path) == ["checkpoint", *(["out"] if old else [])]
    assert write_export(exported(tmp_path), out, force=True) is True
