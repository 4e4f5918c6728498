"""What is kept of trials in the artifact store, and what is collected from it."""

import logging
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.errors import ArtifactError, LostArtifactError
from qa_hpo.finetune.records import EpochRecord, best_record
from qa_hpo.paths import RunPaths
from qa_hpo.search.artifacts import CheckpointStore, artifact_id, metadata, owner
from qa_hpo.search.failures import is_retried, lineages
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import Kept, finished_trials, kept, trial_id

__all__ = ["Keeper", "collect"]

_logger = logging.getLogger(__name__)


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
        """Put the newest epoch's resume state, and its weights if it is the best, into the store.

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
            checkpoint = self.kept.checkpoint
        else:
            checkpoint = artifact_id(self.joined.uid, self.trial.number, best.epoch)
            self.store.put(checkpoint, self.paths.checkpoint(best.epoch))
        return Kept(epoch, resume, checkpoint, best.epoch)

    def recorded(self, now: Kept) -> None:
        """Remove what was kept before, now that ``now`` is recorded."""
        before, self.kept = self.kept, now
        if before is not None:
            try:
                self.store.remove(before.keys() - now.keys())
            except ArtifactError as error:  # collected later
                _logger.warning("what was kept before is not removed: %s", error)

    def metadata(self) -> dict[str, str]:
        """Return the system attributes by which dashboards know the best checkpoint."""
        if self.kept is None:
            return {}
        name = f"checkpoint-epoch-{self.kept.checkpoint_epoch}.tar"
        return dict([metadata(self.kept.checkpoint, name)])


def collect(joined: JoinedStudy, store: CheckpointStore) -> None:
    """Remove from the store what no trial needs any more.

    Needed are the resume states and checkpoints of trials that run, wait or are tried again, and
    the checkpoints of the ``artifacts.keep`` leading trials. Others cannot win any more; and of
    what a killed worker was about to keep, nobody knows.
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
    names = {f"artifacts:{key}" for key in useless}
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
    leading = {
        trial.number for trial in finished_trials(joined.optuna_study)[: joined.file.artifacts.keep]
    }
    needed: set[str] = set()
    for own in lineages(trials).values():
        what = kept(own[-1])
        if what is None:
            continue
        if not own[-1].state.is_finished() or is_retried(own):
            needed |= what.keys()
        elif own[-1].number in leading:
            needed.add(what.checkpoint)
    return needed
