"""Timed runs of two sides in turn, and how many times faster the second one is."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from qa_hpo.finetune.allocator import keep_freed_memory
from qa_hpo.finetune.hardware import best_device
from qa_hpo.finetune.linear import multiplies_at_half_width


@dataclass
class Stopwatch:
    """Seconds of one run, by part.

    Attributes:
        wall: wall-clock seconds of each part.
        cpu: CPU seconds of all parts, of all threads of this process.
    """

    wall: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    @property
    def total(self) -> float:
        return sum(self.wall.values())


Side = Callable[[Stopwatch], object]
"""What is timed: it marks its parts on the stopwatch."""


@dataclass(frozen=True)
class Comparison:
    """Runs of a baseline and of ours, in turn.

    Attributes:
        baseline: (pairs,)
        ours: (pairs,)
    """

    baseline: list[Stopwatch]
    ours: list[Stopwatch]

    @property
    def ratios(self) -> list[float]:
        """(pairs,) how many times faster ours was, in wall-clock time."""
        return [a.total / b.total for a, b in zip(self.baseline, self.ours, strict=True)]

    @property
    def cpu_ratio(self) -> float:
        """The median ratio in CPU time."""
        return statistics.median(
            a.cpu / b.cpu for a, b in zip(self.baseline, self.ours, strict=True)
        )

    def summary(self) -> dict[str, float | int]:
        """The fields that results.json has for a ratio."""
        ratios = self.ratios
        return {
            "median": round(statistics.median(ratios), 2),
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
            "pairs": len(ratios),
        }


def alternate(baseline: Side, ours: Side, pairs: int) -> Comparison:
    """Run both in turn, baseline first, so that what else the machine does meets both."""
    runs: tuple[list[Stopwatch], list[Stopwatch]] = ([], [])
    for _ in range(pairs):
        for side, kept in zip((baseline, ours), runs, strict=True):
            gc.collect()  # neither side pays for what the other left behind
            watch = Stopwatch()
            side(watch)
            kept.append(watch)
    return Comparison(*runs)


def begin_as_a_worker() -> None:
    """Do to this process what the program does at a worker's start, for as long as it lives."""
    if best_device() == "cpu":
        keep_freed_memory()
    gc.freeze()


def ways_of_a_worker() -> str:
    """What sets a worker's process apart from a notebook's on this hardware, in lines of a list."""
    if best_device() != "cpu":
        return "- Ours runs as a worker does."
    lines = "- Ours runs as a worker does: it keeps the memory that it frees (with glibc)"
    if multiplies_at_half_width():
        lines += """ and computes linear
  layers by oneDNN, in float32 as torch's MKL, which uses half of this processor's vectors"""
    return lines


def part_medians(runs: list[Stopwatch]) -> dict[str, float]:
    """Median seconds of each part."""
    return {name: statistics.median(run.wall[name] for run in runs) for name in runs[0].wall}
