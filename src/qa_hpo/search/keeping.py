"""What is kept of trials in the artifact store, and what is collected from it."""

import csv
import io
import json
import logging
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.errors import ArtifactError, DiskFullError, LostArtifactError
from qa_hpo.finetune.records import EpochRecord, best_record
from qa_hpo.paths import RunPaths
from qa_hpo.search.artifacts import CheckpointStore, artifact_id, metadata, open_store, owner
from qa_hpo.search.choosing import candidates
from qa_hpo.search.failures import is_retried, lineages
from qa_hpo.search.finalists import finalists_among, finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import (
    REPEAT_OF,
    Kept,
    configuration_number,
    kept,
    trial_id,
)
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.corpus import Corpus

__all__ = ["Keeper", "collect", "leading_trials", "read_answers"]

_logger = logging.getLogger(__name__)

_ATTRIBUTE = "artifacts:"
# What is kept of the leading trials only, by the beginning of a file's name.
_OF_LEADING = ("checkpoint", "predictions")


class Keeper:
    """Keeps what a running trial has reached, for whichever worker goes on with it.

    Args:
        joined: The study.
        store: The artifact store.
        trial: The trial as it was handed out.
        paths: Where it is trained on this host.
    """

    def __init__(
        self, joined: JoinedStudy, store: CheckpointStore, trial: FrozenTrial, paths: RunPaths
    ) -> None:
        self.joined = joined
        self.store = store
        self.trial = trial
        self.paths = paths
        self.kept = kept(trial)
        self.tables: dict[str, str] = {}

    def restore(self) -> None:
        """Put the resume state where the run looks for it.

        Where it is gone, the trial begins anew: on the same hardware, that gives the same records
        again.

        Raises:
            ArtifactError: The store refuses.
            DiskFullError: There is no space for it.
        """
        if self.kept is None or self.kept.resume is None:
            return
        number, epoch = self.trial.number, self.kept.epoch
        try:
            self.store.get(self.kept.resume, self.paths.resume_state(epoch))
        except LostArtifactError as error:
            _logger.warning("trial %d begins anew: %s", number, error)
            self.kept = None
        else:
            _logger.info("trial %d goes on after epoch %d", number, epoch)

    def keep(self, records: Sequence[EpochRecord], *, last: bool) -> Kept:
        """Put the newest epoch's resume state into the store, and its weights if it is the best.

        With the weights goes what they answered.

        Args:
            records: The finished epochs, the newest last.
            last: Whether the run ends here, so that nobody goes on from it.

        Returns:
            Where they are. Nothing points to them before that is recorded.
        """
        epoch, best = records[-1].epoch, best_record(records)
        assert best is not None
        resume = None
        if not last:
            resume = artifact_id(self.joined.uid, self.trial.number, epoch)
            self.store.put(resume, self.paths.resume_state(epoch))
        if self.kept is not None and self.kept.checkpoint_epoch == best.epoch:
            checkpoint, answers = self.kept.checkpoint, self.kept.answers
        else:
            checkpoint = artifact_id(self.joined.uid, self.trial.number, best.epoch)
            self.store.put(checkpoint, self.paths.checkpoint(best.epoch))
            answers = None
            if self.paths.answers(best.epoch).is_file():
                answers = artifact_id(self.joined.uid, self.trial.number, best.epoch)
                self.store.put_bytes(answers, self.paths.answers(best.epoch).read_bytes())
        return Kept(epoch, resume, checkpoint, best.epoch, answers)

    def recorded(self, now: Kept) -> None:
        """Remove what was kept before, now that ``now`` is recorded."""
        before, self.kept = self.kept, now
        if before is not None:
            try:
                self.store.remove(before.keys() - now.keys())
            except ArtifactError as error:  # collected later
                _logger.warning("what was kept before is not removed: %s", error)

    def answers(self) -> Answered | None:
        """Return what the best checkpoint answered; None if that is not kept."""
        return None if self.kept is None else _answers(self.store, self.kept)

    def keep_tables(
        self, records: Sequence[EpochRecord], answered: Answered | None, corpus: Corpus
    ) -> None:
        """Put what people read into the store: the epochs, and the best one's predictions.

        A trial does not fail of them: without them, it has everything that counts.

        Args:
            records: All epochs.
            answered: What the best one's checkpoint answered, if that is kept.
            corpus: The questions.
        """
        if not records or self.kept is None:
            return
        last, best = records[-1].epoch, self.kept.checkpoint_epoch
        tables = {"epochs.csv": (last, "text/csv", _epoch_table(records))}
        if answered is not None:
            found = dict(zip(corpus.ids, answered.texts(corpus), strict=True))
            text = json.dumps(found, ensure_ascii=False, indent=0)
            tables[f"predictions-epoch-{best}.json"] = (best, "application/json", text)
        for name, (epoch, mimetype, text) in tables.items():
            key = artifact_id(self.joined.uid, self.trial.number, epoch)
            try:
                self.store.put_bytes(key, text.encode())
            except (ArtifactError, DiskFullError) as error:
                _logger.warning("%s of trial %d is not kept: %s", name, self.trial.number, error)
            else:
                self.tables |= [metadata(key, name, mimetype)]

    def metadata(self) -> dict[str, str]:
        """Return the system attributes by which dashboards know what is kept for good."""
        if self.kept is None:
            return {}
        epoch = self.kept.checkpoint_epoch
        known = [metadata(self.kept.checkpoint, f"checkpoint-epoch-{epoch}.tar")]
        if self.kept.answers is not None:
            known.append(metadata(self.kept.answers, f"scores-epoch-{epoch}.npz", _NUMPY))
        return {**dict(known), **self.tables}


_NUMPY = "application/zip"


def read_answers(joined: JoinedStudy, trial: FrozenTrial) -> Answered | None:
    """Return what a trial's best checkpoint answered to the validation questions.

    Returns:
        The answers; None if they are not kept, as of trials of versions that did not.

    Raises:
        ArtifactError: The store refuses.
    """
    what = kept(trial)
    return None if what is None else _answers(open_store(joined.file.artifacts.folder), what)


def _answers(store: CheckpointStore, what: Kept) -> Answered | None:
    if what.answers is None:
        return None
    try:
        return Answered.from_bytes(store.get_bytes(what.answers))
    except (LostArtifactError, ValueError) as error:
        _logger.warning("the answers of a checkpoint are not there: %s", error)
        return None


def _epoch_table(records: Sequence[EpochRecord]) -> str:
    rows = [record.as_dict() for record in records]
    for row in rows:
        # They are at other places than epochs' ends, for which a row has no room.
        row.pop("looks", None)
    file = io.StringIO()
    # An epoch may lack a metric that another one has, where a loss was not finite.
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def collect(joined: JoinedStudy, store: CheckpointStore) -> None:
    """Remove from the store what no trial needs any more.

    Needed are the resume states and checkpoints of trials that run, wait or are tried again, the
    checkpoints and predictions of the leading trials (see :func:`leading_trials`), and the scores
    and epochs of all that finished. Other checkpoints cannot be chosen any more; and of what a
    killed worker was about to keep, nobody knows.
    """
    # The store first: what is put there later belongs to a trial that is seen running below.
    try:
        stored = store.keys(joined.uid)
    except ArtifactError as error:
        _logger.warning("checkpoints are not collected: %s", error)
        return
    trials = joined.optuna_study.get_trials(deepcopy=False)
    by_number = {trial.number: trial for trial in trials}
    needed = _needed(joined, trials)
    useless = sorted(
        key
        for key in stored - needed
        if owner(key) in by_number and by_number[owner(key)].state is not TrialState.RUNNING
    )
    if not useless:
        return
    names = {f"{_ATTRIBUTE}{key}" for key in useless}
    for trial in trials:
        told = names & trial.system_attrs.keys()
        if told:
            # Before the bytes, so that nobody is offered what is gone.
            joined.storage.rdb.forget_system_attrs(trial_id(trial), sorted(told))
    try:
        store.remove(useless)
    except ArtifactError as error:
        _logger.warning("checkpoints are not collected: %s", error)
    else:
        _logger.info("collected %d artifacts that no trial needs any more", len(useless))


def _needed(joined: JoinedStudy, trials: Sequence[FrozenTrial]) -> set[str]:
    leading = set(leading_trials(joined, trials))
    needed: set[str] = set()
    for own in lineages(trials).values():
        what = kept(own[-1])
        if what is None:
            continue
        if not own[-1].state.is_finished() or is_retried(own):
            needed |= what.keys()
        elif own[-1].state is not TrialState.FAIL:
            leads = own[-1].number in leading
            needed |= {what.checkpoint} if leads else set()
            needed |= {what.answers} if what.answers is not None else set()
            needed |= _told_of(own[-1], leads=leads)
    return needed


def leading_trials(joined: JoinedStudy, trials: Sequence[FrozenTrial]) -> list[int]:
    """Return the numbers of the finished trials whose checkpoints are kept, the winner first.

    They are the first ``artifacts.keep`` of the leaderboard, feasible trials before others; those
    that the finals may choose; and where an old task is measured, those that a rule of an export
    may choose: more than ``artifacts.keep``, though hardly ever many, see
    :func:`choosing.candidates`.

    Args:
        joined: The study.
        trials: All its trials.
    """
    competing = finished_trials(joined)
    # Any trial of the finals may win, and of those that are still to come.
    finals = {configuration_number(trial) for trial in trials if REPEAT_OF in trial.user_attrs}
    evaluation = joined.file.evaluation
    chosen = set() if evaluation.old_task is None else candidates(competing)
    if evaluation.seeds > 1:
        finals |= set(finalists_among(trials, evaluation.finalists))
    return [
        trial.number
        for place, trial in enumerate(competing)
        if place < joined.file.artifacts.keep
        or configuration_number(trial) in finals
        or trial.number in chosen
    ]


def _told_of(trial: FrozenTrial, *, leads: bool) -> set[str]:
    """Return the keys that dashboards know of a trial, as far as they are to stay."""
    return {
        name.removeprefix(_ATTRIBUTE)
        for name, value in trial.system_attrs.items()
        if name.startswith(_ATTRIBUTE)
        and (leads or not json.loads(value)["filename"].startswith(_OF_LEADING))
    }
