"""The plain baseline: all trials for one epoch, then the best K of them to the end.

It has no study: nothing in it depends on what has been learnt on the way. With a budget of epochs
it tries as many points as leave enough for K to be finished.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

from bench.curves.simulate import Curves, RandomPoints, Step, Strategy, Trace, search_file
from bench.curves.table import Curve
from qa_hpo.search.asking import run_seed
from qa_hpo.search.space import SearchSpace

__all__ = ["random_curves", "top_k"]


def random_curves(curves: Curves, seed: int, count: int) -> list[Curve]:
    """Draw the curves of random points, the same first ones however many.

    Args:
        curves: what trials measure.
        seed: the study's seed.
        count: how many.
    """
    return list(itertools.islice(_endless(curves, seed), count))


def top_k(drawn: Sequence[Curve], k: int, *, horizon: int, workers: int, epochs: int) -> Trace:
    """Spend a budget on one epoch for many random points and all epochs for the best `k`.

    Args:
        drawn: the curves of random points, as many as the budget has epochs; as many are tried as
            it has room for.
        k: how many go on.
        horizon: all epochs.
        workers: how many work at once; all of them wait for the last first epoch.
        epochs: the budget.
    """
    count = max(k, epochs - k * (horizon - 1))
    drawn = drawn[:count]
    first = _passed([c.records[0].seconds for c in drawn], workers)
    times = sorted(zip(first, range(count), strict=True))
    steps: list[Step] = []
    best = 0.0
    for at, i in times:
        best = max(best, drawn[i].records[0].metrics["best_f1"])
        steps.append(Step(at, i, best))
    end = max(first)
    ranked = sorted(range(count), key=lambda i: -drawn[i].records[0].metrics["best_f1"])[:k]
    left = [sum(r.seconds for r in drawn[i].records[1:]) for i in ranked]
    events = []
    for i, begun in zip(ranked, _begun(left, workers), strict=True):
        at = end + begun
        for record in drawn[i].records[1:]:
            at += record.seconds
            events.append((at, i, record.metrics["best_f1"]))
    for at, i, f1 in sorted(events):
        best = max(best, f1)
        steps.append(Step(at, i, best))
    busy = sum(c.records[0].seconds for c in drawn) + sum(left)
    return Trace(tuple(steps), busy / (workers * steps[-1].seconds), k)


def _endless(curves: Curves, seed: int) -> Iterator[Curve]:
    space = SearchSpace(search_file(curves, Strategy("", sampler="random"), seed, 1))
    sampler = RandomPoints(seed)
    number = 0
    while True:
        sampler.begin(number)
        parameters = space.complete(
            lambda name, kind: sampler._random.sample_independent(None, None, name, kind)  # type: ignore[arg-type]
        )
        yield curves.near(parameters.flat(), run_seed(seed, number))
        number += 1


def _begun(lengths: Sequence[float], workers: int) -> list[float]:
    """When each of some jobs begins that free workers take in turn."""
    free = [0.0] * workers
    begun = []
    for length in lengths:
        at = heapq.heappop(free)
        begun.append(at)
        heapq.heappush(free, at + length)
    return begun


def _passed(lengths: Sequence[float], workers: int) -> list[float]:
    """When each of some jobs ends."""
    starts = _begun(lengths, workers)
    return [a + length for a, length in zip(starts, lengths, strict=True)]
