"""Hyperparameter search and model selection for extractive question answering.

From Python, for instance in a notebook::

    from qa_hpo import QuestionAnswerer, StudyFile, export, leaderboard, run

    study = StudyFile.from_toml("study.toml")
    board = run(study)
    export(study, "winner")
    answerer = QuestionAnswerer.from_pretrained("winner")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qa_hpo.api import compare, export, leaderboard, report, run
    from qa_hpo.config import StudyFile
    from qa_hpo.finetune.predictor import Answer, QuestionAnswerer
    from qa_hpo.results.leaderboard import Leaderboard, Row

__all__ = [
    "Answer",
    "Leaderboard",
    "QuestionAnswerer",
    "Row",
    "StudyFile",
    "__version__",
    "compare",
    "export",
    "leaderboard",
    "report",
    "run",
]

__version__ = "0.1.0"

_PLACES = {
    "qa_hpo.api": ("compare", "export", "leaderboard", "report", "run"),
    "qa_hpo.config": ("StudyFile",),
    "qa_hpo.finetune.predictor": ("Answer", "QuestionAnswerer"),
    "qa_hpo.results.leaderboard": ("Leaderboard", "Row"),
}


def __getattr__(name: str) -> Any:
    # When they are asked for: the command line starts without torch and Optuna.
    from importlib import import_module  # noqa: PLC0415

    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(place), name)
    raise AttributeError(f"module 'qa_hpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
