"""Try some hostile inputs, and write nothing: `python -m bench.hostile --inputs 500 --seed 7`."""

from __future__ import annotations

import argparse
import os
import time

from bench.__main__ import ONE_THREAD, QUIET


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--inputs", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: 0)")
    options = parser.parse_args()
    os.environ.update(QUIET | ONE_THREAD)
    # Read when the libraries are imported.
    from bench.hostile.measuring import finding, try_inputs  # noqa: PLC0415

    began = time.monotonic()
    verdicts = try_inputs(options.inputs, options.seed)
    found = finding(verdicts, time.monotonic() - began)
    print(f"\n{found.body}\n{found.fields}")


if __name__ == "__main__":
    main()
