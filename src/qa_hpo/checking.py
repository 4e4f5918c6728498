"""What a study will cost, foreseen before it is paid for: windows, epochs, time, disk, memory."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_hpo.checking_view import DRAWN, RUN, View
from qa_hpo.config import Recipe, StudyFile
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import parameter_count
from qa_hpo.finetune.preflight import Preflight
from qa_hpo.finetune.starts import Starts
from qa_hpo.finetune.timing import Pace
from qa_hpo.parameters import Parameters
from qa_hpo.search.budget import Spent, most_trials
from qa_hpo.search.drawing import drawn
from qa_hpo.search.promotion import Rules
from qa_hpo.workers.local import Place, one_device

__all__ = ["Forecast", "Plan", "Space", "Time", "forecast"]

# float32: weights; with gradients and AdamW's two moments, four times that.
_BYTES = 4
_TRAINED = 4
# Of a checkpoint's size; see RUN.
_RESUME = 3
_NOTHING = Spent(trials=0, epochs=0, reserved=0, hours=0, running=0, waiting=0, failed=0)


@dataclass(frozen=True)
class Plan:
    """What the budget comes to, if no trial ends for a loss that rises.

    Attributes:
        trials: Trials that the budget pays for; None where only hours limit it and nothing was
            timed. Estimated where epochs or hours limit it.
        baselines: Of those, how many are the file's.
        epochs_low: Epochs of a trial, at least.
        epochs_high: At most.
        epochs: Epochs of all trials, estimated.
        epochs_at_most: Their upper bound; None where only hours limit it.
        promoted: Whether trials wait at rungs, so that most are trained for a part of their epochs.
    """

    trials: int | None
    baselines: int
    epochs_low: int
    epochs_high: int
    epochs: int | None
    epochs_at_most: int | None
    promoted: bool = False


@dataclass(frozen=True)
class Time:
    """How long the study may take, if no trial ends for a loss that rises; an estimate.

    Attributes:
        seconds: From the start to the end, with all workers.
        trials_s: The seconds of all trials, one after the other.
        starts_s: Of them that build starts by recipes that are not built yet, which comes first.
        limited_by_hours: Whether ``budget.hours`` ends it there.
        paces: What it is based on: one for each checkpoint that starts come from.
        untimed: Retention methods of drawn trials: what they add to a trial is not in it.
    """

    seconds: float
    trials_s: float
    starts_s: float
    limited_by_hours: bool
    paces: tuple[Pace, ...]
    untimed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """Disk space that a place needs.

    Attributes:
        place: The folder or bucket.
        needed: Bytes that it needs.
        free: Bytes that are free there; None for a bucket.
        at_least: Whether it may need more than that: as many trials as hours allow keep something.
    """

    place: str
    needed: int
    free: int | None
    at_least: bool = False


@dataclass(frozen=True)
class Forecast:
    """What a study has and will cost.

    Attributes:
        study: Its name.
        found: Its data and starts.
        windows: For each start, the training windows for each stride that the file names.
        evaluation_windows: For each start, how many windows an epoch's evaluation has.
        parameters: For each start, the model's parameters.
        plan: Trials and epochs.
        time: How long it takes; None where nothing was timed.
        disk: What it needs.
        places: Where each worker computes, once all GPUs are free.
        not_timed: Why nothing was timed, although it was to be.
    """

    study: str
    found: Preflight
    windows: dict[str, dict[int, int]]
    evaluation_windows: dict[str, int]
    parameters: dict[str, int]
    plan: Plan
    time: Time | None
    disk: tuple[Space, ...]
    places: tuple[Place, ...]
    not_timed: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``qa-hpo check --json`` prints it. Sizes are in bytes, times in seconds."""
        return {
            "study": self.study,
            "data": {
                name.replace(" ", "_"): {
                    "source": corpus.source,
                    "questions": len(corpus),
                    "answerable": sum(map(bool, corpus.answers)),
                    "contexts": len(corpus.contexts),
                    "articles": len(corpus.titles),
                    "left_out": len(corpus.skipped),
                }
                for name, corpus in self.found.corpora.items()
            },
            "starts": {
                name: {
                    "what": what,
                    "parameters": self.parameters[name],
                    "weights_bytes": _BYTES * self.parameters[name],
                    "training_bytes": _BYTES * _TRAINED * self.parameters[name],
                    "training_windows": {str(k): v for k, v in self.windows[name].items()},
                    "evaluation_windows": self.evaluation_windows[name],
                }
                for name, what in self.found.starts.items()
            },
            "plan": dataclasses.asdict(self.plan),
            "time": None if self.time is None else dataclasses.asdict(self.time),
            "not_timed": self.not_timed,
            "disk": [dataclasses.asdict(space) for space in self.disk],
            "workers": [dataclasses.asdict(place) for place in self.places],
        }


def forecast(
    file: StudyFile,
    found: Preflight,
    inputs: Inputs,
    places: list[Place],
    *,
    timed: bool,
    per_device: int = 1,
) -> Forecast:
    """Foresee what a study costs.

    Args:
        file: The study.
        found: What a look at it found.
        inputs: What loaded its data.
        places: Where its workers compute.
        timed: Whether to train some steps and evaluate some windows from each checkpoint, on a GPU
            that no worker has meanwhile. CUDA must not have been initialised before.
        per_device: How many workers may share a GPU.

    Raises:
        QaHpoError: As a trial would: the model does not fit into the memory, say.
    """
    trials = drawn(file, max(1, min(file.budget.trials or DRAWN, DRAWN)))
    view = View(file, found, inputs, places, trials)
    # Of every start, drawn or not: a study of few trials may come to any of them. It cuts their
    # windows, before a GPU is taken.
    parameters = {root: parameter_count(inputs.checkpoint(root)) for root in view.sets}
    with one_device(per_device) if timed else contextlib.nullcontext(False) as there:
        paces = {root: view.pace(root) for root in view.roots()} if there else {}
    time = _time(view, paces) if there else None
    plan = _plan(view, None if time is None else time.trials_s / view.mean_s(paces))
    return Forecast(
        study=file.study.name,
        found=found,
        windows={name: view.sets[view.root(name)].training for name in file.starts},
        evaluation_windows={name: view.evaluated(name) for name in file.starts},
        parameters={name: parameters[view.root(name)] for name in file.starts},
        plan=plan,
        time=time,
        disk=(
            _store_space(view, plan, max(parameters.values()) * _BYTES),
            _cache_space(view, plan, max(parameters.values()) * _BYTES),
        ),
        places=tuple(places),
        not_timed="all GPUs are busy" if timed and not there else None,
    )


def _time(view: View, paces: dict[str, Pace]) -> Time:
    budget, mean = view.file.budget, view.mean_s(paces)
    epochs = view.mean_epochs
    numbers = [] if budget.trials is None else [float(budget.trials)]
    numbers += [] if budget.epochs is None else [budget.epochs / epochs]
    starts = _starts_s(view, paces)
    seconds, limited = float("inf"), False
    if numbers:
        # The last trials of all workers end at about the same time, but none before its own.
        seconds = starts + max(mean * min(numbers) / view.parallel, mean)
    if budget.hours is not None and budget.hours * 3600 < seconds:
        seconds, limited = budget.hours * 3600, True
    trials = (seconds - starts) * view.parallel if limited else mean * min(numbers)
    methods = dict.fromkeys(trial.retention.method for trial in view.trials)
    untimed = tuple(method for method in methods if method != "none")
    return Time(seconds, max(trials, 0.0), starts, limited, tuple(paces.values()), untimed)


def _starts_s(view: View, paces: dict[str, Pace]) -> float:
    """Return the seconds that it takes to build the starts that are not built."""
    file, starts = view.file, Starts(view.file, view.file.training.runtime(), view.inputs)
    used = {name for trial in view.trials for name in file.lineage(trial.start)}
    total = 0.0
    for name in used:
        recipe = file.starts[name]
        if not isinstance(recipe, Recipe) or starts.built(name):
            continue
        parameters, pace = recipe.parameters(file.defaults), paces[view.root(name)]
        corpus = view.inputs.train_corpus(recipe.train, recipe.train_limit)
        windows = view.inputs.windows(
            corpus,
            view.inputs.checkpoint(view.root(name)),
            max_length=file.data.max_length,
            doc_stride=parameters.doc_stride,
        )
        total += pace.setup_s + parameters.epochs * len(windows) * pace.window_s
    return total


def _plan(view: View, trials: float | None) -> Plan:
    budget = view.file.budget
    dimension = view.file.search.get("epochs")
    named = [view.file.training.epochs] if dimension is None or dimension.when else []
    named += [] if dimension is None else [int(value) for value in dimension.values()]
    low, high = min(named), max(named)
    mean = view.mean_epochs
    limits = [] if budget.trials is None else [float(budget.trials)]
    limits += [] if budget.epochs is None else [budget.epochs / mean]
    limits += [] if trials is None else [trials]
    bounds = [] if budget.trials is None else [budget.trials * high]
    bounds += [] if budget.epochs is None else [budget.epochs]
    number = None if not limits else max(1, round(min(limits)))
    return Plan(
        trials=number,
        baselines=len(view.file.baseline),
        epochs_low=low,
        epochs_high=high,
        epochs=None if number is None else min([round(number * mean), *bounds]),
        epochs_at_most=min(bounds) if bounds else None,
        promoted=Rules.of(view.file) is not None,
    )


def _store_space(view: View, plan: Plan, checkpoint: int) -> Space:
    """Return what the checkpoints' store needs.

    Args:
        view: The study.
        plan: What its budget comes to.
        checkpoint: Size of a checkpoint in bytes.
    """
    file, rules = view.file, Rules.of(view.file)
    kept = file.artifacts.keep
    if file.evaluation.seeds > 1:
        kept += file.evaluation.finalists * file.evaluation.seeds
    unfinished, most = len(view.places), None
    waiting = rules is not None and bool(rules.rungs)
    if rules is not None and waiting:  # trials that wait keep what they go on from
        most = most_trials(_NOTHING, file.budget, (), rules)
        unfinished += most or plan.trials or 0
    needed = (kept + unfinished * RUN) * checkpoint
    folder = file.artifacts.folder
    free = None if "://" in folder else _free(Path(folder))
    return Space(folder, needed, free, at_least=waiting and most is None)


def _cache_space(view: View, plan: Plan, checkpoint: int) -> Space:
    """Return what the cache needs: windows, built starts, runs, what retention methods keep.

    Args:
        view: The study.
        plan: What its budget comes to.
        checkpoint: Size of a checkpoint in bytes.
    """
    file, folder = view.file, view.inputs.cache.folder
    recipes = [start for start in file.starts.values() if isinstance(start, Recipe)]
    # A path integral lies beside the weights, and is as large.
    kept = len(recipes) + sum(recipe.path_integral for recipe in recipes)
    if {"ewc", "mask"} & set(view.methods):  # and so is a Fisher information
        kept += sum(file.old_training(name) is not None for name in file.starts)
    # While a resume state is written, the one before it is still there.
    runs = len(view.places) * (2 * _RESUME + 2)
    most = file.budget.trials
    windows = _window_bytes(view, view.trials[: most or plan.trials])
    dimension = file.search.get("doc_stride")
    ranged = dimension is not None and dimension.low is not None
    unknown = ranged and (most is None or most > len(view.trials))
    needed = (kept + runs) * checkpoint + windows
    return Space(str(folder), needed, _free(folder), at_least=unknown)


def _window_bytes(view: View, trials: Sequence[Parameters]) -> int:
    """Return the bytes of all windows that are cut for ``trials``, once for each stride."""
    total = 0
    for root, sets in view.sets.items():
        sizes = sets.training_bytes
        others = {trial.doc_stride for trial in trials if view.root(trial.start) == root} - {*sizes}
        total += sets.other_bytes + sum(sizes.values())
        total += round(len(others) * sum(sizes.values()) / len(sizes))
    return total


def _free(folder: Path) -> int:
    """Return the free bytes where ``folder`` is or would be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(os.path.realpath(there)).free
