"""Run benchmarks and write down what they measured: `python -m bench [NAME ...]`."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

# Each benchmark is a module with `run(pairs)`, which returns a bench.report.Finding, or several by
# their keys; a key is that of results.json and of a section of RESULTS.md.
BENCHMARKS = {
    "postprocess_vs_notebook": "bench.postprocess",
    "trial_vs_notebook": "bench.trial",
    "search_vs_trainer": "bench.search",
    "fixed_cost": "bench.fixed_cost",
    "growth": "bench.growth",
    "ceiling": "bench.ceiling",
    "workers_per_device": "bench.workers",
}
# These run only when they are named: a part of another one, and one that takes long.
BY_NAME = {
    "trial_profile": "bench.trial_profile",
    "soak": "bench.soak",
    "hostile": "bench.hostile.measuring",
    "retention": "bench.retention",
    "search": "bench.strategies",
}
FOLDER = Path(__file__).parent
MIN_PAIRS = 3
# Whose pairs are two whole searches of many trials, which take half an hour on two cores.
OF_MANY_TRIALS = {"search_vs_trainer"}
# How costs grow is clearer without threads, and the soak's workers share the cores.
ON_ONE_THREAD = {"growth", "soak", "search", "hostile"}
# Read when the libraries are imported, so they are set before the benchmark's module is.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure, print, and update bench/RESULTS.md and bench/results.json.",
        epilog="Example: python -m bench postprocess_vs_notebook --pairs 5",
    )
    known = BENCHMARKS | BY_NAME
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument(
        "--pairs",
        type=int,
        default=3,
        help="timed runs of each side, at least 3, of whole searches at least 1 (default: 3)",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: expected one of {', '.join(known)}")
    names = options.names or [*BENCHMARKS]
    least = 1 if OF_MANY_TRIALS.issuperset(names) else MIN_PAIRS
    if options.pairs < least:
        parser.error(f"--pairs is {options.pairs}: expected at least {least}")
    if len(names) == 1:
        _measure(names[0], known[names[0]], options.pairs)
        return
    for name in names:
        # In processes of their own: none meets what another has loaded, or its threads.
        command = [sys.executable, "-m", "bench", name, "--pairs", str(options.pairs)]
        subprocess.run(command, check=True)


def _measure(name: str, module: str, pairs: int) -> None:
    os.environ.update(QUIET | (ONE_THREAD if name in ON_ONE_THREAD else {}))
    report = importlib.import_module("bench.report")
    found = importlib.import_module(module).run(pairs)
    for key, finding in (found if isinstance(found, dict) else {name: found}).items():
        print(f"\n{finding.body}")
        report.write_finding(FOLDER, key, finding)
    print(f"\nWritten to {FOLDER.name}/RESULTS.md and {FOLDER.name}/results.json.")


if __name__ == "__main__":
    main(sys.argv[1:])
