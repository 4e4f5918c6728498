"""Record learning curves: `python -m bench.curves STUDY TABLE`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.curves.record import record

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m bench.curves",
        description="Run every point of a study file's grid and add each epoch to a table. "
        "What the table has is not run again: an interrupted recording goes on.",
        epilog="Example: python -m bench.curves bench/curves/demo.toml bench/curves/demo.csv",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study file of choices")
    parser.add_argument("table", type=Path, metavar="TABLE", help="the CSV file")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each point (default: 2)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="runs at once (default: cores)"
    )
    options = parser.parse_args()
    if options.seeds < 1 or options.processes < 1:
        parser.error("--seeds and --processes: expected at least 1")
    record(options.study, options.table, seeds=options.seeds, processes=options.processes)
