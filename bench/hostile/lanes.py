"""Hostile inputs in processes of their own, which may die of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.hostile.judging import SECONDS, Fault
from bench.hostile.running import Verdict, hostile_inputs, try_input
from bench.hostile.valid import write_valid

__all__ = ["run_lanes"]

_ADDRESS_SPACE = 16 << 30
"""Bytes: an allocation that is beyond all measure fails, before it takes the machine's memory."""
_SILENCE = 6 * SECONDS
"""Seconds without a verdict after which a process is stuck where no signal ends it."""
_context = multiprocessing.get_context("spawn")


def run_lanes(folder: Path, count: int, seed: int, lanes: int) -> Iterator[Verdict]:
    """Try so many inputs in several processes at once, and give each verdict as it comes."""
    running = [_Lane(folder / f"lane-{lane}", count, seed, lane, lanes) for lane in range(lanes)]
    try:
        while running:
            time.sleep(0.2)
            for lane in running.copy():
                yield from lane.verdicts()
                if lane.over:
                    running.remove(lane)
    finally:
        for lane in running:
            lane.end()


class _Lane:
    """Every n-th input, in a process that is started again where it has died."""

    def __init__(self, folder: Path, count: int, seed: int, lane: int, lanes: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.given = (count, seed, lanes)
        self.next = lane
        self.count = count
        self.over = False
        self.read = 0
        self.begun = ""
        self.heard = time.monotonic()
        self.process = self._start()

    @property
    def log(self) -> Path:
        return self.folder / "verdicts.jsonl"

    def _start(self) -> BaseProcess:
        self.heard = time.monotonic()
        process = _context.Process(
            target=_work, args=(self.folder, self.log, self.next, *self.given), daemon=True
        )
        process.start()
        return process

    def verdicts(self) -> Iterator[Verdict]:
        """What has come since the last call."""
        alive = self.process.is_alive()
        yield from self._written()
        if alive and time.monotonic() - self.heard > _SILENCE:
            self.end()
            yield self._died(Fault("hang", "stuck where no signal ends it"))
        elif not alive and self.next < self.count:
            yield self._died(Fault("traceback", f"the process died: {self.process.exitcode}"))
        self.over = not self.process.is_alive() and self.next >= self.count

    def _written(self) -> Iterator[Verdict]:
        if not self.log.exists():
            return
        with self.log.open(encoding="utf-8") as file:
            file.seek(self.read)
            # What is being written has no line break yet.
            lines = list(
                itertools.takewhile(lambda line: line.endswith("\n"), iter(file.readline, ""))
            )
        for line in lines:
            self.read += len(line.encode())
            self.heard = time.monotonic()
            told: dict[str, Any] = json.loads(line)
            if "begun" in told:
                self.begun, self.next = told["begun"], told["number"]
                continue
            self.next += self.given[2]
            yield Verdict(**{**told, "faults": tuple(Fault(**fault) for fault in told["faults"])})

    def _died(self, fault: Fault) -> Verdict:
        kind, _, name = self.begun.partition(" ")
        self.next += self.given[2]
        if self.next < self.count:
            self.process = self._start()
        return Verdict(kind, name, None, 0.0, (fault,))

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def _work(folder: Path, log: Path, first: int, count: int, seed: int, lanes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    place = folder / f"from-{first}"
    place.mkdir()
    valid = write_valid(place)
    inputs = itertools.islice(hostile_inputs(valid, place, count, seed), first, None, lanes)
    with contextlib.closing(
        os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w")
    ) as out:
        for number, hostile in zip(itertools.count(first, lanes), inputs):
            begun = {"begun": f"{hostile.kind} {hostile.name}", "number": number}
            print(json.dumps(begun), file=out, flush=True)
            verdict, _ = try_input(hostile, place)
            print(json.dumps(asdict(verdict)), file=out, flush=True)
