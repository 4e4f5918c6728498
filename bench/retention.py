"""What each retention method keeps of an old task, what it costs, and what is learnt beside it.

The demo's model learns questions that all have an answer, then questions of which many have none.
How well the methods keep the first depends on the data: what is here is what they do on the demo.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.data import TOKENIZER_PACKAGE
from bench.progressive import inference_ratio, instead_of_none
from bench.report import Finding, machine, table
from bench.trial import _replaced
from qa_hpo.config import RunConfig
from qa_hpo.demo import BASE, write_demo
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_model, load_tokenizer, quiet
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.starts import Starts
from qa_hpo.finetune.trainer import QuestionAnsweringTrainer
from qa_hpo.finetune.training import collator
from qa_hpo.paths import CachePaths

__all__ = ["run"]

PACKAGES = ("qa_hpo", "torch", "transformers", "peft")
SEEDS = 5
BATCH = 32
STEPS = 12
WARM_UP = 3
"""Steps of a run whose cost is measured, and how many of them are not looked at."""
PROGRESSIVE = "progressive"
"""No method of the package, see `bench.progressive`."""
SETTINGS: tuple[dict[str, Any], ...] = (
    {"method": "none"},
    {"method": "l2sp", "strength": 0.03},
    {"method": "ewc", "strength": 1000.0},
    {"method": "si", "strength": 1.0},
    {"method": "replay", "strength": 0.3},
    {"method": "distill", "strength": 0.6},
    {"method": "freeze", "strength": 0.5},
    {"method": "mask", "strength": 0.5},
    {"method": "lora", "rank": 8},
    {"method": "adalora", "rank": 8},
    {"method": PROGRESSIVE},
)
"""The methods as they are compared; found by trying a few strengths with another seed."""
TRIAL = {"start": "v1", "learning_rate": 1e-3, "epochs": 2, "weight_decay": 0.01}
"""How the new task is learnt: as the demo's baseline is, in two epochs."""
LEARNING_RATES = {"lora": 5e-3, "adalora": 5e-3, PROGRESSIVE: 5e-3}
"""What begins at nothing wants a higher one."""


@dataclass(frozen=True)
class Kept:
    """What a run scores, in percent: on the new task, and on the old one before and after."""

    new_f1: float
    old_f1: float
    drop: float
    drop_no_null: float


def run(
    pairs: int,
    *,
    settings: Sequence[dict[str, Any]] = SETTINGS,
    seeds: int = SEEDS,
    limit: int | None = None,
) -> Finding:
    """Train with each method and several seeds; measure what is kept, and what a step costs.

    Args:
        pairs: rounds in which the costs are measured, in turn.
        settings: the methods.
        seeds: runs of each method.
        limit: training questions of either task; all of them if None.
    """
    with tempfile.TemporaryDirectory(prefix="qa_hpo-bench-") as scratch:
        folder = Path(scratch)
        write_demo(folder / "demo")
        kept = measured(folder, settings, range(1, seeds + 1), limit)
        costs = Costs(folder / "costs", settings)
        for _ in range(pairs):
            costs.measure()
        rows = [_row(one, runs, costs) for one, runs in zip(settings, kept, strict=True)]
        ratio = costs.inference_ratio()
        own = [row for row in rows if row["method"] != PROGRESSIVE]
        fields = {"methods": own, PROGRESSIVE: [row for row in rows if row not in own]}
        return Finding(fields, _body(rows, kept, seeds, (pairs, costs.name, ratio)))


def measured(
    folder: Path, settings: Sequence[dict[str, Any]], seeds: Sequence[int], limit: int | None
) -> list[list[Kept]]:
    """What runs with each method score, by seed; as many at once as there are cores."""
    # The start, and what methods compute from it once, before several want it.
    first = [_config(folder, one, seeds[0], limit, epochs=1) for one in settings]
    inputs = Inputs(CachePaths(folder / "cache"))
    quiet()
    Starts(first[0], first[0].runtime, inputs).checkpoint("v1")
    jobs = [(one, seed) for seed in seeds for one in settings]
    work = partial(_measure, folder, limit)
    processes = os.cpu_count() or 1
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(work, jobs))
    return [
        [kept for (one, _), kept in zip(jobs, found, strict=True) if one == chosen]
        for chosen in settings
    ]


def _measure(folder: Path, limit: int | None, job: tuple[dict[str, Any], int]) -> Kept:
    quiet()
    chosen, seed = job
    config = _config(folder, chosen, seed, limit)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        inputs = Inputs(CachePaths(folder / "cache"))
        with _as_chosen(chosen):
            done = fine_tune(config, Path(scratch) / "run", inputs=inputs)
    assert done.best is not None
    metrics = done.best.metrics
    return Kept(
        metrics["best_f1"],
        metrics["old_task_f1"],
        metrics["old_task_drop"],
        metrics["old_task_drop_no_null"],
    )


def _as_chosen(chosen: dict[str, Any]) -> AbstractContextManager[None]:
    return instead_of_none() if chosen["method"] == PROGRESSIVE else nullcontext()


def _config(
    folder: Path, chosen: dict[str, Any], seed: int, limit: int | None, **more: Any
) -> RunConfig:
    demo = folder / "demo"
    method = {"method": "none"} if chosen["method"] == PROGRESSIVE else chosen
    rate = LEARNING_RATES.get(chosen["method"], TRIAL["learning_rate"])
    given = {
        "run": {"name": "retention", "seed": seed},
        "data": {
            "train": str(demo / "train-v2.json"),
            "validation": str(demo / "validation-v2.json"),
            "max_length": 128,
            "train_limit": limit,
        },
        "starts": {
            "base": str(demo / "base"),
            "v1": {
                "from": "base",
                "train": str(demo / "train-v1.json"),
                "train_limit": limit,
                "epochs": 2,
                "learning_rate": 1e-3,
                "batch_size": BATCH,
                "doc_stride": 32,
                "path_integral": True,
            },
        },
        "parameters": TRIAL
        | {"learning_rate": rate, "batch_size": BATCH, "doc_stride": 32, "retention": method}
        | more,
        "training": {"cpu_threads": 1},
        "evaluation": {"doc_stride": 32, "old_task": str(demo / "validation-v1.json")},
    }
    return RunConfig.model_validate_json(json.dumps(given))


# ---------------------------------------------------------------------------- what a step costs


class Costs:
    """Seconds of a training step and memory of a run, with each method.

    Measured with real weights where they are there: with the demo's model, a step is over before
    it costs anything.

    Attributes:
        name: What is trained.
        seconds: of a step, by method, (rounds,) each.
        mib: that a run adds to the process at its peak, likewise.
    """

    def __init__(self, folder: Path, settings: Sequence[dict[str, Any]]) -> None:
        self.folder = folder
        self.settings = settings
        self.seconds: dict[str, list[float]] = {one["method"]: [] for one in settings}
        self.mib: dict[str, list[float]] = {one["method"]: [] for one in settings}
        package = find_spec(TOKENIZER_PACKAGE)
        real = package is not None and package.origin is not None
        source = Path(package.origin).parent / "model" if real else BASE
        self.name = "MiniLM-L6 (22 million parameters)" if real else "the demo's model (3 MB)"
        write_demo(folder / "demo")
        # A head that counts as trained: what it answers has no part in what a step costs.
        load_model(str(source)).save_pretrained(folder / "base")
        load_tokenizer(str(source)).save_pretrained(folder / "base")
        self.inputs = Inputs(CachePaths(folder / "cache"))

    def measure(self) -> None:
        """Run each method once, one after the other."""
        for chosen in self.settings:
            began: list[float] = []
            with (
                tempfile.TemporaryDirectory(dir=self.folder) as scratch,
                _as_chosen(chosen),
                _replaced(QuestionAnsweringTrainer, "training_step", partial(_noting, began)),
            ):
                done = fine_tune(self._config(chosen), Path(scratch) / "run", inputs=self.inputs)
            # From the beginning of a step to that of the next; the first ones warm up.
            spans = [later - one for one, later in pairwise(began[WARM_UP:STEPS])]
            self.seconds[chosen["method"]].append(statistics.median(spans))
            self.mib[chosen["method"]].append(done.peak_memory_mib)

    def _config(self, chosen: dict[str, Any]) -> RunConfig:
        config = _config(self.folder, chosen, 1, STEPS * BATCH, epochs=1)
        given = config.model_dump(mode="json", by_alias=True)
        given["data"]["validation_limit"] = given["evaluation"]["old_task_limit"] = 8
        given["starts"]["v1"] |= {"epochs": 1, "train_limit": STEPS * BATCH}
        given["training"]["cpu_threads"] = os.cpu_count()
        return RunConfig.model_validate_json(json.dumps(given))

    def inference_ratio(self) -> float:
        """How many times as long an answer takes with a second column."""
        config = self._config({"method": "none"})
        start = Starts(config, config.runtime, self.inputs).checkpoint("v1")
        validation = self.inputs.validation(config.data, start, config.evaluation.doc_stride)
        batch = collator(validation.windows, self.inputs.tokenizer(start))(range(8))
        inputs = {name: rows for name, rows in batch.items() if "positions" not in name}
        return inference_ratio(start, inputs)

    def ratios(self, method: str) -> tuple[float, float]:
        """How many times the seconds of a step and the memory of a run without a method."""
        return tuple(  # type: ignore[return-value]
            statistics.median(
                own / plain for own, plain in zip(each[method], each["none"], strict=True)
            )
            for each in (self.seconds, self.mib)
        )


def _noting(began: list[float], step: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any, **more: Any) -> Any:
        began.append(time.perf_counter())
        return step(*given, **more)

    return noted


# ---------------------------------------------------------------------------- the page


def _row(chosen: dict[str, Any], runs: list[Kept], costs: Costs) -> dict[str, Any]:
    means = {
        field.name: round(statistics.mean(getattr(one, field.name) for one in runs), 2)
        for field in fields(Kept)
    }
    step, memory = costs.ratios(chosen["method"])
    return {
        **chosen,
        **means,
        "step_time_ratio": round(step, 2),
        "memory_ratio": round(memory, 2),
    }


def _body(
    rows: list[dict[str, Any]],
    kept: list[list[Kept]],
    seeds: int,
    costs: tuple[int, str, float],
) -> str:
    rounds, model, slower = costs
    plain = next(row for row in rows if row["method"] == "none")
    spreads = [statistics.stdev(one.drop for one in runs) for runs in kept]
    lines = [
        [
            row["method"],
            str(row.get("strength", f"rank {row['rank']}" if "rank" in row else "")),
            f"{row['new_f1']:.2f}",
            f"{row['new_f1'] - plain['new_f1']:+.2f}",
            f"{row['old_f1']:.2f}",
            f"{row['drop']:.2f} ± {spread:.2f}",
            f"{row['drop_no_null']:.2f}",
            f"{row['step_time_ratio']:.2f}",
            f"{row['memory_ratio']:.2f}",
        ]
        for row, spread in zip(rows, spreads, strict=True)
    ]
    head = ("method", "strength", "new F1", "to none", "old F1", "drop", "drop, no null")
    halved = [
        row["method"]
        for row in rows
        if row["method"] != PROGRESSIVE
        and row["drop"] <= plain["drop"] / 2
        and row["new_f1"] >= plain["new_f1"] - 1
    ]
    return f"""## retention

What a model forgets of questions that all have an answer (SQuAD 1.1's format) while it learns
others of which many have none (2.0's), and what each method keeps of them, at what cost.

- Data: the demo's two corpora and its model, which is trained on the first by a recipe and then on
  the second as the demo's baseline is, in {TRIAL["epochs"]} epochs, learning rate \
{TRIAL["learning_rate"]:g} ({LEARNING_RATES["lora"]:g} for
  adapters), batches of {BATCH}
{machine(PACKAGES)}
- Scores: means over {seeds} seeds, in percent, at each run's epoch with the best F1 on the new task
  and the threshold that is tuned there; `drop` is how far the old task's F1 is below the start's,
  ± its standard deviation between seeds; `no null`, with the null answer disabled at both times
- Strengths: one each, chosen by a few runs with another seed, and some on these seeds: `distill`
  drops 5.8 with 0.3, `si` 5.0 with 3, `ewc` 6.0 with 3,000. What they mean differs from method to
  method (see docs/retention.md)
- Costs: time of a training step and peak memory of the process against `none`, medians of {rounds}
  rounds in which the methods take turns, with {model} and windows of at most 128 tokens

{table((*head, "step time", "memory"), lines)}

{_verdict(plain, halved)}

`{PROGRESSIVE}` is measured here and no method of the package: the start stays as it is, and a
second column a quarter as wide, which sees the layers of the first one, learns the new task. Its
own head answers here; the first column's still answers the old task as before, for whoever knows
which question is of which task. The two cannot be merged into one checkpoint of the start's kind,
and a forward pass takes {slower:.2f}x the time for good.
"""


def _verdict(plain: dict[str, Any], halved: list[str]) -> str:
    names = ", ".join(f"`{name}`" for name in halved) or "no method"
    return (
        f"Without a method {plain['drop']:.1f} points are forgotten, of which "
        f"{plain['drop'] - plain['drop_no_null']:.1f} are abstention alone. Half of the drop or "
        f"less, at a new-task F1 at\nmost 1 point below: {names}."
    )
