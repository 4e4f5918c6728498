"""Many hostile inputs, one after another, and what came of them."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.hostile.commands import (
    changed_parameters,
    changed_storages,
    named_parameters,
    named_storages,
)
from bench.hostile.corpora import changed_corpora, named_corpora
from bench.hostile.inputs import (
    Hostile,
    changed_predictions,
    changed_studies,
    named_predictions,
    named_studies,
)
from bench.hostile.judging import Ended, Fault, judge, listing, run_here
from bench.hostile.models import changed_checkpoints, named_checkpoints
from bench.hostile.valid import Valid

__all__ = ["SHARES", "Verdict", "hostile_inputs", "try_input"]

SHARES = {
    "study": 30, "corpus": 30, "predictions": 12, "checkpoint": 12, "storage": 10, "command": 6,
}  # fmt: skip
"""Of a hundred changed inputs, how many are of which kind."""


@dataclass(frozen=True)
class Verdict:
    """How a command ended on a hostile input.

    Attributes:
        kind: The input's kind.
        name: Its name.
        code: The exit code, if any.
        seconds: How long the command took.
        faults: What was wrong, if anything.
    """

    kind: str
    name: str
    code: int | None
    seconds: float
    faults: tuple[Fault, ...]


def hostile_inputs(valid: Valid, folder: Path, count: int, seed: int = 0) -> Iterator[Hostile]:
    """So many inputs, always the same for a seed; those that somebody thought of come first.

    Args:
        valid: What they are made from.
        folder: Where what several of them share is made.
        count: How many.
        seed: Another seed gives other changes.
    """
    named = itertools.chain(
        named_studies(valid), named_corpora(valid, folder), named_predictions(),
        named_checkpoints(valid), named_storages(valid), named_parameters(valid),
    )  # fmt: skip
    return itertools.islice(itertools.chain(named, _changed(valid, folder, seed)), count)


def _changed(valid: Valid, folder: Path, seed: int) -> Iterator[Hostile]:
    streams = {
        "study": changed_studies(valid, seed),
        "corpus": changed_corpora(valid, seed, folder),
        "predictions": changed_predictions(seed),
        "checkpoint": changed_checkpoints(valid, seed),
        "storage": changed_storages(valid, seed),
        "command": changed_parameters(valid, seed),
    }
    for number in itertools.count(1):
        for kind, share in SHARES.items():
            # As evenly as whole numbers allow.
            for _ in range(number * share // 100 - (number - 1) * share // 100):
                yield next(streams[kind])


def try_input(hostile: Hostile, folder: Path) -> tuple[Verdict, Ended]:
    """Make an input's files in a new folder, run its command there, and judge how it ended."""
    place = Path(tempfile.mkdtemp(prefix="input-", dir=folder))
    try:
        hostile.make(place)
        before = listing(place)
        began = time.monotonic()
        ended = run_here(hostile.argv, place, hostile.env)
        seconds = time.monotonic() - began
        faults = judge(ended, before, listing(place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Verdict(hostile.kind, hostile.name, ended.code, seconds, tuple(faults)), ended
