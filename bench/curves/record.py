"""Runs every point of a grid with `fine_tune` and keeps what each epoch measured."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from bench.curves.table import Curve, Point, grid, read_curves, write_rows
from qa_hpo.config import Run, Runtime, StudyFile
from qa_hpo.demo import write_demo
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import quiet
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.starts import Starts
from qa_hpo.parameters import Parameters
from qa_hpo.paths import CachePaths
from qa_hpo.search.asking import run_seed

__all__ = ["record"]

DEMO = Path("storage/demo")
"""Where study files of curves expect the demo, which is written there."""

_inputs: Inputs | None = None


def record(path: Path, table: Path, *, seeds: int, processes: int) -> None:
    """Run the points of a study file's grid that a table lacks, and add them to it.

    All points are run with one seed before any is run with the next, and in an order of chance: a
    table that is not complete yet is a fair sample of the grid.

    Args:
        path: the study file.
        table: the table.
        seeds: runs of each point.
        processes: runs at once, one thread each.

    Raises:
        StudyFileError: the study file cannot be used.
        ValueError: it searches ranges, or the table is of another grid.
    """
    write_demo(DEMO)
    study = StudyFile.from_toml(path)
    points = grid(study)
    known = {(c.point, c.seed) for c in read_curves(table, study)} if table.exists() else set()
    order = random.Random(study.study.seed).sample(range(len(points)), len(points))
    todo = [(i, seed) for seed in range(seeds) for i in order if (points[i], seed) not in known]
    print(f"{len(points)} points, {seeds} runs each; {len(known)} are there, {len(todo)} to do")
    _build_starts(study, points)
    begun = time.monotonic()
    for done, curve in enumerate(_runs(study, points, todo, processes), start=1):
        write_rows(table, study, [curve])
        minutes = (time.monotonic() - begun) / 60
        print(
            f"{done} of {len(todo)}, {minutes:.1f} of {minutes / done * len(todo):.0f} min: "
            f"best F1 {curve.best_f1:.2f}",
            flush=True,
        )


def _runs(
    study: StudyFile, points: Sequence[Point], todo: Sequence[tuple[int, int]], processes: int
) -> Iterator[Curve]:
    """The curves of points and seeds, each as soon as it is there."""
    if processes == 1:
        yield from (_run(study, points[i], i, seed) for i, seed in todo)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=os.nice, initargs=(19,)) as p:
        runs = [p.submit(_run, study, points[i], i, seed) for i, seed in todo]
        yield from (run.result() for run in as_completed(runs))


def _build_starts(study: StudyFile, points: Sequence[Point]) -> None:
    """Build the starts before several processes want them."""
    inputs = Inputs(CachePaths())
    quiet()
    for start in {dict(point).get("start", study.defaults.start) for point in points}:
        config = study.run_config(
            study.defaults.model_copy(update={"start": start}), Run(name="curves"), Runtime()
        )
        Starts(config, config.runtime, inputs).checkpoint(str(start))


def _run(study: StudyFile, point: Point, number: int, seed: int) -> Curve:
    global _inputs  # noqa: PLW0603  (data and tokenizers, loaded once per process)
    if _inputs is None:
        quiet()
        _inputs = Inputs(CachePaths())
    runtime = study.training.runtime().model_copy(update={"cpu_threads": 1})
    parameters = Parameters.from_flat({**study.defaults.flat(), **dict(point)})
    # As the trial of that number has in a study with that seed.
    run = Run(name=f"point {number}", seed=run_seed(study.study.seed + seed, number))
    with tempfile.TemporaryDirectory(prefix="qa_hpo-curve-") as folder:
        config = study.run_config(parameters, run, runtime)
        done = fine_tune(config, Path(folder) / "run", inputs=_inputs)
    return Curve(point, seed, done.records)
