"""The table of recorded curves: one row for each epoch of each run, as CSV."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_hpo.config import StudyFile
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.parameters import Scalar

__all__ = ["METRICS", "Curve", "Point", "grid", "read_curves", "rows_of"]

METRICS = ("f1", "exact", "best_f1", "best_exact", "best_f1_thresh", "crossfit_f1")
"""What is kept of an epoch's metrics, in percent; the threshold in logits."""
_NUMBERS = ("train_loss", "val_loss", *METRICS, "seconds", "eval_seconds")

Point = tuple[tuple[str, Scalar], ...]
"""A configuration: each searched parameter and its value, in the study file's order."""


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        point: its configuration.
        seed: which of its runs, from 0.
        records: one for each epoch, the first first. A run that diverged has fewer than others.
    """

    point: Point
    seed: int
    records: tuple[EpochRecord, ...]

    @property
    def best_f1(self) -> float:
        """The highest `best_f1` of its epochs, in percent."""
        return max(record.metrics["best_f1"] for record in self.records)


def grid(study: StudyFile) -> list[Point]:
    """Every combination of what a study file searches.

    Raises:
        ValueError: it searches a range, or a parameter that does not always apply.
    """
    axes = []
    for name, dimension in study.search.items():
        if dimension.choices is None and dimension.value is None:
            raise ValueError(f"search.{name}: curves are recorded of choices, not of a range")
        if dimension.when:
            raise ValueError(f"search.{name}: curves are recorded of what always applies")
        axes.append([(name, value) for value in dimension.values()])
    return list(itertools.product(*axes))


def rows_of(curve: Curve) -> list[dict[str, Any]]:
    """The curve as rows of the table."""
    return [
        {
            **dict(curve.point),
            "seed": curve.seed,
            "epoch": record.epoch,
            "train_loss": f"{record.train_loss:.5f}",
            "val_loss": "" if record.val_loss is None else f"{record.val_loss:.5f}",
            **{name: f"{record.metrics[name]:.4f}" for name in METRICS},
            "seconds": f"{record.seconds:.3f}",
            "eval_seconds": f"{record.eval_seconds:.3f}",
        }
        for record in curve.records
    ]


def read_curves(path: Path, study: StudyFile) -> list[Curve]:
    """The curves of a table, each with the values that its study file gives.

    Args:
        path: the table.
        study: the study file whose grid it records.

    Raises:
        ValueError: a row is not of that grid, or has no number where one belongs.
    """
    points = {tuple(str(value) for _, value in point): point for point in grid(study)}
    epochs: dict[tuple[Point, int], list[EpochRecord]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                point = points[tuple(row[name] for name in study.search)]
                epochs.setdefault((point, int(row["seed"])), []).append(_record(row))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: line {number}: not of the grid: {error}") from None
    return [
        Curve(point, seed, tuple(sorted(records, key=lambda record: record.epoch)))
        for (point, seed), records in epochs.items()
    ]


def columns(study: StudyFile) -> list[str]:
    """The table's columns."""
    return [*study.search, "seed", "epoch", *_NUMBERS]


def write_rows(path: Path, study: StudyFile, curves: Iterable[Curve]) -> None:
    """Add curves to the end of a table, which is created where it is missing."""
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns(study), lineterminator="\n")
        if new:
            writer.writeheader()
        for curve in curves:
            writer.writerows(rows_of(curve))


def _record(row: Mapping[str, str]) -> EpochRecord:
    return EpochRecord(
        epoch=int(row["epoch"]),
        train_loss=float(row["train_loss"]),
        seconds=float(row["seconds"]),
        eval_seconds=float(row["eval_seconds"]),
        val_loss=float(row["val_loss"]) if row["val_loss"] else math.nan,
        metrics={name: float(row[name]) for name in METRICS},
    )
