"""The commands' work from Python, as a notebook does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qa_hpo

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "search_from_python.py"


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
