"""Every code block of the README and the documentation is run, or says why not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
import tomlkit
from docs_blocks import LANGUAGES, PAGES, ROOT, assert_alike, blocks, code_tokens, skeleton
from typer.main import get_command

from cli_helpers import run_cli
from qa_hpo.cli import app
from qa_hpo.config import to_toml
from qa_hpo.errors import StudyFileError
from qa_hpo.search.storage import open_storage
from tiny import write_base, write_corpora
from told_study import TWO, ToldStudy

pytestmark = [pytest.mark.slow]

# What studies/demo.toml searches is searched here too, so that the leaderboard has its columns.
STUDY = {
    "study": {"name": "tiny", "seed": 3},
    "data": {"train": "train.json", "validation": "validation.json", "max_length": 40}
    | {"train_limit": 96},
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
        {"start": "base", "learning_rate": 4e-3, "epochs": 2, "weight_decay": 0.0}
        | {"doc_stride": 8, "warmup": 0.0},
    ],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the documentation's commands name, after the quickstart's commands."""
    folder = tmp_path_factory.mktemp("docs")
    write_corpora(folder)
    write_base(folder / "base")
    write_predictions(folder)
    (folder / "text.txt").write_text("it is old . the tower was built by elise in 1702 . people")
    (folder / "study.toml").write_text(tomlkit.dumps(STUDY))
    commands = folder / "bin"
    commands.mkdir()
    (commands / "qa-hpo").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qa_hpo "$@"\n')
    (commands / "qa-hpo").chmod(0o755)
    with in_folder(folder):
        evaluate_blocks(ROOT / "docs" / "quickstart.md")
        write_keeps_the_old()
    return folder


def write_predictions(folder: Path) -> None:
    """Write questions, right answers to all of them, and null scores."""
    shutil.copy(folder / "validation.json", folder / "dev-v2.0.json")
    articles = json.loads((folder / "dev-v2.0.json").read_text())["data"]
    questions = [qa for article in articles for qa in article["paragraphs"][0]["qas"]]
    texts = {qa["id"]: qa["answers"][0]["text"] if qa["answers"] else "" for qa in questions}
    (folder / "predictions.json").write_text(json.dumps(texts))
    (folder / "null_odds.json").write_text(json.dumps(dict.fromkeys(texts, -1.5)))


def write_keeps_the_old() -> None:
    """Write a study with two objectives, its file and its finished trials, without training."""
    storage = open_storage("sqlite:///storage/qa_hpo.db", create=True)
    named = {**TWO, "name": "keeps-the-old"}
    study = ToldStudy(storage, Path(), study=named, artifacts={"folder": "storage/artifacts"})
    study.end(80.0, 40.0, 20.0)
    study.end(75.0, 57.5, 2.5)
    Path("keeps-the-old.toml").write_text(to_toml(study.joined.file))
    storage.close()


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Make a folder the current one, with the environment that its commands are to see."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        for name in [name for name in os.environ if name.startswith("QA_HPO_")]:
            patch.delenv(name)
        # No hub, one thread, and a terminal that is wide enough for every column.
        for name, value in {
            **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that folder, for one page, as the current one."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    with in_folder(tmp_path):
        yield tmp_path


def evaluate_blocks(page: Path) -> None:
    """Evaluate a page's blocks one after the other; those that say why not are left out."""
    for example in blocks(page).examples():
        with contextlib.suppress(SkipTest):
            example.evaluate()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_code(page: Path) -> bool:
    # The quickstart has been evaluated where the folder was prepared.
    return bool(code_tokens(page)) and page.name != "quickstart.md"


@pytest.mark.parametrize("page", [p for p in PAGES if with_code(p)], ids=name_of)
def test_blocks_do_what_they_say(page: Path, folder: Path):
    evaluate_blocks(page)


def test_the_quickstart_leaves_a_model_that_answers(prepared: Path):
    assert json.loads((prepared / "winner" / "metrics.json").read_text())["total"] == 60


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_is_overlooked(page: Path):
    found = set()
    for example in blocks(page).examples():
        if isinstance(example.parsed, tuple):  # a mark
            action, reason = example.parsed
            assert action == "next", f"{page}:{example.line}: one mark for each block"
            assert len((reason or "").split()) > 2, f"{page}:{example.line}: why not?"
        else:
            found.add(example.line)
    for line, language in code_tokens(page):
        assert language in {*LANGUAGES, "python"}, f"{page}:{line}: {language or 'indented'}"
        assert line in found, f"{page}:{line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_named_exist(page: Path):
    named = set(re.findall(r"\bqa-hpo (?:--debug )?([a-z]+)\b", page.read_text(encoding="utf-8")))
    assert named <= set(get_command(app).commands)


def test_the_readme_shows_what_a_study_prints(folder: Path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition("```text\n")[2].partition("```")[0]
    question = ["--question", "Who built the tower ?"]
    board = run_cli("leaderboard", "study.toml").out
    answer = run_cli("answer", "winner", "--context", "text.txt", *question).out
    # A terminal that is not wide leaves columns out; those that it has are in their order.
    headings = re.split(r" {2,}", board.splitlines()[0].strip())
    columns = re.split(r" {2,}", shown.splitlines()[0].strip())
    assert columns == [heading for heading in headings if heading in columns]
    assert {"trial", "ended", "start", "best F1", "95% interval", "threshold"} <= set(columns)

    def verdict(printed: str) -> str:
        """The words about the winner, up to what follows from its figures."""
        words = " ".join(printed.partition("Winner: ")[2].partition("\n\n")[0].split())
        words = re.sub(r"\(.+?\), start \w+", "(ENDED), start NAME", words, count=1)
        figures, interval, _ = " ".join(skeleton(f"-  {words}")).partition("interval N to N")
        return figures + interval

    assert "the baseline (trial N) has N: N, N% interval N to N" in verdict(shown)
    assert verdict(shown) == verdict(board)
    answers = [line for line in shown.splitlines() if "answers from" in line]
    assert [skeleton(line) for line in answers] == [skeleton(answer)] * 2


def test_shapes_that_differ_are_noticed():
    with pytest.raises(AssertionError):
        assert_alike({"a": 1, "b": 2}, {"a": 1}, "")
    with pytest.raises(AssertionError):
        assert_alike({"a": [1]}, {"a": ["1"]}, "")
    assert_alike({"a": [1.5], "b": None}, {"a": [1, 2], "b": "x"}, "")


def test_a_fragment_that_no_study_file_could_have_is_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("```toml\n[pruning]\npatiense = 1\n```\n")
    with pytest.raises(StudyFileError, match="did you mean 'patience'"):
        evaluate_blocks(page)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_what_is_linked_outside_the_site_is_there(page: Path):
    """The site's own links are checked when it is built."""
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []
