"""Trials per hour with several workers on one device."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.report import Finding, machine, table
from bench.soak import study
from qa_hpo.config import to_toml
from qa_hpo.demo import write_demo

__all__ = ["run"]

PACKAGES = ("qa_hpo", "torch", "transformers", "optuna")
TRIALS = 8
WORKERS = (1, 2, 4)


def run(pairs: int, *, trials: int = TRIALS, workers: tuple[int, ...] = WORKERS) -> Finding:
    """Run the same search with one worker, two and four on each device, in turn."""
    hours: dict[int, list[float]] = {count: [] for count in workers}
    with tempfile.TemporaryDirectory(prefix="qa_hpo-workers-") as scratch:
        demo = Path(scratch) / "demo"
        write_demo(demo)
        for turn in range(pairs):
            for count in workers:
                folder = Path(scratch) / f"{turn}-{count}"
                folder.mkdir()
                hours[count].append(_search(folder, demo, trials, count))
    rates = {count: [trials / spent for spent in spans] for count, spans in hours.items()}
    first = rates[workers[0]]
    rows = []
    for count, per_hour in rates.items():
        ratios = sorted(rate / alone for rate, alone in zip(per_hour, first, strict=True))
        rows.append(
            {
                "workers": count,
                "trials_per_hour": round(statistics.median(per_hour), 1),
                "ratio": round(statistics.median(ratios), 2),
                "min": round(ratios[0], 2),
                "max": round(ratios[-1], 2),
            }
        )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return Finding({"device": device, "pairs": pairs, "rows": rows}, _body(device, trials, rows))


def _search(folder: Path, demo: Path, trials: int, workers: int) -> float:
    """Return the hours that a search takes, its processes' start included."""
    epochs = {"learning_rate": {"low": 1e-4, "high": 3e-3, "log": True}, "epochs": {"value": 2}}
    file = study(demo, trials, search=epochs, pruning={"across": "none", "patience": 9})
    (folder / "study.toml").write_text(to_toml(file), encoding="utf-8")
    command = [sys.executable, "-m", "qa_hpo", "run", "study.toml"]
    command += ["--workers", str(workers), "--workers-per-device", str(workers)]
    began = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - began) / 3600


def _body(device: str, trials: int, rows: list[dict[str, float]]) -> str:
    cells = [
        [
            f"{row['workers']:.0f}",
            f"{row['trials_per_hour']:.0f}",
            f"{row['ratio']:.2f}x",
            f"{row['min']:.2f}x",
            f"{row['max']:.2f}x",
        ]
        for row in rows
    ]
    return f"""## workers_per_device

Trials per hour of one search by the number of workers on the device (`--workers-per-device`).

- Device: {device}{"" if device != "cpu" else ", whose cores the workers share out"}
- Search: {trials} trials of 2 epochs of the demo's base model (3 MB) on 400 questions, nothing
  pruned; from the start of `qa-hpo run` to its end, so that starting the processes counts
{machine(PACKAGES)}
- Measured: the numbers of workers in turn; ratios against one worker in the same turn

{table(("workers", "trials per hour", "median", "min", "max"), cells)}"""
