"""What a real bash offers when Tab is pressed after ``qa-hpo ...``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from qa_hpo.search.storage import open_storage

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash")

# The line as it was typed, split as bash does, and the script's own function called as it would.
ASK = r"""
source "$1"
for line in "${@:2}"; do
    read -ra COMP_WORDS <<< "$line"
    [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    complete -p qa-hpo > /dev/null || exit 3
    _qa_hpo_completion qa-hpo
    (IFS='|'; echo "${COMPREPLY[*]}")
done
"""


def bash(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    assert BASH is not None
    programs = sysconfig.get_path("scripts")
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "SHELL": BASH,
    }
    environment.pop("QA_HPO_STORAGE", None)
    command = [BASH, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script that --show-completion prints, in a folder with studies to choose from."""
    folder = tmp_path_factory.mktemp("completion")
    shown = bash("-c", "qa-hpo --show-completion && true", folder=folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    path = folder / "script.sh"
    path.write_text(shown.stdout, encoding="utf-8")
    (folder / "study.toml").touch()
    (folder / "notes.txt").touch()
    (folder / "studies").mkdir()
    (folder / "studies" / "big.toml").touch()
    storage = open_storage(f"sqlite:///{folder}/storage/qa_hpo.db", create=True)
    for name in ("squad-first", "squad-second", "with spaces"):
        storage.rdb.create_new_study([], name)
    storage.close()
    return path


def offered(script: Path, *lines: str) -> list[list[str]]:
    done = bash("-c", ASK, "bash", script, *lines, folder=script.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("|") for line in done.stdout.splitlines()]


def test_commands_options_and_values(script: Path) -> None:
    commands, one, options, launchers, formats = offered(
        script,
        "qa-hpo ",
        "qa-hpo lead",
        "qa-hpo run --work",
        "qa-hpo run study.toml --launcher ",
        "qa-hpo report squad-first --format m",
    )
    assert {"run", "check", "status", "export", "version"} <= set(commands)
    assert one == ["leaderboard"]
    assert options == ["--workers", "--workers-per-device"]
    assert launchers == ["local", "ray", "slurm"]
    assert formats == ["md"]


def test_studies_by_file_and_by_name(script: Path) -> None:
    before = sorted(path for path in script.parent.rglob("*"))
    everything, named, inside, elsewhere, nobody, files = offered(
        script,
        "qa-hpo status s",
        "qa-hpo worker --study squad-f",
        "qa-hpo leaderboard studies/",
        "qa-hpo status --storage sqlite:///nothing.db squ",
        "qa-hpo status ~nosuchuser/",
        "qa-hpo run st",
    )
    assert everything == ["squad-first", "squad-second", "storage/", "studies/", "study.toml"]
    assert named == ["squad-first"]
    assert inside == ["studies/big.toml"]
    assert elsewhere == nobody == [""]
    # A file only: bash itself offers those, where nothing else is offered ("-o default").
    assert files == [""]
    assert "complete -o default" in script.read_text(encoding="utf-8")
    assert sorted(path for path in script.parent.rglob("*")) == before


def test_it_is_installed_where_bash_looks(tmp_path: Path) -> None:
    done = bash("-c", "qa-hpo --install-completion && true", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bash_completions" / "qa-hpo.sh").is_file()
    assert "qa-hpo.sh" in (tmp_path / ".bashrc").read_text(encoding="utf-8")
    shown = bash("-ic", "complete -p qa-hpo", folder=tmp_path)
    assert "_qa_hpo_completion" in shown.stdout
