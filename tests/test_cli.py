"""The command line: help, exit codes, one line for each mistake, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from cli_helpers import run_cli, squad, tiny_checkpoint, write_json
from qa_hpo import __version__
from qa_hpo.cli import app
from qa_hpo.config import load_study_file

GROUP = typer.main.get_command(app)
assert isinstance(GROUP, click.Group) or hasattr(GROUP, "commands")
COMMANDS: dict[str, Any] = GROUP.commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def study(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file that is good, in a folder of its own, in which commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QA_HPO_STORAGE", raising=False)
    write_json(tmp_path / "train.json", squad(12))
    write_json(tmp_path / "validation.json", squad(8, prefix="v"))
    path = tmp_path / "study.toml"
    path.write_text(
        f"""
[study]
name = "small"
[data]
train = "train.json"
validation = "validation.json"
max_length = 32
[starts]
base = "{base}"
[search.learning_rate]
low = 1e-3
high = 1e-2
log = true
[search.epochs]
low = 1
high = 2
[training]
doc_stride = 8
[evaluation]
doc_stride = 8
[budget]
trials = 2
[[baseline]]
learning_rate = 5e-3
epochs = 2
""",
        encoding="utf-8",
    )
    return path


def change(study: Path, old: str, new: str) -> None:
    text = study.read_text(encoding="utf-8")
    assert old in text
    study.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_every_command_of_the_contract_is_there() -> None:
    assert set(COMMANDS) == {
        *("demo", "init", "check", "prepare", "run", "worker", "train", "status", "leaderboard"),
        *("export", "evaluate", "score", "answer", "compare", "dashboard", "report", "version"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_has_an_example(name: str) -> None:
    ended = run_cli(name, "--help")
    assert ended.code == 0
    assert f"qa-hpo {name}" in ended.out
    assert "Example:" in ended.out


def test_version() -> None:
    assert run_cli("--version").out == f"qa-hpo {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["status", "small"]])
def test_help_and_status_import_no_torch(arguments: list[str], study: Path) -> None:
    from qa_hpo.search.storage import open_storage
    from qa_hpo.search.study import create_study

    file = load_study_file(study)
    storage = open_storage("sqlite:///storage/qa_hpo.db", create=True)
    create_study(file, storage, fingerprints={"train": "a", "validation": "b"})
    storage.close()
    script = (
        "import sys\n"
        "from qa_hpo.cli import main\n"
        f"sys.argv = ['qa-hpo', *{arguments!r}]\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'evaluate'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stderr == "heavy: []\n"
    assert "usage" in ended.stdout.lower() or "0 of 2 trials" in ended.stdout


def test_init_writes_a_study_file_that_is_valid_and_keeps_what_is_there(study: Path) -> None:
    assert run_cli("init", "mine.toml").code == 0
    assert load_study_file(Path("mine.toml")).study.name == "my-study"
    Path("mine.toml").write_text("mine", encoding="utf-8")
    ended = run_cli("init", "mine.toml")
    assert ended.code == 2
    assert ended.err == "error: mine.toml: exists; choose another name, or --force\n"
    assert Path("mine.toml").read_text(encoding="utf-8") == "mine"


def test_check_tells_what_the_study_has(study: Path) -> None:
    ended = run_cli("check", study)
    assert (ended.code, ended.err) == (0, "")
    assert "train: 12 questions, 0 of them unanswerable (train.json)" in ended.out
    assert "(bert)" in ended.out
    assert not Path("storage/qa_hpo.db").exists()


def _break_data(study: Path, content: Any) -> None:
    write_json(study.with_name("train.json"), content)


def _unreadable(study: Path) -> None:
    study.with_name("train.json").write_text('{"data": [', encoding="utf-8")


def _duplicate(study: Path) -> None:
    data = squad(2)
    data["data"].append(data["data"][0])
    _break_data(study, data)


def _no_cls(study: Path) -> None:
    folder = tiny_checkpoint(study.with_name("no cls"), cls=False)
    text = study.read_text(encoding="utf-8").splitlines()
    lines = [f'base = "{folder}"' if line.startswith("base =") else line for line in text]
    study.write_text("\n".join(lines), encoding="utf-8")


def _other_model(study: Path) -> None:
    folder = tiny_checkpoint(study.with_name("vision"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update(model_type="vit", architectures=["ViTModel"])
    write_json(folder / "config.json", config)
    text = study.read_text(encoding="utf-8").splitlines()
    lines = [f'base = "{folder}"' if line.startswith("base =") else line for line in text]
    study.write_text("\n".join(lines), encoding="utf-8")


def _file_in_the_way(study: Path) -> None:
    study.with_name("storage").write_text("a file", encoding="utf-8")


def _foreign_database(study: Path) -> None:
    import sqlite3

    folder = study.with_name("storage")
    folder.mkdir()
    with sqlite3.connect(folder / "qa_hpo.db") as database:
        database.execute("CREATE TABLE customers (name TEXT)")
    database.close()


def _replace(old: str, new: str) -> Any:
    return lambda study: change(study, old, new)


WRONG = {
    "unknown key": (_replace("trials = 2", "trails = 2"), "budget.trails: unknown key"),
    "low above high": (_replace("low = 1\n", "low = 5\n"), "search.epochs: low 5 is above high 2"),
    "unknown start": (
        _replace("[search.epochs]", "[search.start]\nchoices = ['bse']\n[search.epochs]"),
        "search.start: no start is called 'bse'; did you mean 'base'?",
    ),
    "missing data": (_replace("train.json", "trian.json"), "trian.json"),
    "malformed data": (_unreadable, "train.json"),
    "duplicate ids": (_duplicate, "q0"),
    "no questions": (lambda study: _break_data(study, {"data": []}), "train.json"),
    "no CLS token": (_no_cls, "CLS"),
    "no room": (
        _replace("[training]\ndoc_stride = 8", "[training]\ndoc_stride = 24"),
        "doc_stride",
    ),
    "missing checkpoint": (_replace('base = "', 'base = "/nowhere'), "no such checkpoint folder"),
    "another kind of model": (_other_model, "vit"),
    "a file where storage is to be": (_file_in_the_way, "storage"),
    "another program's database": (_foreign_database, "qa_hpo.db"),
    "another database system": (
        _replace('name = "small"', 'name = "small"\nstorage = "mysql://u:secret@h/d"'),
        "postgresql",
    ),
    "baseline outside": (_replace("epochs = 2\n", "epochs = 3\n"), "baseline[0].epochs: 3 is not"),
    "not TOML": (_replace("[budget]", "[budget"), "is not TOML"),
    "bad budget": (_replace("trials = 2", "hours = -1.0"), "budget.hours: input should be greater"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_gives_one_line_and_exit_code_2(case: str, study: Path) -> None:
    spoil, words = WRONG[case]
    spoil(study)
    before = {path for path in study.parent.rglob("*") if "cache" not in path.parts}
    ended = run_cli("run", study)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1
    assert words in ended.err
    assert "secret" not in ended.err + ended.out
    after = {path for path in study.parent.rglob("*") if "cache" not in path.parts}
    left = {path.name for path in after - before}
    assert left <= {"storage", "artifacts", "qa_hpo.db.lock"}


def test_debug_shows_the_traceback(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(study, "trials = 2", "trails = 2")
    monkeypatch.setenv("QA_HPO_DEBUG", "1")
    ended = run_cli("check", study)
    assert ended.code == 2
    assert "Traceback" in ended.err


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1.5"])
def test_workers_are_auto_or_a_number(workers: str, study: Path) -> None:
    ended = run_cli("run", study, f"--workers={workers}")
    assert ended.code == 2
    assert "--workers" in ended.err


@pytest.mark.parametrize("command", ["status", "leaderboard", "export"])
def test_a_study_that_does_not_exist(command: str, study: Path) -> None:
    rest = ["out"] if command == "export" else []
    ended = run_cli(command, study, *rest)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert not Path("out").exists()


def test_score_agrees_with_values_worked_out_by_hand(study: Path) -> None:
    context = "The red lamp cost 5 euros in Žilina, and the blue lamp 7."
    gold = {
        "article": [("The red lamp", 0), ("red lamp", 4)],
        "two golds": [("5 euros", 18), ("5", 18)],
        "unicode": [("Žilina", 29)],
        "wrong": [("7", 55)],
        "none": [],
        "said something": [],
    }
    qas = [
        {
            "id": name,
            "question": "?",
            "is_impossible": not answers,
            "answers": [{"text": text, "answer_start": start} for text, start in answers],
        }
        for name, answers in gold.items()
    ]
    article = {"title": "Lamps", "paragraphs": [{"context": context, "qas": qas}]}
    write_json(Path("data.json"), {"version": "v2.0", "data": [article]})
    predictions = {
        "article": "a red lamp!",  # exact 1, F1 1: articles and punctuation do not count
        "two golds": "5 big euros",  # exact 0; F1 with "5 euros": 2 * (2/3 * 1) / (5/3) = 0.8
        "unicode": "žilina",  # exact 1
        "wrong": "",  # 0
        "none": "",  # 1
        "said something": "blue",  # 0
    }
    write_json(Path("predictions.json"), predictions)
    ended = run_cli("score", "data.json", "predictions.json", "--json")
    assert ended.code == 0
    scores = ended.json()
    assert scores["exact"] == pytest.approx(100 * 3 / 6)
    assert scores["f1"] == pytest.approx(100 * 3.8 / 6)
    assert scores["HasAns_f1"] == pytest.approx(100 * 2.8 / 4)
    assert scores["NoAns_f1"] == pytest.approx(50)
    assert (scores["total"], scores["HasAns_total"], scores["NoAns_total"]) == (6, 4, 2)
    # With null scores: answering all but "said something" (0.9) is best: 4.8 of 6.
    nulls = dict.fromkeys(predictions, 0.1) | {"said something": 0.9, "none": 0.8}
    write_json(Path("nulls.json"), nulls)
    ended = run_cli(
        "score", "data.json", "predictions.json", "--null-scores", "nulls.json", "--json"
    )
    assert ended.json()["best_f1"] == pytest.approx(100 * 4.8 / 6)
    assert ended.json()["best_f1_thresh"] == pytest.approx(0.1)


def test_score_names_a_question_without_a_prediction(study: Path) -> None:
    write_json(Path("predictions.json"), {"v0": "Port0"})
    ended = run_cli("score", "validation.json", "predictions.json")
    assert ended.code == 2
    assert "v1" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_answer_refuses_empty_and_unreadable_contexts(study: Path) -> None:
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    for name in ("empty.txt", "none.txt"):
        ended = run_cli("answer", "model", "--context", name, "--question", "Who?")
        assert ended.code == 2
        assert ended.err.startswith(f"error: {name}: ")


def test_train_refuses_a_folder_that_is_there(study: Path) -> None:
    ended = run_cli("train", study, "out")
    assert ended.code == 2
    assert "this is a study file" in ended.err
