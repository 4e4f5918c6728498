"""Which trial of a study is exported, and all that belongs to it."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import Run, RunConfig, Runtime
from qa_hpo.errors import ArtifactError, InputError
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.results.certainty import certainty, compare
from qa_hpo.results.export import Exported, check_place, is_place_of, taken
from qa_hpo.results.held_out import held_out_scores, known_scores
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.search.artifacts import open_store
from qa_hpo.search.asking import run_seed
from qa_hpo.search.choosing import Rule, choose, parse_rule
from qa_hpo.search.damage import check_exported
from qa_hpo.search.finalists import finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import leading_trials
from qa_hpo.search.trials import (
    CPU_THREADS,
    STOP_REASON,
    epoch_records,
    kept,
    lineage_number,
)

__all__ = ["exported_trial", "run_config"]


def run_config(joined: JoinedStudy, trial: FrozenTrial) -> RunConfig:
    """Return the configuration that runs ``trial`` again, as far as the trial went."""
    file = joined.file
    lineage = lineage_number(trial)
    parameters = joined.space.parameters_of(trial.params)
    epochs = len(epoch_records(trial))
    runtime = file.training.runtime()
    threads = trial.user_attrs.get(CPU_THREADS, runtime.cpu_threads)
    run = Run(
        name=f"{file.study.name} trial {trial.number}",
        seed=run_seed(file.study.seed, lineage),
        stop_after_epochs=epochs if epochs < parameters.epochs else None,
        evaluations_per_epoch=file.pruning.evaluations_per_epoch,
    )
    return file.run_config(
        parameters, run, Runtime(**{**runtime.model_dump(), "cpu_threads": threads})
    )


@contextlib.contextmanager
def exported_trial(
    joined: JoinedStudy,
    number: int | None,
    *,
    prefer: str | None = None,
    out: Path | None = None,
    force: bool = False,
) -> Iterator[Exported]:
    """Give what is exported of a trial, its checkpoint fetched from the artifact store.

    Args:
        joined: The study.
        number: The trial's number; if None, the one that ``prefer`` chooses.
        prefer: A rule, see :mod:`qa_hpo.search.choosing`; ``best_f1``, the winner, if None. It is
            among the export's facts as ``rule`` where it was given or the study has two objectives.
        out: The folder to which it is to be written. Where it cannot be, nothing is fetched, and
            nothing measured.
        force: Whether another export may be replaced there.

    Raises:
        InputError: There is no such finished trial, or its checkpoint is not kept; ``prefer`` is no
            rule, or comes with a number; or ``out`` holds something else.
        ArtifactError: The checkpoint that should be there is not, or the store refuses.
        StorageError: Another program has changed what the study says of the trial.
    """
    stays = out is not None and check_place(out, force=force)
    trial, rule = _chosen(joined, number, prefer)
    check_exported(joined, trial)
    records = [EpochRecord.from_dict(record) for record in epoch_records(trial)]
    best = next(record for record in records if record.epoch == trial.user_attrs["best_epoch"])
    artifacts = joined.file.artifacts
    leading = leading_trials(joined, joined.optuna_study.get_trials(deepcopy=False))
    what = kept(trial)
    if what is None or trial.number not in leading:
        raise InputError(
            f"trial {trial.number}: its checkpoint is not kept (artifacts.keep is "
            f"{artifacts.keep}); kept: {', '.join(map(str, leading))}"
        )
    ended = "complete"
    if trial.state is TrialState.PRUNED:
        ended = f"pruned: {trial.user_attrs.get(STOP_REASON)}"
    with tempfile.TemporaryDirectory(prefix="qa_hpo-export-") as folder:
        checkpoint = Path(folder) / "checkpoint"
        test, unmeasured = known_scores(joined, trial.number)
        exported = Exported(
            config=run_config(joined, trial),
            checkpoint=checkpoint,
            records=records,
            best=best,
            origin=f"trial {trial.number} of study {joined.file.study.name!r} ({ended})",
            facts={
                "study": joined.file.study.name,
                "trial": trial.number,
                "state": trial.state.name,
                "stop_reason": trial.user_attrs.get(STOP_REASON),
                **({} if rule is None else {"rule": str(rule)}),
                **_standing(joined, trial.number),
                "test": test,
            },
        )
        # What is still to be measured can be in no export that is there.
        if out is not None and stays and (unmeasured is not None or not is_place_of(out, exported)):
            raise taken(out)
        open_store(artifacts.folder).get(what.checkpoint, checkpoint)
        if unmeasured is not None:
            threshold = best.metrics["best_f1_thresh"]
            test = held_out_scores(
                joined, trial.number, unmeasured, exported.config, checkpoint, threshold
            )
            exported = replace(exported, facts={**exported.facts, "test": test})
        yield exported


def _chosen(
    joined: JoinedStudy, number: int | None, prefer: str | None
) -> tuple[FrozenTrial, Rule | None]:
    """Return the trial to export, and the rule that chose it where that is to be told."""
    if number is not None and prefer is not None:
        raise InputError("--prefer chooses a trial, and so does --trial: give one of them")
    rule = parse_rule("best_f1" if prefer is None else prefer)
    if number is None:
        trial = choose(joined, rule)
        if trial is None:
            raise InputError(f"study {joined.file.study.name!r}: no trial has finished yet")
        told = prefer is not None or len(joined.file.study.objectives) > 1
        return trial, rule if told else None
    finished = {trial.number: trial for trial in finished_trials(joined)}
    if not finished:
        raise InputError(f"study {joined.file.study.name!r}: no trial has finished yet")
    if number not in finished:
        valid = ", ".join(map(str, finished))
        raise InputError(f"--trial: {number} is not a finished trial; valid: {valid}")
    return finished[number], None


def _standing(joined: JoinedStudy, number: int) -> dict[str, Any]:
    """Return how sure a trial's score is, and how it stands beside the study's other trials."""
    board = leaderboard(joined)
    (row,) = (row for row in board.trials if row.number == number)
    found: dict[str, Any] = {"best_f1_interval": row.best_f1_interval}
    if joined.file.constraints.max_forgetting is not None:
        found["max_forgetting"] = joined.file.constraints.max_forgetting
    if row.seeds_f1 is not None:
        found |= {"seeds": row.seeds, "seeds_f1": row.seeds_f1, "seeds_f1_sd": row.seeds_f1_sd}
    # A store that refuses is no reason to refuse what is exported.
    with contextlib.suppress(ArtifactError):
        sure = certainty(joined, board)
        if sure is not None:
            found["probability_best"] = sure.probability_best.get(number)
    if board.baseline is not None and board.baseline.number != number:
        # Or it failed, or its answers are not kept.
        with contextlib.suppress(InputError, ArtifactError):
            found["baseline"] = compare(joined, board, number, board.baseline.number).as_dict()
    return found
