"""What a trial's attributes are called, and how a trial is finished.

A finished trial has the user attributes ``best_epoch``, ``f1``, ``exact``, ``best_f1``,
``best_exact``, ``threshold``, ``crossfit_f1``, ``train_seconds``, ``worker``, ``epochs`` (its
epoch records), and ``stop_reason`` if it was stopped, with ``looks`` if that was within an epoch.
A failed one has ``cause`` and ``error``.
"""

import contextlib
import copy
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.errors import WorkError
from qa_hpo.legible import mask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.pruning import STOP_REASONS

__all__ = [
    "BASELINE",
    "CAUSE",
    "CPU_THREADS",
    "DEVICE_BATCH",
    "DOING",
    "EPOCHS",
    "EPOCHS_RESERVED",
    "ERROR",
    "FORGETTING",
    "KEPT",
    "LOOKS",
    "PEAK_MEMORY",
    "REPEAT_OF",
    "STOP_REASON",
    "WORKER",
    "Kept",
    "LostTrialError",
    "configuration_number",
    "epoch_records",
    "excess",
    "fail",
    "finish",
    "forgotten",
    "kept",
    "lineage_number",
    "record_epoch",
    "trial_id",
    "with_reports",
]

EPOCHS = "epochs"
"""User attribute: the epoch records, a list of dictionaries."""
EPOCHS_RESERVED = "epochs_reserved"
"""User attribute: after how many epochs the budget ends the trial."""
LOOKS = "looks"
"""User attribute: the looks of the epoch within which the trial ended, each a list of its position,
in epochs, and its validation loss."""
STOP_REASON = "stop_reason"
"""User attribute: why the trial ended before its last epoch."""
WORKER = "worker"
"""User attribute: who ran the trial."""
BASELINE = "baseline"
"""User attribute: the name of the ``[[baseline]]`` entry that the trial runs."""
REPEAT_OF = "repeat_of"
"""User attribute: the number of the trial whose configuration this one runs with another seed."""
CPU_THREADS = "cpu_threads"
"""User attribute: threads that the run computed with, on a CPU; its sums depend on them."""
CAUSE = "cause"
"""User attribute: the cause of which a trial failed, one of ``failures.Cause``."""
ERROR = "error"
"""User attribute: what a failed trial failed of, in one line."""
DEVICE_BATCH = "device_batch"
"""User attribute: windows that went through the model at once, where a batch did not fit."""
PEAK_MEMORY = "peak_memory_mib"
"""User attribute: the most memory that the run held at once, of the device or of the host."""
DOING = "qa_hpo:doing"
"""System attribute: what the worker is at, in words."""
KEPT = "qa_hpo:kept"
"""System attribute: a ``Kept`` as a dictionary."""
FORGETTING = "constraints:max_forgetting"
"""System attribute, named as ``Trial.set_constraint`` does it: points of F1 that a trial forgets
less those that ``constraints.max_forgetting`` allows. Above 0, samplers take it for infeasible."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a trial that is not finished, by the keys of the artifact store.

    Attributes:
        epoch: Finished epochs.
        resume: What it takes to go on after them; None after the last one.
        checkpoint: The weights of the best of them.
        checkpoint_epoch: Which one that is.
        answers: What it answered, a ``squad.answered.Answered``; None of trials of versions that
            did not keep it.
    """

    epoch: int
    resume: str | None
    checkpoint: str
    checkpoint_epoch: int
    answers: str | None = None

    def keys(self) -> set[str]:
        """Return the keys of all that is kept."""
        return {key for key in (self.resume, self.checkpoint, self.answers) if key is not None}


class LostTrialError(WorkError):
    """The trial is no longer this worker's: another one finished it or took it over."""


def trial_id(trial: FrozenTrial) -> int:
    """Return the key that Optuna's storages have for ``trial``."""
    return trial._trial_id  # no public name, although every method of a storage takes it


def lineage_number(trial: FrozenTrial) -> int:
    """Return the number of the trial that ``trial`` is a retry of, or its own.

    The run folder and the seed follow from it, so that a retry goes on where the first
    attempt ended.
    """
    return int(trial.system_attrs.get("failed_trial", trial.number))


def configuration_number(trial: FrozenTrial) -> int:
    """Return the number of the trial whose configuration ``trial`` runs with another seed.

    Or that of the trial that it is a retry of, or its own.
    """
    return int(trial.user_attrs.get(REPEAT_OF, lineage_number(trial)))


def forgotten(trial: FrozenTrial) -> float:
    """Return how far a trial's F1 on the old task is below its start's, in points.

    A start that has not learnt that task has nothing to forget: 0.
    """
    return float(trial.user_attrs.get("old_task_drop") or 0.0)


def excess(trial: FrozenTrial) -> float:
    """Return how many points of F1 a trial forgets beyond what its study allows; 0 if none."""
    return max((0.0, *trial.constraints.values()))


def epoch_records(trial: FrozenTrial) -> list[dict[str, Any]]:
    """Return the epoch records of ``trial``, first epoch first."""
    return sorted(trial.user_attrs.get(EPOCHS, []), key=lambda record: int(record["epoch"]))


def kept(trial: FrozenTrial) -> Kept | None:
    """Return what is kept of ``trial``, or None if it has not finished an epoch."""
    stored = trial.system_attrs.get(KEPT)
    return None if stored is None else Kept(**stored)


def record_epoch(
    joined: JoinedStudy,
    trial: FrozenTrial,
    record: Mapping[str, Any],
    *,
    kept: Kept | None = None,
) -> bool:
    """Keep what an epoch measured, and report minus its validation loss at step = epoch.

    In a study with two objectives, nothing is reported: pruners and TPE would ask for the one
    direction in which a report is better, which such a study does not have. Record, report and
    what is kept of the epoch are written in one transaction: whoever goes on with the trial finds
    all of an epoch or nothing of it.

    Args:
        joined: The study.
        trial: The running trial.
        record: ``epoch``, counted from 1, ``val_loss`` in nats, and whatever else it measured.
            Numbers that are not finite are stored as null, and such a loss is not reported.
        kept: Where its resume state and the best checkpoint so far are.

    Returns:
        Whether the epoch is new: one that is there already is left as it is.

    Raises:
        LostTrialError: Another worker finished the trial.
    """
    plain = _plain(record)
    epoch, loss = plain["epoch"], plain["val_loss"]
    reported = loss is not None and len(joined.file.study.objectives) == 1
    rdb = joined.storage.rdb
    with _lost(trial.number):
        stored = rdb.get_trial_user_attrs(trial_id(trial))
        records = sorted(stored.get(EPOCHS, []), key=lambda known: int(known["epoch"]))
        if any(known["epoch"] == epoch for known in records):
            return False
        rdb.write_trial(
            trial_id(trial),
            user_attrs={EPOCHS: [*records, plain]},
            system_attrs={} if kept is None else {KEPT: asdict(kept)},
            reports={epoch: -loss} if reported else {},
        )
    return True


def with_reports(trial: FrozenTrial, losses: Mapping[int, float | None]) -> FrozenTrial:
    """Return a trial with the reports that :func:`record_epoch` makes of its ``losses``.

    So a pruner can judge it as it is now, without asking the database.

    Args:
        trial: The trial, as of an earlier time.
        losses: Its validation losses by epoch, all of them.
    """
    now = copy.copy(trial)
    now.intermediate_values = {
        epoch: -loss for epoch, loss in losses.items() if loss is not None and math.isfinite(loss)
    }
    return now


def finish(
    joined: JoinedStudy,
    trial: FrozenTrial,
    *,
    state: TrialState,
    stop_reason: str | None = None,
    attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any] | None = None,
) -> None:
    """Finish a trial: attributes, state and value in one write.

    The values are those of ``study.objectives`` among ``attrs``, of a pruned trial too where it
    has reached an epoch: pruned trials compete. (``Study.tell`` would make the last report, minus
    a loss, the value of a pruned trial.) With ``constraints.max_forgetting``, by how much the
    trial keeps to it or does not is written where Optuna looks for constraints.

    Args:
        joined: The study.
        trial: The running trial.
        state: COMPLETE, PRUNED or FAIL.
        stop_reason: One of ``STOP_REASONS`` if the trial was stopped.
        attrs: User attributes.
        system_attrs: System attributes.

    Raises:
        LostTrialError: Another worker finished the trial.
        ValueError: A state that is not final, an unknown reason, or a complete trial that lacks
            a value.
    """
    if not state.is_finished():
        raise ValueError(f"a trial ends as COMPLETE, PRUNED or FAIL, got {state.name}")
    if stop_reason is not None and stop_reason not in STOP_REASONS:
        raise ValueError(f"stop_reason must be one of {', '.join(STOP_REASONS)}: {stop_reason!r}")
    attributes = {key: _plain(value) for key, value in attrs.items()}
    if stop_reason is not None:
        attributes[STOP_REASON] = stop_reason
    objectives = joined.file.study.objectives
    missing = [name for name in objectives if attributes.get(name) is None]
    if state is TrialState.COMPLETE and missing:
        raise ValueError(f"trial {trial.number} is complete and has no {missing[0]}")
    values = None
    if not missing and state is not TrialState.FAIL:
        values = [float(attributes[name]) for name in objectives]
        system_attrs = {**(system_attrs or {}), **_constraint(joined, attributes)}

    rdb, study = joined.storage.rdb, joined.optuna_study
    with _lost(trial.number):
        study.sampler.after_trial(study, trial, state, values)
        rdb.write_trial(
            trial_id(trial),
            user_attrs=attributes,
            system_attrs=system_attrs,
            state=state,
            values=values,
        )


def _constraint(joined: JoinedStudy, attributes: Mapping[str, Any]) -> dict[str, float]:
    most = joined.file.constraints.max_forgetting
    return {} if most is None else {FORGETTING: (attributes.get("old_task_drop") or 0.0) - most}


def fail(joined: JoinedStudy, trial: FrozenTrial, cause: str, error: str) -> None:
    """Fail a trial, with its cause and what it failed of in one line.

    Whoever asks next queues it again, where its cause is one that may pass.

    Raises:
        LostTrialError: Another worker finished the trial.
    """
    attrs = {CAUSE: str(cause), ERROR: mask(error)}  # it may name a URL
    finish(joined, trial, state=TrialState.FAIL, attrs=attrs)


@contextlib.contextmanager
def _lost(number: int) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError:
        raise LostTrialError(f"trial {number} was finished by another worker") from None
    except KeyError:
        raise LostTrialError(f"trial {number} is no longer in the storage") from None


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: no NumPy numbers, null for NaN and infinity."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    raise TypeError(f"cannot be stored as JSON: {value!r}")
