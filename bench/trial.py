"""How many times more trials of a study ours does in an hour than the notebook, and where it goes.

A trial is one fine-tuning run: the model loaded, trained for an epoch, measured on the validation
questions, and saved. What a worker makes once and keeps for its next trials (questions, tokenizer,
windows) is there on both sides before anything is timed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch.optim import optimizer
from transformers import PreTrainedModel

from bench import notebook_trainer
from bench.notebook_trainer import Features, make_features, run_notebook, training_arguments
from bench.report import Finding, machine, table
from bench.timing import (
    Comparison,
    Stopwatch,
    alternate,
    begin_as_a_worker,
    part_medians,
    ways_of_a_worker,
)
from bench.training_data import TrainingMaterial, training_material
from qa_hpo.config import Data, Evaluation, Parameters, Run, RunConfig, Runtime
from qa_hpo.finetune import memory, trainer, training
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.evaluation import forward_pass
from qa_hpo.finetune.hardware import best_device, lower_precision
from qa_hpo.finetune.inputs import Inputs, ValidationSet
from qa_hpo.finetune.memory import PeakMemory
from qa_hpo.finetune.models import load_model, quiet
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.training import collator
from qa_hpo.paths import CachePaths
from qa_hpo.squad import answered
from qa_hpo.squad.scoring import corpus_metrics, score_predictions
from qa_hpo.squad.spans import SpanAccumulator

TRAIN_QUESTIONS = 1000
VALIDATION_QUESTIONS = 300
WARM_UP_QUESTIONS = 16
BATCH = 16
WEIGHT_DECAY = 0.01
PACKAGES = ("qa_hpo", "torch", "transformers", "accelerate", "datasets")

# Where a trial's time goes. The model's own parts come first; all others are outside it.
MODEL_PARTS = ("forward in training", "backward", "optimizer step", "forward in evaluation")
LOAD, FIRST = "load the model", "from then to the first batch"
SAVE, RELEASE = "save checkpoint and state", "give back memory at the end"
OUTSIDE_PARTS = (LOAD, FIRST, "batches", "spans and scores", SAVE, RELEASE)
FIXED_PARTS = (LOAD, FIRST, SAVE, RELEASE)
REST = "the rest"


# ---------------------------------------------------------------------------- inside a trial


class Meter:
    """Seconds by part of what runs while it is attached, and the tokens that models are given.

    Parts are disjoint: what is called within an open part counts there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*MODEL_PARTS, *OUTSIDE_PARTS), 0.0)
        self.peak_mib = 0.0
        self._open: str | None = None
        self._since = 0.0
        self._real: list[torch.Tensor | int] = []
        self._all = 0

    def __getstate__(self) -> dict[str, Any]:
        """For another process: counts that are numbers, not tensors on a device."""
        return vars(self) | {"_real": [int(count) for count in self._real]}

    @property
    def real_token_share(self) -> float:
        """Of the tokens that went through the model, those that are no padding."""
        return sum(float(count) for count in self._real) / self._all

    @property
    def model_seconds(self) -> float:
        return sum(self.seconds[part] for part in MODEL_PARTS)

    def begin(self, part: str) -> None:
        if self._open is None:
            _wait_for_device()
            self._open, self._since = part, time.perf_counter()

    def end(self, part: str) -> None:
        if self._open == part:
            _wait_for_device()
            self.seconds[part] += time.perf_counter() - self._since
            self._open = None

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._open is not None:
                return function(*args, **kwargs)
            self.begin(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.end(part)

        return run

    def through_model(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `timed`, for a model's call: the outermost model only, and its tokens are counted."""
        parts = {
            training_: self.timed(MODEL_PARTS[0 if training_ else 3], function)
            for training_ in (True, False)
        }

        def run(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
            self.end(FIRST)
            if self._open is None:
                mask = kwargs["attention_mask"]
                self._real.append(mask.sum())
                self._all += mask.numel()
            return parts[model.training](model, *args, **kwargs)

        return run

    def loading(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `timed`, for what gives the model; from its end, the first batch is waited for."""
        timed = self.timed(LOAD, function)

        def run(*args: Any, **kwargs: Any) -> Any:
            model = timed(*args, **kwargs)
            self.begin(FIRST)
            return model

        return run


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def attached(meter: Meter) -> Iterator[None]:
    """Time what either side calls; afterwards everything is as it was."""
    step = MODEL_PARTS[2]
    collating = ("__call__", "layout", "inputs", "labels")
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (PreTrainedModel, "__call__", meter.through_model),
        (Accelerator, "backward", functools.partial(meter.timed, MODEL_PARTS[1])),
        (Accelerator, "clip_grad_norm_", functools.partial(meter.timed, step)),
        (PreTrainedModel, "zero_grad", functools.partial(meter.timed, step)),
        (notebook_trainer, "load", meter.loading),
        (training, "load_model", meter.loading),
        (memory, "clear_device_cache", functools.partial(meter.timed, RELEASE)),
        *((WindowCollator, name, functools.partial(meter.timed, "batches")) for name in collating),
        *(
            (owner, name, functools.partial(meter.timed, "spans and scores"))
            for owner, name in (
                (SpanAccumulator, "update"),
                (SpanAccumulator, "finish"),
                (answered, "score_predictions"),
                (trainer, "corpus_metrics"),
            )
        ),
        *(
            (trainer.QuestionAnsweringTrainer, name, functools.partial(meter.timed, SAVE))
            for name in ("_save_best", "_save_checkpoint")
        ),
    ]
    with contextlib.ExitStack() as undo:
        for owner, name, wrapped in places:
            undo.enter_context(_replaced(owner, name, wrapped))
        before = optimizer.register_optimizer_step_pre_hook(lambda *_: meter.begin(step))
        undo.callback(before.remove)
        after = optimizer.register_optimizer_step_post_hook(lambda *_: meter.end(step))
        undo.callback(after.remove)
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[..., Any]) -> Iterator[None]:
    inherited = name not in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, wrap(before))
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


# ---------------------------------------------------------------------------- the two sides


@dataclass(frozen=True)
class Bout:
    """What both sides are given, made before anything is timed.

    Attributes:
        material: start, corpora and lengths.
        scratch: where checkpoints go.
        threads: with which torch computes.
        inputs: ours, with corpora, tokenizer and windows loaded.
        features: the notebook's.
        validation: what both final models are measured on.
    """

    material: TrainingMaterial
    scratch: Path
    threads: int
    inputs: Inputs
    features: Features
    validation: ValidationSet


@dataclass(frozen=True)
class Quality:
    """What a final model is worth.

    Attributes:
        val_loss: nats per validation window.
        f1: of the answerable questions if a span is always answered, in percent.
        best_f1: with a tuned threshold, in percent.
    """

    val_loss: float
    f1: float
    best_f1: float


@dataclass(frozen=True)
class Trial:
    """A run that is over."""

    quality: Quality
    meter: Meter


def prepare(material: TrainingMaterial, scratch: Path, threads: int) -> Bout:
    inputs = Inputs(CachePaths(scratch / "cache"))
    config = _config(material, seed=0, threads=threads)
    train = inputs.train_corpus(material.train, material.train_limit)
    validation = inputs.validation(config.data, material.checkpoint, material.doc_stride)
    sizes = {"max_length": material.max_length, "doc_stride": material.doc_stride}
    inputs.windows(train, material.checkpoint, **sizes)
    tokenizer = inputs.tokenizer(material.checkpoint)
    features = make_features(train, validation.corpus, tokenizer, **sizes)
    return Bout(material, scratch, threads, inputs, features, validation)


def _config(material: TrainingMaterial, *, seed: int, threads: int) -> RunConfig:
    return RunConfig(
        run=Run(name="trial", seed=seed),
        data=Data(
            train=material.train,
            validation=material.validation,
            max_length=material.max_length,
            train_limit=material.train_limit,
            validation_limit=material.validation_limit,
        ),
        starts={"base": material.checkpoint},
        parameters=Parameters(
            start="base",
            learning_rate=material.learning_rate,
            epochs=1,
            batch_size=BATCH,
            weight_decay=WEIGHT_DECAY,
            doc_stride=material.doc_stride,
        ),
        runtime=Runtime(cpu_threads=threads),
        evaluation=Evaluation(doc_stride=material.doc_stride),
    )


class Side(ABC):
    """One of the two sides, in the process of its trials."""

    def __init__(self, bout: Bout) -> None:
        self.bout = bout

    def trial(self, seed: int, watch: Stopwatch) -> Trial:
        """Run and time a trial, then see what it gave."""
        meter = Meter()
        gc.collect()  # no trial pays for what an earlier one left behind
        with tempfile.TemporaryDirectory(dir=self.bout.scratch) as folder:
            peak = PeakMemory()
            with attached(meter):
                outcome = self.run(seed, Path(folder), watch)
            meter.peak_mib = peak.mib()
            return Trial(self.quality(outcome), meter)

    @abstractmethod
    def run(self, seed: int, folder: Path, watch: Stopwatch) -> Any:
        """The trial, timed; what is returned tells `quality` of the final model."""

    @abstractmethod
    def quality(self, outcome: Any) -> Quality:
        """What the final model is worth; not timed."""


class Notebook(Side):
    def run(self, seed: int, folder: Path, watch: Stopwatch) -> Any:
        material = self.bout.material
        arguments = training_arguments(
            folder,
            learning_rate=material.learning_rate,
            seed=seed,
            batch_size=BATCH,
            weight_decay=WEIGHT_DECAY,
        )
        run_notebook(material.checkpoint, self.bout.features, arguments, watch)
        return folder

    def quality(self, outcome: Any) -> Quality:
        """Measure its checkpoint as ours measures its own."""
        validation, tokenizer = self.bout.validation, self.bout.features.tokenizer
        model = load_model(str(outcome), fresh_head=False)
        torch.nn.Module.to(model, best_device())
        usual = Evaluation()
        forward = forward_pass(
            model,
            collator(validation.windows, tokenizer),
            n_best=usual.n_best,
            max_answer_length=usual.max_answer_length,
            batch_size=Runtime().eval_batch_size,
            autocast=lower_precision(Runtime()),
        )
        metrics = corpus_metrics(score_predictions(validation.corpus, forward.predictions))
        return Quality(forward.loss, metrics["HasAns_f1_no_null"], metrics["best_f1"])


class Ours(Side):
    def __init__(self, bout: Bout) -> None:
        super().__init__(bout)
        begin_as_a_worker()

    def run(self, seed: int, folder: Path, watch: Stopwatch) -> Any:
        bout = self.bout
        config = _config(bout.material, seed=seed, threads=bout.threads)
        with watch.part("trial"):
            return fine_tune(config, folder, inputs=bout.inputs)

    def quality(self, outcome: Any) -> Quality:
        (record,) = outcome.records
        metrics = record.metrics
        return Quality(record.val_loss, metrics["HasAns_f1_no_null"], metrics["best_f1"])


# ---------------------------------------------------------------------------- their processes


class Apart:
    """The trials of one side, in a process of their own; each takes the next seed.

    Args:
        side: the side.
        material: start, corpora and lengths.
        scratch: where whatever is written goes.
        threads: with which torch computes.
    """

    def __init__(
        self, side: type[Side], material: TrainingMaterial, scratch: Path, threads: int
    ) -> None:
        self.trials: list[Trial] = []
        self._given = side, material, scratch, threads
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown(cancel_futures=True)

    def __call__(self, watch: Stopwatch) -> None:
        seed = len(self.trials) + 1
        trial, timed = self._process.submit(_trial, seed, *self._given).result()
        self.trials.append(trial)
        watch.wall, watch.cpu = timed.wall, timed.cpu


def _trial(
    seed: int, side: type[Side], material: TrainingMaterial, scratch: Path, threads: int
) -> tuple[Trial, Stopwatch]:
    """Run a trial in this process."""
    watch = Stopwatch()
    return _warm(side, material, scratch, threads).trial(seed, watch), watch


@functools.cache
def _warm(side: type[Side], material: TrainingMaterial, scratch: Path, threads: int) -> Side:
    """Return a side that has everything to begin with, as that of the process' earlier trials."""
    quiet()
    torch.set_num_threads(threads)
    few = replace(
        material,
        train_limit=min(WARM_UP_QUESTIONS, material.train_limit),
        validation_limit=min(WARM_UP_QUESTIONS, material.validation_limit),
    )
    # What libraries load and set up at their first use is no part of a trial.
    side(prepare(few, scratch, threads)).trial(0, Stopwatch())
    return side(prepare(material, scratch, threads))


# ---------------------------------------------------------------------------- the benchmark


@dataclass(frozen=True)
class Contest:
    """Both sides after their timed runs, (pairs,) trials each."""

    bout: Bout
    comparison: Comparison
    notebook: list[Trial]
    ours: list[Trial]


def run(
    pairs: int,
    *,
    material: TrainingMaterial | None = None,
    train_questions: int = TRAIN_QUESTIONS,
    validation_questions: int = VALIDATION_QUESTIONS,
    threads: int | None = None,
) -> dict[str, Finding]:
    """Time both sides in turn, at least twice each; see what their models are worth.

    Args:
        pairs: timed runs of each side.
        material: what to train and to measure on, in place of the usual.
        train_questions: of the usual material.
        validation_questions: likewise.
        threads: of torch, on both sides; as many as there are cores if None.
    """
    material = material or training_material(train_questions, validation_questions)
    threads = threads or os.cpu_count() or 1
    print(f"trial_vs_notebook on {material.name}: {pairs} pairs of runs ...")
    contest = compete(material, pairs, threads)
    return {
        "trial_vs_notebook": _comparison(contest),
        "trial_profile": _profile(contest),
    }


def run_alone(
    pairs: int, *, material: TrainingMaterial | None = None, threads: int | None = None
) -> Finding:
    """Profile so many trials of ours, without the notebook's, which take several times as long."""
    material = material or training_material(TRAIN_QUESTIONS, VALIDATION_QUESTIONS)
    threads = threads or os.cpu_count() or 1
    print(f"trial_profile on {material.name}: {pairs} runs ...")
    return _profile(compete(material, pairs, threads, alone=True))


def compete(
    material: TrainingMaterial, pairs: int, threads: int, *, alone: bool = False
) -> Contest:
    """Let both sides run in turn, or ours alone."""
    with (
        tempfile.TemporaryDirectory(prefix="qa_hpo-bench-") as folder,
        Apart(Notebook, material, Path(folder), threads) as notebook,
        Apart(Ours, material, Path(folder), threads) as ours,
    ):
        quiet()
        bout = prepare(material, Path(folder), threads)
        comparison = _by_itself(ours, pairs) if alone else alternate(notebook, ours, pairs)
    return Contest(bout, comparison, notebook.trials, ours.trials)


def _by_itself(ours: Apart, runs: int) -> Comparison:
    watches = [Stopwatch() for _ in range(runs)]
    for watch in watches:
        ours(watch)
    return Comparison([], watches)


def _setting(contest: Contest) -> str:
    """What was measured on, in lines of a list."""
    bout = contest.bout
    material = bout.material
    windows = len(bout.features.train), len(bout.features.validation)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    precision = "bfloat16" if lower_precision(Runtime()) else "float32"
    return f"""\
- Data: {material.name}; {windows[0]:,} training and {windows[1]:,} validation windows of at most \
{material.max_length} tokens, doc_stride {material.doc_stride}
{machine(PACKAGES)}
- Both sides: on {device} in {precision}, torch threads: {bout.threads}; one epoch, batches of \
{BATCH}, learning
  rate {material.learning_rate:g} with a linear schedule and no warmup, weight decay \
{WEIGHT_DECAY}, gradients clipped
  to 1.0, the checkpoint's own dropout
{ways_of_a_worker()}"""


def _comparison(contest: Contest) -> Finding:
    comparison, pairs = contest.comparison, len(contest.ours)
    differences, quality = _quality(contest)
    fields = comparison.summary() | differences
    summary = [f"{fields[key]:.2f}x" for key in ("median", "min", "max")]
    sides = comparison.baseline, comparison.ours
    seconds = [statistics.median(run.total for run in side) for side in sides]
    hours = [f"{3600 / second:.1f}" for second in seconds]
    ratio_head = ("ours does more trials per hour", "median", "min", "max", "pairs", "in CPU time")
    ratios = ("than the notebook", *summary, str(pairs), f"{comparison.cpu_ratio:.2f}x")
    trials = [
        ("notebook", f"{seconds[0]:.2f}", hours[0]),
        ("ours", f"{seconds[1]:.2f}", hours[1]),
    ]
    parts = [
        (part, f"{second:.2f}", f"{second / seconds[0]:.1%}")
        for part, second in part_medians(comparison.baseline).items()
    ]
    body = f"""## trial_vs_notebook

How many times more trials ours does in an hour than the notebook's procedure: a trial loads the
model, trains it, evaluates it, takes answers and scores, and saves the checkpoint.

{_setting(contest)}
- Measured: {pairs} runs of each side, in turn, each side in a process of its own, wall-clock time,
  after one run of each on {WARM_UP_QUESTIONS} questions; pair k takes seed k on both sides, for the
  fresh head and the order of the data. A pair's ratio is that of two neighbouring runs. Other work
  may run on the machine: look at the ratios rather than the seconds.

{table(ratio_head, [ratios])}

{table(("side", "seconds a trial (median)", "trials an hour"), trials)}

The notebook's side is transformers' Trainer on a Dataset: every window padded to max_length,
batches of {BATCH} in random order, the loss of the validation windows after the epoch, then a
second pass over them for the answers, which plain Python loops take from the logits. It saves its
model once; ours saves a checkpoint and the state from which an interrupted run goes on. Ours
evaluates in batches of {Runtime().eval_batch_size}, in one pass for loss and answers, and gives \
its memory back within the
trial; the notebook's is collected between the runs and not timed. Questions, tokenizer and windows
are made once by a worker and kept, on either side: they are not timed.

Where the notebook's time goes (median seconds):

{table(("part", "seconds", "share"), parts)}

{quality}"""
    return Finding(fields, body)


def _quality(contest: Contest) -> tuple[dict[str, float], str]:
    """The mean differences, ours minus the notebook's, and a text with each seed's figures."""
    sides = [[trial.quality for trial in side] for side in (contest.notebook, contest.ours)]
    head = ("seed", *(f"{name}, {side}" for name in _NAMES for side in ("notebook", "ours")))
    rows = [
        (str(seed), *_cells([float(getattr(one, name)) for name in _NAMES for one in both]))
        for seed, both in enumerate(zip(*sides, strict=True), start=1)
    ]
    values = [[[float(getattr(q, name)) for q in side] for side in sides] for name in _NAMES]
    rows.append(("mean", *_cells([statistics.mean(side) for both in values for side in both])))
    rows.append(("SD", *_cells([statistics.stdev(side) for both in values for side in both])))
    differences = [statistics.mean(ours) - statistics.mean(theirs) for theirs, ours in values]
    verdicts = [
        f"- {name}: ours minus the notebook's is {difference:+.3f} on average, "
        f"{_verdict(difference, both)}"
        for name, difference, both in zip(_NAMES.values(), differences, values, strict=True)
    ]
    lines = "\n".join(verdicts)
    fields = {
        "val_loss_difference": round(differences[0], 4),
        "f1_difference": round(differences[1], 2),
    }
    text = f"""The final models, both measured by ours on the same windows: the loss in nats per \
window, F1 of the
answerable questions with the null answer disabled, and the best F1 of a tuned threshold.

{table(head, rows)}

{lines}"""
    return fields, text


_NAMES = {"val_loss": "loss", "f1": "F1 without null", "best_f1": "best F1"}
"""Quality's fields, and what they are called in a sentence."""


def _cells(values: list[float]) -> list[str]:
    """The first two are losses, the others are in percent."""
    return [f"{value:.3f}" for value in values[:2]] + [f"{value:.2f}" for value in values[2:]]


def _verdict(difference: float, sides: list[list[float]]) -> str:
    noise = max(statistics.stdev(side) for side in sides)
    place = "within" if abs(difference) <= noise else "not within"
    return f"{place} the noise of the seed (standard deviation {noise:.3f})"


# ---------------------------------------------------------------------------- the profile


def _profile(contest: Contest) -> Finding:
    watches, trials = contest.comparison.ours, contest.ours
    sides = {"notebook": (contest.comparison.baseline, contest.notebook), "ours": (watches, trials)}
    shares = {name: _shares(*side) for name, side in sides.items() if side[0]}
    outside, real, peak = shares["ours"]
    fields = {
        "outside_model_share": round(outside, 4),
        "real_token_share": round(real, 4),
        "peak_memory_mib": round(peak),
    }
    parts = _part_seconds(watches, trials)
    fixed = {part: parts[part] for part in FIXED_PARTS}
    spent = "; ".join(f"{part}: {seconds:.2f}" for part, seconds in fixed.items())
    counted = (
        "what torch had allocated on the GPU"
        if torch.cuda.is_available()
        else "the process' resident set,\nwith libraries and both sides' questions and windows"
    )
    body = f"""## trial_profile

Where the time of our trials goes, which are those of `trial_vs_notebook`.

{_setting(contest)}
- Measured: {len(trials)} runs; on a GPU, each part waits for what it began.

{_part_table(parts, statistics.median(watch.total for watch in watches))}

{_share_table(shares)}

Outside the model is what is neither a forward pass, nor a backward pass, nor an optimizer step
(with clipping and zeroing of gradients). Real tokens are those that are no padding, of all that
went through the model in training and evaluation. Memory is {counted}; the highest of all runs.

What a trial costs however little it trains: {sum(fixed.values()):.2f} seconds ({spent})."""
    return Finding(fields, body)


def _part_seconds(watches: list[Stopwatch], trials: list[Trial]) -> dict[str, float]:
    """Median seconds of each part and of the rest."""
    runs = []
    for watch, trial in zip(watches, trials, strict=True):
        seconds = trial.meter.seconds
        runs.append({**seconds, REST: watch.total - sum(seconds.values())})
    return {part: statistics.median(run[part] for run in runs) for part in runs[0]}


def _part_table(parts: dict[str, float], total: float) -> str:
    rows = [(part, f"{second:.3f}", f"{second / total:.1%}") for part, second in parts.items()]
    rows.append(("all", f"{total:.3f}", "100%"))
    return table(("part of our trial", "seconds (median)", "share"), rows)


def _shares(watches: list[Stopwatch], trials: list[Trial]) -> tuple[float, float, float]:
    """The share of the time outside the model, that of real tokens, and the peak in MiB."""
    outside = [
        1 - trial.meter.model_seconds / watch.total
        for watch, trial in zip(watches, trials, strict=True)
    ]
    real = [trial.meter.real_token_share for trial in trials]
    peak = max(trial.meter.peak_mib for trial in trials)
    return statistics.median(outside), statistics.median(real), peak


def _share_table(shares: dict[str, tuple[float, float, float]]) -> str:
    columns = list(zip(*shares.values(), strict=True))
    rows = [
        ("time outside the model", *(f"{share:.1%}" for share in columns[0])),
        ("real tokens", *(f"{share:.1%}" for share in columns[1])),
        ("peak memory, MiB", *(f"{mib:,.0f}" for mib in columns[2])),
    ]
    return table(("of a trial", *shares), rows)
