"""Every code block of the README and the documentation is run, or says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

import pytest
import tomlkit
from typer.main import get_command

from docs_blocks import LANGUAGES, PAGES, ROOT, assert_alike, blocks, code_tokens, skeleton
from qa_hpo.cli import app
from tiny import squad, write_base, write_corpora

pytestmark = [pytest.mark.slow]

# What studies/demo.toml searches is searched here too, so that the leaderboard has its columns.
STUDY = {
    "study": {"name": "tiny", "seed": 3},
    "data": {"train": "train.json", "validation": "validation.json", "max_length": 40},
    "starts": {"base": "base"},
    "search": {
        "start": {"choices": ["base"]},
        "learning_rate": {"low": 1e-5, "high": 5e-3, "log": True},
        "epochs": {"low": 1, "high": 4},
        "weight_decay": {"low": 0.0, "high": 0.1},
        "doc_stride": {"choices": [8, 12]},
        "warmup": {"low": 0.0, "high": 0.2},
    },
    "pruning": {"across": "none"},
    "evaluation": {"doc_stride": 8},
    "budget": {"trials": 2},
    "baseline": [
        {"start": "base", "learning_rate": 1e-5, "epochs": 1, "weight_decay": 0.0}
        | {"doc_stride": 8, "warmup": 0.0},
        {"start": "base", "learning_rate": 4e-3, "epochs": 4, "weight_decay": 0.0}
        | {"doc_stride": 8, "warmup": 0.0},
    ],
}
KEEPS_THE_OLD = {
    **STUDY,
    "study": {"name": "keeps-the-old", "objectives": ["best_f1", "old_task_f1"]},
    "starts": {"v1": {"from": "base", "train": "old.json", "epochs": 1, "learning_rate": 3e-3}}
    | {"base": "base"},
    "search": {
        "start": {"choices": ["v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    },
    "training": {"epochs": 1, "doc_stride": 8},
    "evaluation": {"doc_stride": 8, "old_task": "old.json"},
    "pruning": {},
    "baseline": [],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the documentation's commands name, its studies finished."""
    folder = tmp_path_factory.mktemp("docs")
    write_corpora(folder)
    write_base(folder / "base")
    (folder / "old.json").write_text(json.dumps(squad(60, seed=4, impossible=0.0)))
    shutil.copy(folder / "validation.json", folder / "dev-v2.0.json")
    questions = [
        qa
        for article in json.loads((folder / "dev-v2.0.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    texts = {qa["id"]: qa["answers"][0]["text"] if qa["answers"] else "" for qa in questions}
    (folder / "predictions.json").write_text(json.dumps(texts))
    (folder / "null_odds.json").write_text(json.dumps(dict.fromkeys(texts, -1.5)))
    (folder / "text.txt").write_text("it is old . the tower was built by elise in 1702 . people")
    for name, study in {"study": STUDY, "keeps-the-old": KEEPS_THE_OLD}.items():
        (folder / f"{name}.toml").write_text(tomlkit.dumps(study))
    commands = folder / "bin"
    commands.mkdir()
    (commands / "qa-hpo").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qa_hpo "$@"\n')
    (commands / "qa-hpo").chmod(0o755)
    for name in ("study", "keeps-the-old"):
        ended = subprocess.run(
            [sys.executable, "-m", "qa_hpo", "run", f"{name}.toml"],
            cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def environment(folder: Path) -> dict[str, str]:
    """What the commands see: no hub, no storage of whoever runs the tests, one thread."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("QA_HPO_")}
    path = f"{folder / 'bin'}{os.pathsep}{own['PATH']}"
    return {**own, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "300"}


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, for one page, as the current one."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("QA_HPO_")]:
        monkeypatch.delenv(name)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if code_tokens(p)], ids=name_of)
def test_blocks_do_what_they_say(page: Path, folder: Path):
    if page.name == "quickstart.md":  # it begins before there is a study
        shutil.rmtree(folder / "storage")
    for example in blocks(page).examples():
        try:
            example.evaluate()
        except SkipTest as skipped:
            assert len(str(skipped).split()) > 2, f"{page}:{example.line} does not say why"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_is_overlooked(page: Path):
    found = {
        example.line for example in blocks(page).examples() if not isinstance(example.parsed, tuple)
    }
    for line, language in code_tokens(page):
        assert language in {*LANGUAGES, "python"}, f"{page}:{line}: {language or 'indented'}"
        assert line in found, f"{page}:{line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_named_exist(page: Path):
    named = set(re.findall(r"\bqa-hpo (?:--debug )?([a-z]+)\b", page.read_text(encoding="utf-8")))
    assert named <= set(get_command(app).commands)


def test_the_readme_shows_what_a_study_prints(folder: Path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition("```text\n")[2].partition("```")[0].splitlines()
    printed = subprocess.run(
        "qa-hpo leaderboard study.toml && qa-hpo export study.toml winner > /dev/null && "
        "qa-hpo answer winner --context text.txt --question 'Who built the tower ?'",
        shell=True, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert shown[0].split() == printed[0].split()

    def verdict(lines: list[str]) -> str:
        """The winner's line up to what follows from its figures, without words that differ."""
        (line,) = (line for line in lines if line.startswith("Winner: "))
        line = re.sub(r"\(.+?\), start \w+", "(ENDED), start NAME", line, count=1)
        return " ".join(skeleton(f"-  {line}")).rpartition(": ")[0]

    assert verdict(shown) == verdict(printed)
    answers = [line for line in shown if "answers from" in line]
    assert [skeleton(line) for line in answers] == [skeleton(printed[-1])] * 2


def test_shapes_that_differ_are_noticed():
    with pytest.raises(AssertionError):
        assert_alike({"a": 1, "b": 2}, {"a": 1}, "")
    with pytest.raises(AssertionError):
        assert_alike({"a": [1]}, {"a": ["1"]}, "")
    assert_alike({"a": [1.5], "b": None}, {"a": [1, 2], "b": "x"}, "")
