"""How cost grows with questions, tokens and trials: seconds at several sizes, and the exponents."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bench.data import Material
from bench.postprocess import PARTS, prepare, run_ours
from bench.report import Finding, machine, table
from bench.storage_share import FILE
from bench.timing import Stopwatch
from bench.training_data import TrainingMaterial, training_material
from qa_hpo.config import StudyFile
from qa_hpo.demo import BASE
from qa_hpo.finetune.batching import LengthGroupedBatches, WindowCollator
from qa_hpo.finetune.evaluation import Forward, forward_pass, span_loss
from qa_hpo.finetune.families import position_limit
from qa_hpo.finetune.models import load_model, load_tokenizer, quiet
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.finetune.training import collator
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.results.progress import snapshot
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.failures import Cause
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study, load_study
from qa_hpo.search.trials import CAUSE, EPOCHS, STOP_REASON, finish, record_epoch, with_reports
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.windows import Windows, build_windows

__all__ = ["Row", "exponent", "fill", "full_windows", "run", "run_trial"]

SEED = 20
REPEATS = 3
LINEAR = 1.15
"""Above this, the last step's exponent is told: what is below may be the machine's noise."""
TRAIN_BATCH = 8
PASS_BATCH = 32
PASS_TOKENS = 128
EPOCHS_EACH = 3
NAME = "growth"
PACKAGES = ("qa_hpo", "numpy", "torch", "transformers", "tokenizers", "optuna", "SQLAlchemy")
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """What something costs at several sizes.

    Attributes:
        name: What it is.
        of: What the sizes count.
        sizes: Ascending.
        values: What it costs at each size.
        unit: Of the values: seconds or bytes.
        attention: Whether it grows with a window's length, in which attention is quadratic.
    """

    name: str
    of: str
    sizes: Sequence[int]
    values: Sequence[float]
    unit: str = "seconds"
    attention: bool = False

    @property
    def exponent(self) -> float:
        """Of all sizes."""
        return exponent(self.sizes, self.values)

    @property
    def last_exponent(self) -> float:
        """Between the two largest sizes, where what is constant weighs least."""
        return exponent(self.sizes[-2:], self.values[-2:])

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sizes": list(self.sizes),
            self.unit: list(self.values),
            "exponent": round(self.exponent, 3),
            "last_exponent": round(self.last_exponent, 3),
        }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return p of the power law value = c * size**p that fits best, by least squares of logs."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def settle() -> None:
    """Collect garbage, and let later collections pass over what is there now.

    Where torch is imported, each full collection takes long whatever is measured, so that a few of
    them more would look like growth.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.collect()  # how soon the next full one comes depends on what this one leaves: nothing


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of so many runs: the one that others disturbed least."""
    seconds = []
    for _ in range(repeats):
        settle()
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


# ---------------------------------------------------------------------------- questions


class _Memory(Stopwatch):
    """Takes the memory of each part instead of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.before[name] = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        self.peak[name] = tracemalloc.get_traced_memory()[1]


def corpus_rows(material: TrainingMaterial, questions: int, repeats: int) -> list[Row]:
    """Windows, post-processing and batches of a sixteenth, a quarter and all of the questions."""
    tokenizer = load_tokenizer(material.checkpoint)
    whole = min(questions, len(load_corpus(material.validation, "validation")))
    sizes = (whole // 16, whole // 4, whole)
    costs = [_corpus_costs(material, tokenizer, size, repeats) for size in sizes]
    return [
        Row(name, "questions", sizes, [cost[name] for cost in costs], unit)
        for name, unit in (
            ("building windows", "seconds"),
            ("spans, scores, threshold, cross-fit", "seconds"),
            ("an epoch's batches", "seconds"),
            ("post-processing's peak memory", "bytes"),
        )
    ]


def _corpus_costs(
    material: TrainingMaterial, tokenizer: PreTrainedTokenizerFast, size: int, repeats: int
) -> dict[str, float]:
    lengths = {"max_length": material.max_length, "doc_stride": material.doc_stride}
    corpus = load_corpus(material.validation, "validation", limit=size)
    bout = prepare(Material(material.name, corpus, tokenizer, **lengths))
    runs = []
    for _ in range(repeats):
        settle()
        watch = Stopwatch()
        run_ours(bout, watch)
        runs.append(watch)
    windows = build_windows(corpus, tokenizer, **lengths)

    def epoch() -> None:
        collate = collator(windows, tokenizer)
        for batch in LengthGroupedBatches(windows.lengths, TRAIN_BATCH, SEED):
            collate(batch)

    memory = _Memory()
    tracemalloc.start()
    try:
        run_ours(bout, memory)
    finally:
        tracemalloc.stop()
    return {
        "building windows": min(run.wall[PARTS[0]] for run in runs),
        "spans, scores, threshold, cross-fit": min(run.total - run.wall[PARTS[0]] for run in runs),
        "an epoch's batches": fastest(epoch, repeats),
        "post-processing's peak memory": max(memory.peak[part] for part in PARTS[1:])
        - memory.before[PARTS[1]],
    }


# ---------------------------------------------------------------------------- the model


def full_windows(count: int, length: int, vocabulary: int) -> Windows:
    """Windows of random tokens, all as long as a window may be, each of a question of its own."""
    rng = np.random.default_rng(SEED)
    position = np.tile(np.arange(length, dtype=np.int32), count)
    start = rng.integers(1, length, count).astype(np.int16)
    return Windows(
        input_ids=rng.integers(0, vocabulary, count * length, dtype=np.int32),
        token_type_ids=np.zeros(count * length, dtype=np.uint8),
        char_start=np.where(position > 0, position, -1).astype(np.int32),
        char_end=np.where(position > 0, position + 1, -1).astype(np.int32),
        offsets=np.arange(count + 1, dtype=np.int64) * length,
        question_index=np.arange(count, dtype=np.int32),
        cls_index=np.zeros(count, dtype=np.int16),
        start_positions=start,
        end_positions=start,
        questions=count,
    )


def _collator(model: PreTrainedModel, count: int, length: int) -> WindowCollator:
    return WindowCollator(full_windows(count, length, model.config.vocab_size), 0, left=False)


def _pass(model: PreTrainedModel, windows: WindowCollator) -> Forward:
    return forward_pass(model, windows, n_best=20, max_answer_length=30, batch_size=PASS_BATCH)


def pass_row(counts: Sequence[int], repeats: int) -> Row:
    """An evaluation's forward pass over so many windows, with the demo's base model."""
    model = load_model(str(BASE))
    sets = [_collator(model, count, PASS_TOKENS) for count in counts]
    _pass(model, sets[0])  # what torch sets up at its first call
    seconds = [fastest(partial(_pass, model, windows), repeats) for windows in sets]
    return Row("evaluation pass", "windows", counts, seconds)


def length_rows(checkpoint: str, lengths: Sequence[int] | None, repeats: int) -> list[Row]:
    """A training step and an evaluation's forward pass, of one batch of windows of each length."""
    model = load_model(checkpoint)
    if lengths is None:
        fits = (position_limit(model.config) or 384) >= 384
        lengths = (128, 256, 384) if fits else (64, 128, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    sets = [_collator(model, TRAIN_BATCH, length) for length in lengths]
    steps, passes = [], []
    for windows in sets:
        step = partial(_step, model, optimizer, windows(range(TRAIN_BATCH)))
        step()  # so that none pays for the optimizer's state, or for memory that is new
        steps.append(fastest(step, repeats))
    for windows in sets:
        _pass(model, windows)
        passes.append(fastest(partial(_pass, model, windows), repeats))
    of = "tokens a window"
    return [
        Row("training step", of, lengths, steps, attention=True),
        Row("evaluation pass of a batch", of, lengths, passes, attention=True),
    ]


def _step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]
) -> None:
    model.train()
    labels = {name: batch[name] for name in ("start_positions", "end_positions")}
    outputs = model(**{name: tensor for name, tensor in batch.items() if name not in labels})
    mask = batch["attention_mask"]
    loss = span_loss(outputs.start_logits, outputs.end_logits, mask, **labels).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


# ---------------------------------------------------------------------------- trials


def trial_rows(sizes: Sequence[int], repeats: int) -> list[Row]:
    """What a worker and a reader ask of a study on SQLite that has so many trials."""
    costs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="qa_hpo-growth-") as folder:
        url = f"sqlite:///{folder}/study.db"
        storage = open_storage(url, create=True)
        joined = create_study(_study(), storage, fingerprints={})
        for size in sizes:
            fill(joined, size)
            run_trial(joined)  # the first one reads what others did, as it seldom has to
            settle()
            works = [run_trial(joined) for _ in range(repeats)]
            reads = [_read(url) for _ in range(repeats)]
            costs.append(_least(works) | _least(reads))
        storage.close()
    return [Row(name, "trials", sizes, [cost[name] for cost in costs]) for name in costs[0]]


def _study() -> StudyFile:
    changed = {"study": {"name": NAME, "seed": SEED}, "budget": {"trials": 1_000_000}}
    return StudyFile.model_validate_json(json.dumps(FILE | changed))


def _least(runs: list[Stopwatch]) -> dict[str, float]:
    return {name: min(run.wall[name] for run in runs) for name in runs[0].wall}


def fill(joined: JoinedStudy, size: int) -> None:
    """Add finished trials, as workers leave them, until the study has ``size``."""
    for number in range(len(joined.optuna_study.get_trials(deepcopy=False)), size):
        joined.storage.rdb.create_new_trial(joined.key, _finished(joined, number))


def _finished(joined: JoinedStudy, number: int) -> FrozenTrial:
    """Three epochs; of ten trials one was pruned, and of fifty one failed for good."""
    rng = np.random.default_rng([SEED, number])
    losses = rng.uniform(0.8, 1.6, EPOCHS_EACH).round(6).tolist()
    best = float(rng.uniform(30, 80))
    states = {0: TrialState.FAIL, 10: TrialState.PRUNED}
    state = states.get(number % 50, states.get(10 + number % 10, TrialState.COMPLETE))
    attributes: dict[str, Any] = {
        EPOCHS: [_record(epoch, loss, best) for epoch, loss in enumerate(losses, start=1)],
        "worker": f"worker {number % 8}",
        "epochs_reserved": EPOCHS_EACH,
    }
    if state is TrialState.FAIL:
        attributes |= {CAUSE: str(Cause.OOM), "error": "not even one window fits"}
    else:
        attributes |= _result(best)
    if state is TrialState.PRUNED:
        attributes[STOP_REASON] = "hopeless"
    return create_trial(
        state=state,
        values=None if state is TrialState.FAIL else [best],
        params={
            "start": ("base", "v1")[number % 2],
            "learning_rate": float(10 ** rng.uniform(-5, -3)),
            "epochs": EPOCHS_EACH,
            "weight_decay": float(rng.uniform(0, 0.1)),
        },
        distributions=dict(joined.space.distributions),
        user_attrs=attributes,
        intermediate_values={epoch: -loss for epoch, loss in enumerate(losses, start=1)},
    )


def _record(epoch: int, loss: float, best: float) -> dict[str, Any]:
    scores = dict.fromkeys(("exact", "f1", "best_exact", "best_f1", "crossfit_f1"), best)
    return EpochRecord(
        epoch=epoch,
        train_loss=loss,
        seconds=60.0,
        eval_seconds=6.0,
        val_loss=loss,
        metrics={**scores, "best_f1_thresh": -1.0},
    ).as_dict()


def _result(best: float) -> dict[str, Any]:
    names = ("f1", "exact", "best_f1", "best_exact", "crossfit_f1")
    scores = dict.fromkeys(names, best)
    return {**scores, "threshold": -1.0, "best_epoch": EPOCHS_EACH, "train_seconds": 180.0}


def run_trial(joined: JoinedStudy) -> Stopwatch:
    """Take a trial, tell of two epochs, and finish it; time what the study has to do with."""
    watch = Stopwatch()
    with watch.part("ask"):
        asked = ask(joined, worker="bench")
    if not isinstance(asked, Asked):
        raise TypeError(f"the study has no trial left: {asked.cause}")
    record_epoch(joined, asked.trial, _record(1, 1.2, 50.0))  # too early for the pruner
    with watch.part("record an epoch and ask the pruner"):
        record_epoch(joined, asked.trial, _record(2, 1.1, 50.0))
        trial = with_reports(asked.trial, {1: 1.2, 2: 1.1})
        trial.params = {**trial.params, "epochs": EPOCHS_EACH}  # so that it has its like
        joined.optuna_study.pruner.prune(joined.optuna_study, trial)
    with watch.part("finish"):
        finish(joined, asked.trial, state=TrialState.COMPLETE, attrs=_result(50.0))
    return watch


def _read(url: str) -> Stopwatch:
    """Read a study as a command does, which begins with nothing in its memory."""
    watch = Stopwatch()
    reads: dict[str, Callable[[JoinedStudy], object]] = {
        "leaderboard": leaderboard,
        "status": snapshot,
    }
    for name, read in reads.items():
        storage = open_storage(url, create=False)
        joined = load_study(NAME, storage)
        settle()
        with watch.part(name):
            read(joined)
        storage.close()
    return watch


# ---------------------------------------------------------------------------- the benchmark


def run(
    pairs: int,
    *,
    questions: int = 6000,
    windows: Sequence[int] = (64, 256, 1024),
    lengths: Sequence[int] | None = None,
    trials: Sequence[int] = (10, 1000, 5000),
) -> Finding:
    """Measure each row, the fastest of at most three runs, and put the exponents down.

    Args:
        pairs: Runs of each size, where there are fewer than three.
        questions: The most questions that are used.
        windows: Windows of an evaluation pass.
        lengths: Tokens of a window; None takes those that the model allows.
        trials: Trials of a study.
    """
    quiet()
    repeats = min(pairs, REPEATS)
    material = training_material(0, questions)
    print(f"{NAME} on {material.name}", flush=True)
    try:
        rows = [
            *corpus_rows(material, questions, repeats),
            pass_row(windows, repeats),
            *length_rows(material.checkpoint, lengths, repeats),
            *trial_rows(trials, repeats),
        ]
    finally:
        gc.unfreeze()
    fields = {"rows": [row.as_dict() for row in rows], "above_linear": above_linear(rows)}
    return Finding(fields, _body(material, rows, repeats))


def above_linear(rows: Sequence[Row]) -> list[str]:
    """Return the names of the rows that grow faster than they should."""
    return [row.name for row in rows if row.last_exponent > LINEAR and not row.attention]


def verdict(rows: Sequence[Row]) -> str:
    """Return which rows grow faster than their size, in one sentence."""
    if above := above_linear(rows):
        return f"Above linear: {', '.join(above)}."
    attention = any(row.last_exponent > LINEAR for row in rows)
    return f"None above linear{' but attention' if attention else ''}."


def _body(material: TrainingMaterial, rows: Sequence[Row], repeats: int) -> str:
    data, _, rest = material.name.partition(",")
    model = rest.partition("; ")[2].partition(",")[0]
    head = ("what", "of", "sizes", "cost", "exponent", "last step")
    return f"""## growth

How cost grows with questions, tokens and trials. An exponent of 1 is linear: twice the size costs
twice as much. The exponent is fitted to all sizes, by least squares of logarithms; the last step's
is that between the two largest, where what is constant weighs least.

- Data: {data}, validation questions, windows of at most {material.max_length} tokens
- Models: {model} for steps and passes by length; the demo's base for the evaluation pass by
  windows, of {PASS_TOKENS} tokens
{machine(PACKAGES)}
- Measured: the fastest of {repeats} runs, wall-clock time, one thread; garbage collections pass
  over what was there before a run. Other work may run on the machine, which moves an exponent by
  some hundredths.

{table(head, [_cells(row) for row in rows])}

{verdict(rows)} (Last step above {LINEAR}; lengths of windows are left out, see below.)

Questions are a random part of the corpus, so that the fewer there are, the fewer share a context.
Windows are built anew, and post-processing is that of postprocess_vs_notebook, from made-up logits
and with empty caches; it holds, above the windows and logits that are there before, the memory
that tracemalloc saw (NumPy's arrays and Python's objects). The batches are those of an epoch of
batches of {TRAIN_BATCH}, planned and padded.

By length, windows are full and of random tokens, {TRAIN_BATCH} a batch. Attention compares each
token with each other, so that their exponents lie somewhat above 1 and rise with the length. A
step is the forward and the backward pass and that of AdamW, which does not depend on the length.

The study is on SQLite and has four searched parameters. Its trials have three epochs each; a few
were pruned or failed. `ask`, an epoch and `finish` are those of a worker that has been there
before, as it is at all but its first trial: asking compares with every trial and fits TPE to them.
The leaderboard and the status are read as by a command, with nothing in memory."""


def _cells(row: Row) -> list[str]:
    scale, unit = (MIB, "MiB") if row.unit == "bytes" else (1, "s")
    costs = " / ".join(f"{value / scale:.3g}" for value in row.values)
    sizes = " / ".join(f"{size:,}" for size in row.sizes)
    exponents = f"{row.exponent:.2f}", f"{row.last_exponent:.2f}"
    return [row.name, row.of, sizes, f"{costs} {unit}", *exponents]
