"""Arguments and options that commands of the command line share, or that need many words."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from qa_hpo.completing import one_of, studies
from qa_hpo.config import DEFAULT_STORAGE

__all__ = [
    "DataArgument",
    "ForceOption",
    "JsonOption",
    "LauncherOption",
    "ModelArgument",
    "OwnTokensOption",
    "SlurmOption",
    "StorageOption",
    "StudyArgument",
    "StudyFileArgument",
    "StudyNameOption",
    "Tokens",
    "TokensOption",
    "WorkersOption",
    "WorkersPerDeviceOption",
]

StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="A study file, or the name of a study in --storage.",
        autocompletion=studies,
    ),
]
StudyNameOption = Annotated[
    str, typer.Option("--study", metavar="NAME", help="The study's name.", autocompletion=studies)
]
StudyFileArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file.")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=f"The study's database; else QA_HPO_STORAGE, the study file's, or {DEFAULT_STORAGE}.",
    ),
]
Tokens = Literal["words", "characters"]
TokensOption = Annotated[
    Tokens,
    typer.Option(
        help="What answers are compared by: words as in SQuAD, or characters as in CMRC 2018, for "
        "Chinese and Japanese."
    ),
]
OwnTokensOption = Annotated[
    Tokens | None,
    typer.Option(help="The same as for score; an export's own if left out.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="A SQuAD-format file, a saved data set or a hub id.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="An exported folder, a checkpoint folder or hub id.")
]
WorkersOption = Annotated[
    str, typer.Option(metavar="N|auto", help="Workers; auto: one per free GPU, or one on a CPU.")
]
WorkersPerDeviceOption = Annotated[
    int,
    typer.Option(metavar="N", help="Workers that may share a GPU; without one, this host's CPU."),
]
LauncherOption = Annotated[
    str,
    typer.Option(
        metavar="local|ray|slurm",
        help="What starts the workers, and where.",
        autocompletion=one_of("local", "ray", "slurm"),
    ),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="A parameter of the Slurm jobs, such as partition=gpu; may be repeated.",
    ),
]
