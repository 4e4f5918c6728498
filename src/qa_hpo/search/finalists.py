"""The best configurations, trained again with other seeds before the winner is named.

One run says little of a configuration: fine-tuning varies by the seed of the head and of the data's
order (Dodge et al. 2020, "Fine-Tuning Pretrained Language Models"). With ``evaluation.seeds = k``
the best ``evaluation.finalists`` configurations are run k times, and the highest mean wins. Their
runs are trials of the budget like any other; the search ends where only they have room.

Means are compared when all finalists have run with all their seeds, and not before: where epochs or
hours end the finals early, one run is compared with one run. A finalist that a later search has
pushed out of its place keeps its mean.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import StudyEvaluation
from qa_hpo.search.failures import is_retried, lineages
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import (
    REPEAT_OF,
    STOP_REASON,
    configuration_number,
    excess,
    forgotten,
    lineage_number,
)

__all__ = ["Plan", "finalists_among", "finished_trials", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a free place of the budget is for.

    Attributes:
        search: Whether another configuration may be tried.
        repeat: Else, the number of the trial whose configuration is to be run with another seed.
        wait: Else, whether trials are running that decide it; if not, all is done.
    """

    search: bool
    repeat: int | None = None
    wait: bool = False


def plan(trials: Sequence[FrozenTrial], budget: int, *, seeds: int, finalists: int) -> Plan:
    """Return what the next trial is for. Ask under the study's lock, with nothing in the queue.

    The search goes on while, whatever its running trials come to, the finalists' other seeds will
    fit into the budget. So it ends early enough, and goes on where the budget is raised later.

    Args:
        trials: All trials.
        budget: As many finish.
        seeds: Runs of each finalist, at least 2.
        finalists: Configurations.
    """
    latest = {number: own[-1] for number, own in lineages(trials).items() if not _given_up(own)}
    searched = {n: trial for n, trial in latest.items() if REPEAT_OF not in trial.user_attrs}
    underway = sum(not _has_finished(trial) for trial in searched.values())
    best = finalists_among(trials, finalists)
    # Those that failed for good too: they are not tried for ever.
    repeats = Counter(own[-1].user_attrs.get(REPEAT_OF) for own in lineages(trials).values())
    missing = [number for number in best for _ in range(seeds - 1 - repeats[number])]
    # Each trial that runs, and the next one, may take a finalist's place.
    needed = min(finalists * (seeds - 1), len(missing) + (underway + 1) * (seeds - 1))
    # A budget that is too small for a finalist's seeds is no reason to try nothing at all.
    if not latest or len(latest) + 1 + needed <= budget:
        return Plan(search=True)
    if underway:
        return Plan(search=False, wait=True)
    if missing and len(latest) < budget:
        return Plan(search=False, repeat=searched[missing[0]].number)
    return Plan(search=False, wait=any(not _has_finished(trial) for trial in latest.values()))


def finalists_among(trials: Sequence[FrozenTrial], finalists: int) -> list[int]:
    """Return the numbers of the configurations that are the finalists so far, the best first.

    They are those with the highest ``best_f1``; one that forgets more than the study allows comes
    behind all that do not, as it cannot win against them.

    Args:
        trials: All trials.
        finalists: How many there are to be.
    """
    scores = {
        lineage_number(trial): (excess(trial), -trial.user_attrs["best_f1"])
        for trial in trials
        if REPEAT_OF not in trial.user_attrs
        and _has_finished(trial)
        and trial.user_attrs.get("best_f1") is not None
    }
    return sorted(scores, key=lambda number: (*scores[number], number))[:finalists]


def finished_trials(joined: JoinedStudy, *, constrained: bool = True) -> list[FrozenTrial]:
    """Return the trials that compete, complete and pruned, the winner first.

    The highest ``best_f1`` comes first, among equals the one that forgets least, and then the first
    one tried; but where there were finals, the finalists come before all others, by the mean of
    their runs. Behind them all come trials that forget more than
    ``constraints.max_forgetting`` allows, those first that forget the least beyond it: so that
    one of these wins where all trials forget too much.

    Args:
        joined: The study.
        constrained: Whether it matters that a trial forgets too much.
    """
    trials = joined.optuna_study.get_trials(deepcopy=False)
    competing = [
        trial
        for trial in trials
        if _has_finished(trial) and trial.user_attrs.get("best_f1") is not None
    ]
    means = _means_of_finals(trials, joined.file.evaluation)

    def rank(trial: FrozenTrial) -> tuple[float, bool, float, float, float, int]:
        configuration, best_f1 = configuration_number(trial), trial.user_attrs["best_f1"]
        beyond, mean = excess(trial) if constrained else 0.0, means.get(configuration)
        if mean is None:
            return beyond, True, -best_f1, forgotten(trial), 0.0, trial.number
        return beyond, False, -mean, configuration, -best_f1, trial.number

    return sorted(competing, key=rank)


def _means_of_finals(
    trials: Sequence[FrozenTrial], evaluation: StudyEvaluation
) -> dict[int, float]:
    """Return the mean ``best_f1`` of each configuration that has run with all its seeds.

    Nothing while a finalist has not.
    """
    if evaluation.seeds == 1:
        return {}
    runs: dict[int, list[list[FrozenTrial]]] = {}
    for own in lineages(trials).values():
        runs.setdefault(configuration_number(own[-1]), []).append(own)
    means = {}
    for number, attempts in runs.items():
        # One that failed for good is not waited for.
        whole = [own[-1].user_attrs["best_f1"] for own in attempts if _is_whole(own[-1])]
        if whole and len(whole) + sum(map(_given_up, attempts)) >= evaluation.seeds:
            means[number] = math.fsum(whole) / len(whole)
    return means if means.keys() >= {*finalists_among(trials, evaluation.finalists)} else {}


def _is_whole(run: FrozenTrial) -> bool:
    """Return whether a run has finished, and not because the budget ended it."""
    scored = run.user_attrs.get("best_f1") is not None
    return _has_finished(run) and scored and run.user_attrs.get(STOP_REASON) != "budget"


def _has_finished(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _given_up(attempts: list[FrozenTrial]) -> bool:
    return attempts[-1].state is TrialState.FAIL and not is_retried(attempts)
