"""What a report tells of a study, read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import StudyFile
from qa_hpo.legible import mask
from qa_hpo.parameters import parameter_of
from qa_hpo.results.certainty import Certainty, certainty
from qa_hpo.results.leaderboard import Leaderboard, Row, competes, contenders, leaderboard
from qa_hpo.results.plots import importance_of
from qa_hpo.results.pruning_price import PruningPrice, pruning_price
from qa_hpo.search.budget import BEGUN, Spent, spent
from qa_hpo.search.failures import Cause
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import read_answers
from qa_hpo.search.promotion import Ladder
from qa_hpo.search.study import COMMITS, DATA, VERSIONS
from qa_hpo.search.trials import (
    CAUSE,
    ERROR,
    WORKER,
    configuration_number,
    epoch_records,
)
from qa_hpo.squad.answered import Answered

__all__ = ["Failure", "Origin", "Report", "Spending", "study_report"]

_COMPARED = 5  # trials whose F1 is shown at every threshold
# User attribute of a study: the scores on data.test by the trial's number, see held_out.TESTED,
# whose module imports torch.
_TESTED = "tested"


@dataclass(frozen=True)
class Failure:
    """A trial that failed for good: its number and start, and what it failed of."""

    number: int
    start: str
    cause: str
    error: str


@dataclass(frozen=True)
class Spending:
    """Where the training time of the trials of one start went.

    Attributes:
        start: The start.
        trials: Trials whose time is known.
        epochs: Their epochs.
        seconds: Their time, evaluation included.
        evaluation: Seconds of it that went into evaluation.
        stopped: Seconds of it that went into trials that were stopped early.
    """

    start: str
    trials: int
    epochs: int
    seconds: float
    evaluation: float
    stopped: float


@dataclass(frozen=True)
class Origin:
    """On what, with what and when a study ran.

    Attributes:
        fingerprints: Of the corpora and starts, by their key in the study file.
        commits: Of the hub's repositories, by "models/ID" and "datasets/ID".
        versions: Of the packages that the study was created with.
        questions: Validation questions.
        unanswerable: Those of them without an answer.
        articles: Articles that they are of.
        begun: When the first trial began.
        ended: When the last one that has ended did.
        workers: Worker processes that have had a trial.
        spent: What the study has spent.
        failures: Trials that failed for good.
        retried: Failed attempts after which a trial was tried again.
        tested: The winner's scores on ``data.test``: ``f1``, ``f1_interval``, ``total`` and more.
    """

    fingerprints: Mapping[str, str]
    commits: Mapping[str, str]
    versions: Mapping[str, str]
    questions: int | None
    unanswerable: int | None
    articles: int | None
    begun: datetime | None
    ended: datetime | None
    workers: int
    spent: Spent
    failures: tuple[Failure, ...]
    retried: int
    tested: Mapping[str, Any] | None


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        file: The study file, without the storage.
        board: The leaderboard.
        sure: How sure the answer is; None where nothing can be said.
        unsure: Why nothing can be said; empty otherwise.
        price: What pruning saved and cost.
        importance: How much each parameter matters, in shares of 1; None where that is not known.
        answers: What the leading trials answered, by their numbers, the winner first.
        configurations: For each trial on the leaderboard the number of the trial whose
            configuration it runs, perhaps its own.
        spending: Where the training time went, by start.
        origin: On what, with what and when the study ran.
    """

    file: StudyFile
    board: Leaderboard
    sure: Certainty | None
    unsure: str
    price: PruningPrice
    importance: Mapping[str, float] | None
    answers: Mapping[int, Answered]
    configurations: Mapping[int, int]
    spending: tuple[Spending, ...]
    origin: Origin

    @property
    def searched(self) -> list[str]:
        """The parameters that the search chooses, in the study file's order."""
        names = [
            parameter_of(name)
            for name, dimension in self.file.search.items()
            if dimension.value is None
        ]
        return list(dict.fromkeys(names))

    @property
    def contenders(self) -> list[Row]:
        """The trials that may win: those that do not forget too much, unless all do."""
        return contenders(self.board.trials, self.file.constraints.max_forgetting)

    @property
    def measured(self) -> list[Row]:
        """The trials that compete, the winner first."""
        return [row for row in self.board.trials if competes(row)]


def study_report(joined: JoinedStudy) -> Report:
    """Return what a report tells of a study; it may be going on.

    Raises:
        ArtifactError: The artifact store refuses.
    """
    trials = joined.optuna_study.get_trials(deepcopy=False)
    by_number = {trial.number: trial for trial in trials}
    board = leaderboard(joined)
    answers = _leading_answers(joined, board, by_number)
    sure = certainty(joined, board)
    study = joined.file.study.model_copy(update={"storage": None})
    on_board = {row.number: by_number[row.number] for row in board.trials}
    return Report(
        file=joined.file.model_copy(update={"study": study}),
        board=board,
        sure=sure,
        unsure="" if sure is not None else _why_unsure(board, answers),
        price=pruning_price(joined),
        importance=importance_of(joined),
        answers=answers,
        configurations={n: configuration_number(trial) for n, trial in on_board.items()},
        spending=_spending(board, by_number),
        origin=_origin(joined, board, trials, answers),
    )


def _leading_answers(
    joined: JoinedStudy, board: Leaderboard, trials: Mapping[int, FrozenTrial]
) -> dict[int, Answered]:
    leading = [row.number for row in board.trials if competes(row)][:_COMPARED]
    found = {number: read_answers(joined, trials[number]) for number in leading}
    return {number: answered for number, answered in found.items() if answered is not None}


def _why_unsure(board: Leaderboard, answers: Mapping[int, Answered]) -> str:
    if board.winner is None:
        return "no trial has been measured"
    if board.winner.number not in answers:
        return "what the winner answered is not kept"
    return "the validation questions are of one article"


def _spending(board: Leaderboard, trials: Mapping[int, FrozenTrial]) -> tuple[Spending, ...]:
    starts = dict.fromkeys(str(row.params["start"]) for row in board.trials)
    found = []
    for start in sorted(starts):
        own = [
            (row, row.train_seconds)
            for row in board.trials
            if row.params["start"] == start and row.train_seconds is not None
        ]
        if not own:
            continue
        records = [record for row, _ in own for record in epoch_records(trials[row.number])]
        stopped = [time for row, time in own if row.state == TrialState.PRUNED.name]
        found.append(
            Spending(
                start=start,
                trials=len(own),
                epochs=len(records),
                seconds=sum(time for _, time in own),
                evaluation=sum(record.get("eval_seconds") or 0.0 for record in records),
                stopped=sum(stopped),
            )
        )
    return tuple(found)


def _origin(
    joined: JoinedStudy,
    board: Leaderboard,
    trials: Sequence[FrozenTrial],
    answers: Mapping[int, Answered],
) -> Origin:
    attributes = joined.optuna_study.user_attrs
    records = (record for trial in trials for record in epoch_records(trial))
    sizes = next((record for record in records if record.get("total") is not None), {})
    some = next(iter(answers.values()), None)
    by_number = {trial.number: trial for trial in trials}
    gone = [trial for trial in trials if trial.state is TrialState.FAIL]
    failed = [row.number for row in board.trials if row.state == TrialState.FAIL.name]
    winner = None if board.winner is None else str(board.winner.number)
    tested = attributes.get(_TESTED, {})
    return Origin(
        fingerprints=attributes.get(DATA, {}),
        commits=attributes.get(COMMITS, {}),
        versions=attributes.get(VERSIONS, {}),
        questions=_whole(sizes.get("total")),
        # The official metrics leave out what there is none of.
        unanswerable=_whole(sizes.get("NoAns_total", 0)) if sizes else None,
        articles=None if some is None else len(np.unique(some.groups)),
        begun=_begun(attributes, trials),
        ended=max((_utc(t.datetime_complete) for t in trials if t.datetime_complete), default=None),
        workers=len({trial.user_attrs[WORKER] for trial in trials if WORKER in trial.user_attrs}),
        spent=spent(joined.optuna_study, trials=trials, ladder=Ladder.of(joined.file, trials)),
        failures=tuple(_failure(joined, by_number[number]) for number in failed),
        retried=len(gone) - len(failed),
        tested=tested.get(winner),
    )


def _failure(joined: JoinedStudy, trial: FrozenTrial) -> Failure:
    attributes = trial.user_attrs
    return Failure(
        number=trial.number,
        start=joined.space.parameters_of(trial.params).start,
        cause=str(attributes.get(CAUSE, Cause.WORKER_DIED)),
        error=mask(str(attributes.get(ERROR, "its worker ended"))),
    )


def _begun(attributes: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> datetime | None:
    if BEGUN in attributes:
        return datetime.fromisoformat(attributes[BEGUN]).astimezone(UTC)
    return min(
        (_utc(trial.datetime_start) for trial in trials if trial.datetime_start), default=None
    )


def _utc(local: datetime) -> datetime:
    return local.astimezone(UTC)  # Optuna stores local times without a zone


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
