"""What a study will cost, foreseen before it is paid for: windows, epochs, time, disk, memory."""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qa_hpo.config import Recipe, Run, Runtime, StudyFile
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import parameter_count
from qa_hpo.finetune.preflight import Preflight, training_strides
from qa_hpo.finetune.starts import Starts
from qa_hpo.finetune.timing import Pace, time_steps
from qa_hpo.finetune.training import Training
from qa_hpo.parameters import Parameters, Retention
from qa_hpo.search.drawing import drawn
from qa_hpo.search.promotion import Rules
from qa_hpo.workers.local import Place

__all__ = ["Forecast", "Plan", "Space", "Time", "forecast"]

_DRAWN = 200
# float32: weights; with gradients and AdamW's two moments, four times that.
_BYTES = 4
_TRAINED = 4
# A resume state is the weights and the optimizer's moments; beside it lies the best checkpoint.
_RESUME = 3
_RUN = 1 + _RESUME


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
    """

    seconds: float
    trials_s: float
    starts_s: float
    limited_by_hours: bool
    paces: tuple[Pace, ...]


@dataclass(frozen=True)
class Space:
    """Disk space that a place needs, in bytes, and what is free there; None for a bucket."""

    place: str
    needed: int
    free: int | None


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
        places: Where each worker computes.
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
            "disk": [dataclasses.asdict(space) for space in self.disk],
            "workers": [dataclasses.asdict(place) for place in self.places],
        }


def forecast(
    file: StudyFile, found: Preflight, inputs: Inputs, places: list[Place], *, timed: bool
) -> Forecast:
    """Foresee what a study costs.

    Args:
        file: The study.
        found: What a look at it found.
        inputs: What loaded its data.
        places: Where its workers compute.
        timed: Whether to train some steps and evaluate some windows from each checkpoint.

    Raises:
        QaHpoError: As a trial would: the model does not fit into the memory, say.
    """
    windows = {name: _windows(file, found, inputs, name) for name in file.starts}
    trials = drawn(file, max(1, min(file.budget.trials or _DRAWN, _DRAWN)))
    view = _View(file, found, inputs, places, trials, windows)
    paces = {root: view.pace(root) for root in view.roots()} if timed else {}
    time = _time(view, paces) if timed else None
    parameters = {root: parameter_count(inputs.checkpoint(root)) for root in view.roots()}
    return Forecast(
        study=file.study.name,
        found=found,
        windows=windows,
        evaluation_windows={name: view.evaluated(name) for name in file.starts},
        parameters={name: parameters[view.root(name)] for name in file.starts},
        plan=_plan(view, None if time is None else time.trials_s / view.mean_s(paces)),
        time=time,
        disk=_disk(view, max(parameters.values()) * _BYTES),
        places=tuple(places),
    )


def _windows(file: StudyFile, found: Preflight, inputs: Inputs, name: str) -> dict[int, int]:
    root = file.starts[file.lineage(name)[-1]]
    assert isinstance(root, str)
    cut = partial(
        inputs.windows, found.train, inputs.checkpoint(root), max_length=file.data.max_length
    )
    return {stride: len(cut(doc_stride=stride)) for stride in training_strides(file)}


@dataclass(frozen=True)
class _View:
    """A study as its costs see it: with trials that were drawn, and the windows of its starts."""

    file: StudyFile
    found: Preflight
    inputs: Inputs
    places: list[Place]
    trials: list[Parameters]
    windows: dict[str, dict[int, int]]

    def root(self, start: str) -> str:
        """Return the checkpoint that a start comes from."""
        root = self.file.starts[self.file.lineage(start)[-1]]
        assert isinstance(root, str)
        return root

    def roots(self) -> list[str]:
        return list(dict.fromkeys(self.root(trial.start) for trial in self.trials))

    def evaluated(self, start: str) -> int:
        """Return the windows of an epoch's evaluation."""
        corpora = [self.found.validation, self.found.old_task]
        return sum(
            len(
                self.inputs.windows(
                    corpus,
                    self.inputs.checkpoint(self.root(start)),
                    max_length=self.file.data.max_length,
                    doc_stride=self.file.evaluation.doc_stride,
                )
            )
            for corpus in corpora
            if corpus is not None
        )

    def pace(self, root: str) -> Pace:
        """Time a run from a checkpoint, with a batch size in the middle of those searched."""
        file, inputs = self.file, self.inputs
        mine = [trial for trial in self.trials if self.root(trial.start) == root]
        middle = sorted(mine, key=lambda trial: trial.batch_size)[len(mine) // 2]
        name = next(name for name, start in file.starts.items() if start == root)
        plain = middle.model_copy(update={"start": name, "retention": Retention()})
        runtime = file.training.runtime()
        if runtime.cpu_threads is None:
            threads = self.places[0].threads
            runtime = Runtime(**{**runtime.model_dump(), "cpu_threads": threads})
        config = file.run_config(plain, Run(name="timed", seed=file.study.seed), runtime)
        folder = inputs.checkpoint(root)
        windows = inputs.windows(
            self.found.train,
            folder,
            max_length=file.data.max_length,
            doc_stride=max(self.windows[name]),
        )
        pace = time_steps(
            Training(
                checkpoint=folder,
                tokenizer=inputs.tokenizer(folder),
                windows=windows,
                validation=inputs.validation(file.data, folder, file.evaluation.doc_stride),
                parameters=config.parameters,
                seed=config.run.seed,
                runtime=config.runtime,
                evaluation=config.evaluation,
            )
        )
        return dataclasses.replace(pace, checkpoint=root)

    def seconds(self, trial: Parameters, pace: Pace) -> float:
        """Return how long a trial takes that does not end early."""
        counts = self.windows[trial.start]
        cut = float(np.interp(trial.doc_stride, list(counts), list(counts.values())))
        evaluations = self.file.pruning.evaluations_per_epoch
        # The best checkpoint and the resume state: written, packed, and put into the store.
        saving = 3 * _RUN * pace.save_s
        epoch = cut * pace.window_s + saving
        epoch += evaluations * self.evaluated(trial.start) * pace.evaluation_s
        return pace.setup_s + self.epochs_of(trial) * epoch

    def epochs_of(self, trial: Parameters) -> float:
        """Return for how many epochs a trial is trained; on average, where trials are promoted."""
        file, rules = self.file, Rules.of(self.file)
        if rules is None:
            return trial.epochs
        number = file.budget.trials or _DRAWN
        exempt = len(file.baseline) + (file.evaluation.seeds - 1) * file.evaluation.finalists
        exempt += round(file.pruning.control_fraction * max(0, number - exempt))
        return rules.expected_epochs(number, min(number, exempt)) / number

    @property
    def mean_epochs(self) -> float:
        """For how many epochs a trial is trained, of those that were drawn."""
        return float(np.mean([self.epochs_of(trial) for trial in self.trials]))

    def mean_s(self, paces: dict[str, Pace]) -> float:
        """Return how long a trial takes, of those that were drawn."""
        return float(np.mean([self.seconds(t, paces[self.root(t.start)]) for t in self.trials]))

    @property
    def parallel(self) -> int:
        """How many trials go on at once, at the pace that was measured.

        Workers that share a GPU go on at the pace of one.
        """
        devices = {place.device for place in self.places}
        return len(self.places) if devices == {"cpu"} else len(devices)


def _time(view: _View, paces: dict[str, Pace]) -> Time:
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
    return Time(seconds, max(trials, 0.0), starts, limited, tuple(paces.values()))


def _starts_s(view: _View, paces: dict[str, Pace]) -> float:
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


def _plan(view: _View, trials: float | None) -> Plan:
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


def _disk(view: _View, checkpoint: int) -> tuple[Space, ...]:
    """Return what the store and the cache need at most, as far as the file tells."""
    file, workers = view.file, len(view.places)
    kept = file.artifacts.keep
    if file.evaluation.seeds > 1:
        kept += file.evaluation.finalists * file.evaluation.seeds
    unfinished = workers
    if file.pruning.across == "promote":  # trials that wait keep what they go on from
        unfinished += file.budget.trials or 0
    store = (kept + unfinished * _RUN) * checkpoint
    # While a resume state is written, the one before it is still there.
    runs = workers * (2 * _RESUME + 2) * checkpoint
    recipes = sum(isinstance(start, Recipe) for start in file.starts.values())
    folder = file.artifacts.folder
    cache = view.inputs.cache.folder
    return (
        Space(folder, store, None if "://" in folder else _free(Path(folder))),
        Space(str(cache), runs + recipes * checkpoint, _free(cache)),
    )


def _free(folder: Path) -> int:
    """Return the free bytes where ``folder`` is or would be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(os.path.realpath(there)).free
