"""What processes run that export and are killed on the way."""

import shutil
from pathlib import Path

from test_export import exported

from processes import dies_in
from qa_hpo.results.export import write_export


def export_and_die(folder: Path, out: Path, where: str) -> None:
    """Write an export to ``out``, and die after the checkpoint or while ``out`` is replaced."""
    if where == "checkpoint":
        dies_in(shutil, "copytree", 1, after=True)
    else:
        # What is there has been put aside, and the new folder is about to take its place: with two
        # files and the card written by then, each by a replacing of its own.
        dies_in(Path, "replace", 4, after=True)
    write_export(exported(folder), out, force=True)
