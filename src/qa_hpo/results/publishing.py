"""What workers put into a study's dashboard as trials finish: notes and plots."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial
from optuna_dashboard._custom_plot_data import SYSTEM_ATTR_PLOT_DATA, split_plot_data
from optuna_dashboard._note import note_str_key_prefix, note_ver_key, split_body
from plotly.graph_objects import Figure

from qa_hpo.errors import ArtifactError
from qa_hpo.results.leaderboard import Leaderboard, competes, leaderboard
from qa_hpo.results.notes import study_note, trial_note
from qa_hpo.results.pareto import trade_off
from qa_hpo.results.plots import f1_by_start, f1_by_threshold, loss_curves
from qa_hpo.results.significance import tuned_interval
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import read_answers
from qa_hpo.search.trials import trial_id
from qa_hpo.squad.answered import Answered

__all__ = ["Publisher", "judge", "leading_answers"]

_logger = logging.getLogger(__name__)

PUBLISHED = "published"
"""User attribute of a study: when its note and plots were written last, in seconds of the epoch."""
OUR_NOTE = "qa_hpo:note_ver"
"""System attribute: the version of the note that was written last by a worker."""

# Of all notes that workers write. The dashboard lets nobody save who has begun to edit a version
# before the newest one, and workers write too often for that.
_VERSION = 1
# What the plots are called in the dashboard.
_PLOTS = ("validation-loss", "f1-by-start", "f1-by-threshold", "old-task-f1-by-best-f1")
# No more often than this, and never more than a twentieth of a worker's time.
_SECONDS = 10.0
_SHARE = 0.05


def judge(answered: Answered) -> dict[str, Any]:
    """Return the user attributes that tell how sure a trial's best F1 is."""
    found = tuned_interval(answered)
    return {} if found is None else {"best_f1_interval": [found.low, found.high]}


def leading_answers(
    joined: JoinedStudy, board: Leaderboard, known: Mapping[int, Answered] | None = None
) -> dict[int, Answered]:
    """Return what the leading trials' checkpoints answered, by the trials' numbers, best first.

    Args:
        joined: The study.
        board: Its leaderboard.
        known: Answers that need not be read again.

    Returns:
        The answers of the ``artifacts.keep`` leading trials, as far as they are kept.

    Raises:
        ArtifactError: The artifact store refuses.
    """
    known = known or {}
    trials = {trial.number: trial for trial in joined.optuna_study.get_trials(deepcopy=False)}
    leading = [row.number for row in board.trials if competes(row)]
    found = {
        number: known.get(number) or read_answers(joined, trials[number])
        for number in leading[: joined.file.artifacts.keep]
    }
    return {number: answered for number, answered in found.items() if answered is not None}


@dataclass
class Publisher:
    """Writes notes and plots of a study, where a dashboard finds them.

    Attributes:
        joined: The study.
        known: What leading trials answered, as far as it has been read.
    """

    joined: JoinedStudy
    known: dict[int, Answered] = field(default_factory=dict)
    _next: float = 0.0

    def trial_finished(self, trial: FrozenTrial) -> None:
        """Write a finished trial's note, and the study's note and plots unless they are fresh."""
        joined, key = self.joined, trial_id(trial)
        finished = joined.storage.rdb.get_trial(key)
        if not finished.state.is_finished():  # it was lost, and another worker goes on with it
            return
        note = _note(trial_note(joined, finished), key)
        # Somebody may have written one while it ran.
        if note_ver_key(key) not in joined.storage.rdb.get_study_system_attrs(joined.key):
            joined.storage.rdb.write_study(joined.key, note, prefixes=[note_str_key_prefix(key)])
        if time.monotonic() >= self._next and not self._is_fresh():
            self.study()

    def study(self) -> None:
        """Write the study's note and plots."""
        began = time.monotonic()
        joined = self.joined
        # Others see this at once and leave it to us.
        joined.optuna_study.set_user_attr(PUBLISHED, time.time())
        board = leaderboard(joined)
        attributes: dict[str, Any] = {}
        prefixes = []
        for name, figure in self._figures(board).items():
            prefixes.append(f"{SYSTEM_ATTR_PLOT_DATA}{name}:")
            attributes |= split_plot_data(figure.to_json(), prefixes[-1])
        note = _note(study_note(joined, board), None)
        # As late as possible, and a note that is somebody's own by now is not even looked at.
        stored = joined.storage.rdb.get_study_system_attrs(joined.key)
        if stored.get(note_ver_key(None)) == stored.get(OUR_NOTE):
            attributes |= {**note, OUR_NOTE: _VERSION}
            prefixes.append(note_str_key_prefix(None))
        joined.storage.rdb.write_study(joined.key, attributes, prefixes=prefixes)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(_SECONDS, took / _SHARE)

    def _figures(self, board: Leaderboard) -> Mapping[str, Figure]:
        rows = board.trials
        losses, starts, thresholds, old_task = _PLOTS
        figures = {losses: loss_curves(rows), starts: f1_by_start(rows, baseline=board.baseline)}
        file = self.joined.file
        if file.evaluation.old_task is not None:
            figures[old_task] = trade_off(rows, most=file.constraints.max_forgetting)
        try:
            self.known = leading_answers(self.joined, board, self.known)
        except ArtifactError as error:  # next time, perhaps
            _logger.warning("a plot is made of what is known: %s", error)
        if self.known:
            labelled = {f"trial {number}": answered for number, answered in self.known.items()}
            figures[thresholds] = f1_by_threshold(labelled)
        return figures

    def _is_fresh(self) -> bool:
        published = self.joined.optuna_study.user_attrs.get(PUBLISHED, 0.0)
        return bool(abs(time.time() - published) < _SECONDS)


def _note(body: str, trial: int | None) -> dict[str, Any]:
    """Return the system attributes of a study by which the dashboard knows a note.

    All are written at once, which the dashboard's own function does not do.
    """
    return {note_ver_key(trial): _VERSION, **split_body(body, trial)}
