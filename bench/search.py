"""The same search by ours and by transformers' `Trainer.hyperparameter_search`.

Both sides get the same questions, start, space and number of trials, and each search a process of
its own, as its user starts it. The time is that of a whole search, from the questions' files to the
end of the last trial; the quality is that of the trial that a search ends with, on the same
validation questions.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.pruners import NopPruner
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    default_data_collator,
)
from transformers.trainer_utils import BestRun

from bench import notebook
from bench.notebook_trainer import Features, load, make_features, training_arguments
from bench.report import Finding, machine, table
from bench.timing import (
    Comparison,
    Stopwatch,
    alternate,
    begin_as_a_worker,
    ways_of_a_worker,
)
from bench.training_data import TrainingMaterial, training_material
from qa_hpo.config import Evaluation, StudyFile
from qa_hpo.finetune.evaluation import forward_pass
from qa_hpo.finetune.hardware import best_device, lower_precision
from qa_hpo.finetune.inputs import Inputs, ValidationSet
from qa_hpo.finetune.models import load_model, load_tokenizer, quiet
from qa_hpo.finetune.preflight import fingerprints, preflight
from qa_hpo.finetune.training import collator
from qa_hpo.paths import CachePaths
from qa_hpo.results.select import exported_trial
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import epoch_records
from qa_hpo.sections import Runtime
from qa_hpo.squad import scoring
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.workers.worker import work

__all__ = ["run"]

# Enough batches for the grouping by length to have the effect that it has on a whole corpus: 98% of
# the tokens are real, 96% with half as many questions.
TRAIN = 600
VALIDATION = 60
TRIALS = 8
WARM_UP = 12
BATCH = 16
SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"low": 5e-5, "high": 5e-4, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.1},
}
EPOCHS = 1
"""All of them in every trial, with no pruner on either side: what a pruner saves is luck in so few
trials, and the sides are to have as much to do."""
RESAMPLES = 2000
PACKAGES = ("qa_hpo", "torch", "transformers", "optuna", "datasets")

Floats = NDArray[np.float64]


# ---------------------------------------------------------------------------- what both are given


@dataclass(frozen=True)
class Bout:
    """What both sides are given.

    Attributes:
        material: questions and start.
        trials: of each search.
        threads: of torch.
        scratch: where whatever is written goes.
        validation: the questions by which the searches' best trials are compared.
    """

    material: TrainingMaterial
    trials: int
    threads: int
    scratch: Path
    validation: ValidationSet


def prepare(material: TrainingMaterial, trials: int, threads: int, scratch: Path) -> Bout:
    inputs = Inputs(CachePaths(scratch / "cache"))
    data = study_file(material, trials, scratch, seed=0).data
    validation = inputs.validation(data, material.checkpoint, material.doc_stride)
    return Bout(material, trials, threads, scratch, validation)


def study_file(material: TrainingMaterial, trials: int, folder: Path, seed: int) -> StudyFile:
    """The search as a study; what is not said here is as a study file has it by default."""
    given = {
        "study": {"name": "search", "seed": seed},
        "data": {
            "train": material.train,
            "validation": material.validation,
            "max_length": material.max_length,
            "train_limit": material.train_limit,
            "validation_limit": material.validation_limit,
        },
        "starts": {"base": material.checkpoint},
        "search": SPACE | {"epochs": {"value": EPOCHS}},
        "training": {"batch_size": BATCH, "doc_stride": material.doc_stride},
        "evaluation": {"doc_stride": material.doc_stride},
        "pruning": {"across": "none", "patience": EPOCHS},
        "budget": {"trials": trials},
        "artifacts": {"folder": str(folder / "artifacts")},
    }
    return StudyFile.model_validate_json(json.dumps(given))


# ---------------------------------------------------------------------------- the two sides


@dataclass(frozen=True)
class Outcome:
    """What a search did.

    Attributes:
        trials: that are complete.
        epochs: that all of them trained.
        best: what the search itself says of its best trial, its best F1 in percent.
        f1: (questions,) of that trial's answers at its tuned threshold, in percent.
        peak_mib: the most memory that its process held at once, until the search was done.
    """

    trials: int
    epochs: int
    best: float
    f1: Floats
    peak_mib: float


class Side(ABC):
    """One of the two sides, in the process of one search."""

    def __init__(self, bout: Bout) -> None:
        self.bout = bout

    @abstractmethod
    def search(self, seed: int, folder: Path, watch: Stopwatch) -> Outcome:
        """A whole search; its part that is to be timed is marked on the watch."""

    def tuned_f1(self, texts: list[str], margins: Floats) -> Floats:
        """(questions,) F1 in percent at the threshold that is best for these answers."""
        scores = scoring.score_texts(self.bout.validation.corpus, texts, margins)
        _, threshold = scoring.best_threshold(scores.span_f1, scores.null_f1, scores.null_margin)
        return 100.0 * scores.at(threshold)[1]


class _Watched:
    """The functions that `hyperparameter_search` is given, and what they see of the trials.

    Attributes:
        study: Optuna's, which `hyperparameter_search` keeps to itself.
        answers: of each trial, its epochs' answers.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.study: optuna.Study | None = None
        self.answers: list[list[notebook.Predictions]] = []

    def space(self, trial: optuna.Trial) -> dict[str, float]:
        self.study = trial.study
        self.answers.append([])
        return {
            "learning_rate": trial.suggest_float("learning_rate", **SPACE["learning_rate"]),
            "num_train_epochs": EPOCHS,
            "weight_decay": trial.suggest_float("weight_decay", **SPACE["weight_decay"]),
        }

    def metrics(self, predicted: EvalPrediction) -> dict[str, float]:
        """As a notebook computes them, from the logits of the validation windows."""
        features = self.features
        logits: Any = predicted.predictions
        start, end = logits
        found = notebook.best_answers(
            features.questions, features.prediction, start, end, features.tokenizer.cls_token_id
        )
        self.answers[-1].append(found)
        references = [{"id": row["id"], "answers": row["answers"]} for row in features.questions]
        exact, f1 = notebook.question_scores(references, found)
        metrics = notebook.official_metrics(references, found, exact, f1)
        return {name: metrics[name] for name in ("best_f1", "f1", "exact")}


class Theirs(Side):
    """A notebook's `Trainer`, and its `hyperparameter_search` with Optuna."""

    def search(self, seed: int, folder: Path, watch: Stopwatch) -> Outcome:
        with watch.part("search"):
            watched = _Watched(self._features())
            best = self._trainer(watched, seed, folder).hyperparameter_search(
                hp_space=watched.space,
                compute_objective=lambda metrics: metrics["eval_best_f1"],
                n_trials=self.bout.trials,
                direction="maximize",
                backend="optuna",
                sampler=TPESampler(seed=seed),
                pruner=NopPruner(),
            )
        peak_mib = _peak_mib()
        assert watched.study is not None
        assert isinstance(best, BestRun)
        states = [trial.state for trial in watched.study.get_trials(deepcopy=False)]
        # A trial is scored at its last epoch, so that is what its user goes on with.
        answers = watched.answers[int(best.run_id)][-1]
        names = self.bout.validation.corpus.ids
        texts, margins = zip(*(answers[name] for name in names), strict=True)
        return Outcome(
            trials=states.count(TrialState.COMPLETE),
            epochs=sum(len(epochs) for epochs in watched.answers),
            best=float(cast("float", best.objective)),
            f1=self.tuned_f1(list(texts), np.array(margins)),
            peak_mib=peak_mib,
        )

    def _features(self) -> Features:
        material = self.bout.material
        return make_features(
            load_corpus(material.train, "train", limit=material.train_limit),
            load_corpus(material.validation, "validation", limit=material.validation_limit),
            load_tokenizer(material.checkpoint),
            material.max_length,
            material.doc_stride,
        )

    def _trainer(self, watched: _Watched, seed: int, folder: Path) -> Trainer:
        low = SPACE["learning_rate"]["low"]  # each trial sets its own
        arguments = training_arguments(folder, learning_rate=low, seed=seed, batch_size=BATCH)
        trainer = Trainer(
            model_init=partial(load, self.bout.material.checkpoint, seed),
            args=arguments,
            train_dataset=watched.features.train,
            eval_dataset=watched.features.validation,
            data_collator=default_data_collator,
            processing_class=watched.features.tokenizer,
            compute_metrics=watched.metrics,
        )
        trainer.remove_callback(PrinterCallback)  # it prints every loss between our own lines
        return trainer


class Ours(Side):
    """What `qa-hpo run` does with one worker, but that the worker is this process."""

    def __init__(self, bout: Bout) -> None:
        super().__init__(bout)
        begin_as_a_worker()

    def search(self, seed: int, folder: Path, watch: Stopwatch) -> Outcome:
        file = study_file(self.bout.material, self.bout.trials, folder, seed)
        url = f"sqlite:///{folder / 'study.db'}"
        storage = None
        try:
            with _cache_in(folder / "cache"), watch.part("search"):
                inputs = Inputs(CachePaths())
                preflight(file, inputs)
                storage = open_storage(url, create=True)
                joined = create_study(file, storage, fingerprints=fingerprints(file, inputs))
                work(file.study.name, url, cpu_threads=self.bout.threads)
            return self._outcome(joined, _peak_mib())
        finally:
            if storage is not None:
                storage.close()

    def _outcome(self, joined: JoinedStudy, peak_mib: float) -> Outcome:
        trials = joined.optuna_study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        with exported_trial(joined, None) as exported:
            f1 = self._measured(exported.checkpoint)
        return Outcome(
            trials=states.count(TrialState.COMPLETE),
            epochs=sum(len(epoch_records(trial)) for trial in trials),
            best=exported.best.metrics["best_f1"],
            f1=f1,
            peak_mib=peak_mib,
        )

    def _measured(self, checkpoint: Path) -> Floats:
        """Answer the questions with the checkpoint: a study keeps no answers."""
        validation, usual = self.bout.validation, Evaluation()
        model = load_model(str(checkpoint), fresh_head=False)
        torch.nn.Module.to(model, best_device())
        forward = forward_pass(
            model,
            collator(validation.windows, load_tokenizer(str(checkpoint))),
            n_best=usual.n_best,
            max_answer_length=usual.max_answer_length,
            batch_size=Runtime().eval_batch_size,
            autocast=lower_precision(Runtime()),
        )
        answers = forward.predictions
        return self.tuned_f1(answers.texts(validation.corpus), answers.null_margin)


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """An empty cache for workers of this process: windows are made in each search."""
    name = "QA_HPO_CACHE"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


# ---------------------------------------------------------------------------- their processes


class Apart:
    """Searches of one side, each in a new process; each takes the next seed.

    Args:
        side: the side.
        material: questions and start.
        trials: of each search.
        threads: of torch.
        scratch: where whatever is written goes.
    """

    def __init__(
        self, side: type[Side], material: TrainingMaterial, trials: int, threads: int, scratch: Path
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._searched = partial(_searched, side, material, trials, threads, scratch)

    def __call__(self, watch: Stopwatch) -> None:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seed = len(self.outcomes) + 1
            outcome, timed = process.submit(self._searched, seed).result()
        self.outcomes.append(outcome)
        watch.wall, watch.cpu = timed.wall, timed.cpu
        print(
            f"  seed {seed}: {self._searched.args[0].__name__.lower()} took {watch.total:.1f} s "
            f"(CPU time {watch.cpu:.1f} s), best F1 {outcome.best:.2f}, "
            f"peak {outcome.peak_mib:,.0f} MiB",
            flush=True,
        )


def _searched(
    side: type[Side],
    material: TrainingMaterial,
    trials: int,
    threads: int,
    scratch: Path,
    seed: int,
) -> tuple[Outcome, Stopwatch]:
    """Search with a seed, in this process."""
    few = replace(
        material,
        train_limit=min(WARM_UP, material.train_limit),
        validation_limit=min(WARM_UP, material.validation_limit),
    )
    with _quiet_with_threads(threads):
        # What libraries load and set up at their first use is no part of a search.
        warm_up = side(prepare(few, 1, threads, scratch))
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            warm_up.search(seed, Path(folder), Stopwatch())
        gc.collect()
        timed = side(prepare(material, trials, threads, scratch))
        watch = Stopwatch()
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return timed.search(seed, Path(folder), watch), watch


def _peak_mib() -> float:
    """The most memory that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# ---------------------------------------------------------------------------- the difference


@dataclass(frozen=True)
class Difference:
    """A mean difference, and the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        return f"{self.low:+.2f} to {self.high:+.2f}"

    @property
    def verdict(self) -> str:
        beyond = "not lower beyond" if self.high >= 0 else "lower beyond"
        return f"ours is {beyond} the interval"


def bootstrap(differences: Floats, groups: NDArray[np.int64], seed: int = 0) -> Difference:
    """The mean of paired differences, whose groups are drawn anew again and again.

    Args:
        differences: (questions,)
        groups: (questions,) the article of each: its questions are no independent draws.
        seed: of the draws.
    """
    _, article = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(article, weights=differences), np.bincount(article)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Difference(float(differences.mean()), float(low), float(high))


# ---------------------------------------------------------------------------- the benchmark


@dataclass(frozen=True)
class Contest:
    """Both sides after their searches, (pairs,) each."""

    bout: Bout
    comparison: Comparison
    theirs: list[Outcome]
    ours: list[Outcome]

    def differences(self) -> list[Difference]:
        """Ours minus theirs by pair, and last of all pairs: each question's mean over them."""
        rows = [ours.f1 - theirs.f1 for theirs, ours in zip(self.theirs, self.ours, strict=True)]
        return [bootstrap(row, self.bout.validation.groups) for row in [*rows, np.mean(rows, 0)]]


def run(
    pairs: int,
    *,
    material: TrainingMaterial | None = None,
    trials: int = TRIALS,
    train_questions: int = TRAIN,
    validation_questions: int = VALIDATION,
    threads: int | None = None,
) -> Finding:
    """Let both sides search in turn; see what is faster, and whether the results are as good.

    Args:
        pairs: searches of each side.
        material: what to train and to measure on, in place of the usual.
        trials: of each search.
        train_questions: of the usual material.
        validation_questions: likewise.
        threads: of torch, on both sides; as many as there are cores if None.
    """
    material = material or training_material(train_questions, validation_questions)
    print(f"search_vs_trainer on {material.name}: {pairs} pairs of {trials} trials ...")
    return _finding(compete(material, pairs, trials, threads or os.cpu_count() or 1))


def compete(material: TrainingMaterial, pairs: int, trials: int, threads: int) -> Contest:
    with (
        tempfile.TemporaryDirectory(prefix="qa_hpo-bench-") as scratch,
        _quiet_with_threads(threads),
    ):
        bout = prepare(material, trials, threads, Path(scratch))
        theirs, ours = (
            Apart(side, material, trials, threads, Path(scratch)) for side in (Theirs, Ours)
        )
        comparison = alternate(theirs, ours, pairs)
    return Contest(bout, comparison, theirs.outcomes, ours.outcomes)


@contextlib.contextmanager
def _quiet_with_threads(threads: int) -> Iterator[None]:
    quiet()
    before = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        optuna.logging.set_verbosity(before[1])


def _finding(contest: Contest) -> Finding:
    bout, comparison = contest.bout, contest.comparison
    *_, pooled = differences = contest.differences()
    fields = comparison.summary() | {
        "best_f1_difference": round(pooled.mean, 2),
        "best_f1_interval": [round(pooled.low, 2), round(pooled.high, 2)],
    }
    peaks = [
        statistics.median(outcome.peak_mib for outcome in side)
        for side in (contest.theirs, contest.ours)
    ]
    real = bout.validation.windows.lengths.mean() / bout.material.max_length
    with_model = fields["median"] * (bout.trials + 1) / bout.trials
    body = f"""## search_vs_trainer

How many times faster ours does a whole search than transformers' \
`Trainer.hyperparameter_search`,
and whether the model that it ends with is as good.

{_setting(bout)}
- Timed: wall-clock time from the questions' files over the windows, which each search makes once,
  to the end of the last trial; {len(contest.ours)} searches of each side, in turn, each in a \
process of its
  own, in which one trial on {WARM_UP} questions goes before. In pair k both sides take seed k: \
Trainer for
  all trials alike, ours to derive one for each. Other work may run on the machine: look at the
  ratios rather than the seconds.
- Peak memory, of the process and until the search's end: Trainer {peaks[0]:,.0f} MiB, ours \
{peaks[1]:,.0f} MiB (median)

{_ratio_table(contest)}

Apart from what they search, the sides differ in tokens and in what surrounds the model: Trainer's
windows are all padded to {bout.material.max_length} tokens, of which {real:.0%} are real (in \
validation), and ours to the
longest of a batch of like length; answers and scores come from loops, and with ours from arrays.
Both evaluate an epoch in one pass. Every trial trains all its epochs on either side, with pruning
off: what it saves comes on top.

{_pair_table(contest, differences)}

Best F1 is that of the trial that a search ends with, at its own tuned threshold, in percent, both
scored by the same code on the same {len(bout.validation.corpus)} questions: Trainer's at its \
last epoch, by which it is
judged, ours at its best. Intervals are 95%, of a paired bootstrap by article ({RESAMPLES:,} \
resamples);
"all" is of each question's mean over the pairs. They hold the draw of the questions, and not that
of the seeds, which the pairs show. Over all pairs, ours minus Trainer's is {pooled.mean:+.2f}
({pooled.interval}): {pooled.verdict}.

Trainer's side is what its user gets: a Dataset of windows, `model_init`, an evaluation after each
epoch whose `compute_metrics` takes answers from the logits in a notebook's loops, and best F1 as
the objective, reported to Optuna at each evaluation. Its study lies in memory, with Optuna's TPE
sampler, here with a seed. No checkpoint is kept, so its user has to train the best trial again,
which is not timed: with one trial more of the same length, ours would be {with_model:.2f}x as fast
to a model. Ours is `qa-hpo run` with one worker, which here is the same process: preflight,
a study in SQLite, checkpoints and resume states on disk. Neither sampler models anything before 10
trials are done; until then both draw at random."""
    return Finding(fields, body)


def _setting(bout: Bout) -> str:
    """What was searched on, in lines of a list."""
    material = bout.material
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    precision = "bfloat16" if lower_precision(Runtime()) else "float32"
    rate, decay = SPACE["learning_rate"], SPACE["weight_decay"]
    return f"""\
- Data: {material.name}; windows of at most {material.max_length} tokens, doc_stride \
{material.doc_stride}
{machine(PACKAGES)}
- Both sides: on {device} in {precision}, torch threads: {bout.threads}; {bout.trials} trials; \
learning rate
  {rate["low"]:g} to {rate["high"]:g} (log), {EPOCHS} epoch{"s" if EPOCHS > 1 else ""}, \
weight decay {decay["low"]:g} to {decay["high"]:g}; batches of {BATCH} (in
  evaluation, ours takes {Runtime().eval_batch_size}), a linear schedule without warmup, \
gradients clipped to 1.0, the
  checkpoint's own dropout
{ways_of_a_worker()}"""


def _ratio_table(contest: Contest) -> str:
    ratios = contest.comparison.ratios
    figures = statistics.median(ratios), min(ratios), max(ratios)
    cells = [f"{figure:.2f}x" for figure in figures]
    head = ("ours is faster than Trainer", "median", "min", "max", "pairs")
    return table(head, [("a whole search", *cells, str(len(ratios)))])


def _pair_table(contest: Contest, differences: list[Difference]) -> str:
    comparison = contest.comparison
    head = (
        "pair",
        *(f"{what}, {side}" for what in ("seconds", "epochs") for side in _SIDES),
        *(f"best F1, {side}" for side in _SIDES),
        "ours - Trainer's",
        "95% interval",
    )
    rows = []
    for pair, difference in enumerate(differences[:-1]):
        watches = comparison.baseline[pair], comparison.ours[pair]
        both = contest.theirs[pair], contest.ours[pair]
        cells = [f"{watch.total:.1f}" for watch in watches]
        cells += [str(outcome.epochs) for outcome in both]
        cells += [f"{outcome.f1.mean():.2f}" for outcome in both]
        rows.append((str(pair + 1), *cells, f"{difference.mean:+.2f}", difference.interval))
    blanks = [""] * 4
    means = [
        f"{np.mean([outcome.f1.mean() for outcome in side]):.2f}"
        for side in (contest.theirs, contest.ours)
    ]
    pooled = differences[-1]
    rows.append(("all", *blanks, *means, f"{pooled.mean:+.2f}", pooled.interval))
    return table(head, rows)


_SIDES = ("Trainer", "ours")
