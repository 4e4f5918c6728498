"""What a trial of a study costs a worker however little it trains."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.report import Finding, machine, table
from bench.training_data import TrainingMaterial, training_material
from bench.trial import FIRST, LOAD, MODEL_PARTS, RELEASE, SAVE, Meter, _replaced, attached
from qa_hpo.config import Runtime, StudyFile
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import quiet
from qa_hpo.paths import CachePaths
from qa_hpo.search import objective
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study

__all__ = ["run"]

QUESTIONS = 16
EPOCHS = 2
ASK, KEEP = "ask for the trial", "pack and record its epochs"
FINISH, COLLECT = "finish it", "collect what cannot win"
PARTS = (ASK, LOAD, FIRST, SAVE, KEEP, RELEASE, FINISH, COLLECT)
PACKAGES = ("qa_hpo", "torch", "transformers", "optuna", "SQLAlchemy")


def run(pairs: int, *, material: TrainingMaterial | None = None) -> Finding:
    """Run so many trials after one that warms up, and take each part's median."""
    quiet()
    material = material or training_material(QUESTIONS, QUESTIONS)
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="qa_hpo-bench-") as scratch:
        folder = Path(scratch)
        storage = open_storage(f"sqlite:///{folder}/study.db", create=True)
        joined = create_study(_study(material, folder, pairs + 1), storage, fingerprints={})
        runner = Objective(
            joined, Inputs(CachePaths(folder / "cache")), Runtime(cpu_threads=os.cpu_count())
        )
        gc.freeze()  # as the command does before a worker's first trial
        try:
            runs = [_trial(joined, runner) for _ in range(pairs + 1)][1:]
        finally:
            gc.unfreeze()
            storage.close()
            torch.set_num_threads(before)
    seconds = {part: statistics.median(one[part] for one in runs) for part in PARTS}
    total = sum(seconds.values())
    fields = {
        "seconds": round(total, 3),
        "parts": {part: round(spent, 4) for part, spent in seconds.items()},
        "trials": pairs,
    }
    return Finding(fields, _body(material, seconds, pairs))


def _study(material: TrainingMaterial, folder: Path, trials: int) -> StudyFile:
    given = {
        "study": {"name": "fixed_cost"},
        "data": {
            "train": material.train,
            "validation": material.validation,
            "max_length": material.max_length,
            "train_limit": material.train_limit,
            "validation_limit": material.validation_limit,
        },
        "starts": {"base": material.checkpoint},
        "search": {"learning_rate": {"low": 1e-6, "high": 1e-5}, "epochs": {"value": EPOCHS}},
        "training": {"batch_size": 16, "doc_stride": material.doc_stride},
        "evaluation": {"doc_stride": material.doc_stride},
        "pruning": {"across": "none", "control_fraction": 1.0},
        "budget": {"trials": trials},
        "artifacts": {"folder": str(folder / "artifacts")},
    }
    return StudyFile.model_validate_json(json.dumps(given))


def _trial(joined: JoinedStudy, runner: Objective) -> dict[str, float]:
    """Run a trial as a worker does, and return the seconds of its parts."""
    meter = Meter()
    meter.seconds |= dict.fromkeys((ASK, KEEP, FINISH, COLLECT), 0.0)
    with _told(meter):
        meter.begin(ASK)
        asked = ask(joined, worker="bench")
        meter.end(ASK)
        assert isinstance(asked, Asked)
        began = time.perf_counter()
        runner.run(asked)
        whole = time.perf_counter() - began
        meter.begin(COLLECT)
        runner.collect()
        meter.end(COLLECT)
    return {**meter.seconds, "whole": whole}


@contextlib.contextmanager
def _told(meter: Meter) -> Iterator[None]:
    """Time also what the study has of a trial."""

    def timed(part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return functools.partial(meter.timed, part)

    with (
        attached(meter),
        _replaced(objective._EpochTeller, "_keep", timed(KEEP)),
        _replaced(Objective, "_finish", timed(FINISH)),
    ):
        yield


def _body(material: TrainingMaterial, seconds: dict[str, float], trials: int) -> str:
    total = sum(seconds.values())
    rows = [[part, f"{spent:.3f}", f"{spent / total:.0%}"] for part, spent in seconds.items()]
    rows.append(["all", f"{total:.3f}", "100%"])
    model = ", ".join(MODEL_PARTS)
    return f"""## fixed_cost

What a trial of a study costs a worker however little it trains: a trial of {EPOCHS} epochs from \
asking for
it to the removal of what cannot win any more, without the model's own parts ({model}).

- Model and data: {material.name}
{machine(PACKAGES)}
- Measured: {trials} trials on a study in SQLite with artifacts in a folder, after one that warms
  up; medians of wall-clock time

{table(("part", "seconds", "share"), rows)}

Checkpoints and the state to go on from are written after every epoch, and grow with the model; the
state is packed after every epoch but the last."""
