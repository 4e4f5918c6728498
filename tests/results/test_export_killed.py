"""A process that is killed in the middle of an export leaves nothing half-written."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from killed_exports import export_and_die
from test_export import exported

from processes import finished, start
from qa_hpo.paths import new_folder
from qa_hpo.results.export import write_export


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed(folder: Path, where: str) -> None:
    finished(start(export_and_die, folder, folder / "out", where), code=-signal.SIGKILL)


def fail_to_make(out: Path) -> None:
    with new_folder(out, replace=True):
        raise ZeroDivisionError


@pytest.mark.parametrize("where", ["checkpoint", "replaced"])
def test_the_next_export_is_whole_and_clears_up(where: str, tmp_path: Path) -> None:
    if where == "replaced":
        write_export(exported(tmp_path), tmp_path / "out")
        (tmp_path / "out" / "mine.txt").write_text("mine")
    killed(tmp_path, where)
    assert not (tmp_path / "out").exists()
    (left,) = names(tmp_path) - {"checkpoint"}
    assert left.startswith(".out.")
    # The one that was put aside is back as soon as anything is made there, even if that fails.
    with pytest.raises(ZeroDivisionError):
        fail_to_make(tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").is_file() == (where == "replaced")
    assert names(tmp_path) == {"checkpoint"} | ({"out"} if where == "replaced" else set())
    assert write_export(exported(tmp_path), tmp_path / "out", force=True)
    assert names(tmp_path) == {"checkpoint", "out"}
    assert names(tmp_path / "out") == {
        *("config.json", "model.safetensors", "qa_hpo.toml", "metrics.json", "README.md"),
    }


def test_what_a_living_process_makes_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", replace=True) as first:
        (first / "a").write_text("a")
        with new_folder(tmp_path / "out", replace=True) as second:
            (second / "b").write_text("b")
        assert (first / "a").is_file()
    assert names(tmp_path / "out") == {"a"}


def test_other_hidden_folders_are_left_alone(tmp_path: Path) -> None:
    for name in (".out.run", ".out.abcdefgh", ".other.abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    with new_folder(tmp_path / "out", replace=True):
        pass
    assert names(tmp_path) == {"out", ".out.run", ".out.abcdefgh", ".other.abcdefgh"}
