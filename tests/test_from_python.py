"""The commands' work from Python, as a notebook does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qa_hpo
from qa_hpo.search.storage import open_storage
from report_study import ReportStudy, answers

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "search_from_python.py"
PARAMS = {"start": "base", "learning_rate": 1e-4, "epochs": 2}


def test_everything_that_it_offers_is_there():
    for name in qa_hpo.__all__:
        assert getattr(qa_hpo, name) is not None
    assert set(qa_hpo.__all__) <= set(dir(qa_hpo))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = qa_hpo.nothing


def test_importing_it_is_quick():
    """The command line imports it, and starts without torch and Optuna."""
    code = "import sys, qa_hpo; print([n for n in ('torch', 'optuna') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_reads_a_study_imports_no_torch(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url, create=True)
    study = ReportStudy(storage, tmp_path / "artifacts")
    for number in range(2):
        study.end([1.0, 0.9], answers(0.5, seed=number), None if number == 0 else PARAMS)
    storage.close()
    code = f"""
import sys
from qa_hpo import compare, export, leaderboard, report
board = leaderboard("demo", storage={url!r})
assert len(board.trials) == 2
compare("demo", 1, 0, storage={url!r})
report("demo", "report.html", storage={url!r})
print([n for n in ("torch", "transformers", "datasets", "evaluate") if n in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_the_example_does_what_it_says(tmp_path: Path):
    command = [sys.executable, EXAMPLE, "--folder", tmp_path, "--trials", "2", "--questions", "60"]
    environment = {**os.environ, "QA_HPO_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("QA_HPO_STORAGE", None)
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("study 'example' created" in line for line in lines)
    metrics = json.loads((tmp_path / "winner" / "metrics.json").read_text())
    (said,) = (line for line in lines if line.startswith(f"trial {metrics['trial']} has F1"))
    assert f"has F1 {metrics['best_f1']:.2f}" in said
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert lines[-1].startswith("When was the River Falengor dammed? ")


def test_a_mistake_is_one_line():
    with pytest.raises(qa_hpo.config.StudyFileError, match=r"^study: budget: "):
        qa_hpo.StudyFile.from_dict(
            {
                "study": {"name": "x"},
                "data": {"train": "a", "validation": "b"},
                "starts": {"base": "c"},
                "budget": {},
            }
        )
