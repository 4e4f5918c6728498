"""What `qa-hpo version` tells for a bug report, and what it keeps to itself."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from cli_helpers import run_cli
from qa_hpo import __version__, about


def test_without_options_it_is_the_version_alone() -> None:
    plain = run_cli("version")
    assert (plain.code, plain.out, plain.err) == (0, f"qa-hpo {__version__}\n", "")
    assert plain == run_cli("--version")


def test_json_holds_what_a_bug_report_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("QA_HPO_STORAGE", raising=False)
    facts = run_cli("version", "--json").json()
    assert facts["qa_hpo"] == __version__
    assert platform.python_version() in facts["python"]
    for package in ("torch", "transformers", "optuna", "SQLAlchemy", "optuna-dashboard"):
        assert facts["packages"][package] == importlib.metadata.version(package)
    assert set(facts["extras"]) == {"postgres", "ray", "slurm", "s3"}
    assert facts["extras"]["s3"] == importlib.metadata.version("boto3")
    assert facts["devices"]["cuda"] == torch.version.cuda
    assert len(facts["devices"]["gpus"]) == torch.cuda.device_count()
    assert facts["storage"] == {"url": "sqlite:///storage/qa_hpo.db", "from": "default"}
    assert facts["environment"]["HF_HUB_OFFLINE"] == "1"


def test_verbose_is_the_same_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(about._EXTRAS, "ray", "a-package-that-is-not-there")
    lines = run_cli("version", "--verbose").out.splitlines()
    assert lines[0] == f"qa_hpo: {__version__}"
    assert f"  torch             {importlib.metadata.version('torch')}" in lines
    assert "  ray       -" in lines


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://alice:hush@db.example:5432/qa", "postgresql://***@db.example:5432/qa"),
        ("postgresql://alice@db/qa?password=hush&sslmode=off", "postgresql://***@db/qa"),
        ("postgresql://alice:hu@sh@db/qa", "postgresql://***@db/qa"),
        ("sqlite:////home/alice/work/a.db", "sqlite:///~/work/a.db"),
        ("sqlite:////data/alice/a.db", "sqlite:////data/***/a.db"),
        ("hush", "not the URL of a storage"),
    ],
)
def test_no_secret_and_no_user(url: str, shown: str) -> None:
    """In a process whose user is alice: the environment tells who that is."""
    environment = {
        **os.environ,
        **{"QA_HPO_STORAGE": url, "LOGNAME": "alice", "HOME": "/home/alice"},
        **{"HF_HOME": "/home/alice/hub", "QA_HPO_CACHE": "/scratch/alice/cache"},
    }
    script = (
        "import json\nfrom qa_hpo import about\nabout._devices = dict\n"
        "print(json.dumps(about.about()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["storage"] == {"url": shown, "from": "QA_HPO_STORAGE"}
    assert facts["environment"]["HF_HOME"] == "~/hub"
    assert facts["environment"]["QA_HPO_CACHE"] == "/scratch/***/cache"
    assert "alice" not in done.stdout
    assert "hush" not in done.stdout


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setenv("QA_HPO_CACHE", "/scratch/some/cache")
    monkeypatch.setattr(about, "_devices", dict)
    assert about.about()["environment"]["QA_HPO_CACHE"] == "/scratch/some/cache"
