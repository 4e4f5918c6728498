"""Ten thousand hostile inputs, and how many of them led to something that must not be."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.hostile.judging import SECONDS
from bench.hostile.lanes import run_lanes
from bench.hostile.running import SHARES, Verdict
from bench.report import Finding, machine, table

__all__ = ["INPUTS", "finding", "run", "try_inputs"]

INPUTS = 10_000
LANES = 2
_SORTS = {"traceback": "tracebacks", "hang": "hangs", "leftover": "leftovers"}
_MOST_TOLD = 10


def run(_pairs: int) -> Finding:
    """Try them all."""
    began = time.monotonic()
    verdicts = try_inputs(INPUTS)
    return finding(verdicts, time.monotonic() - began)


def try_inputs(count: int, seed: int = 0) -> list[Verdict]:
    """Try so many inputs, telling of every fault as it is found."""
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="qa_hpo-hostile-") as folder:
        for verdict in run_lanes(Path(folder), count, seed, LANES):
            verdicts.append(verdict)
            for fault in verdict.faults:
                print(
                    f"{fault.sort}: {verdict.kind}, {verdict.name[:200]!r}: {fault.words!r}",
                    flush=True,
                )
            if len(verdicts) % 1000 == 0:
                print(f"{len(verdicts):,} of {count:,} inputs", flush=True)
    return verdicts


def finding(verdicts: Sequence[Verdict], seconds: float) -> Finding:
    """What came of them; an input with several faults of a sort counts once for it."""
    counts = Counter(sort for verdict in verdicts for sort in {f.sort for f in verdict.faults})
    fields = {"inputs": len(verdicts), **{key: counts[sort] for sort, key in _SORTS.items()}}
    rows = []
    for kind in SHARES:
        own = [verdict for verdict in verdicts if verdict.kind == kind]
        codes = Counter(verdict.code for verdict in own)
        faults = Counter(sort for verdict in own for sort in {f.sort for f in verdict.faults})
        rows.append([
            kind, *(f"{n:,}" for n in (len(own), codes[2], codes[1], codes[0])),
            *(str(faults[sort]) for sort in (*_SORTS, "message")),
            f"{max((verdict.seconds for verdict in own), default=0.0):.1f} s",
        ])  # fmt: skip
    head = [
        "what is handed over", "inputs", "refused (2)", "failed (1)", "done (0)",
        *_SORTS.values(), "bad messages", "slowest",
    ]  # fmt: skip
    return Finding(fields=fields, body=_body(head, rows, verdicts, seconds))


def _body(
    head: list[str], rows: list[list[str]], verdicts: Sequence[Verdict], seconds: float
) -> str:
    faulty = [verdict for verdict in verdicts if verdict.faults]
    told = "\n".join(
        f"- {verdict.kind}, `{verdict.name[:100]!r}`: {verdict.faults[0].sort}, "
        f"`{verdict.faults[0].words[:200]!r}`"
        for verdict in faulty[:_MOST_TOLD]
    )
    more = f"\n- and {len(faulty) - _MOST_TOLD:,} more" if len(faulty) > _MOST_TOLD else ""
    found = f"The faults:\n\n{told}{more}" if faulty else "No fault was found."
    return f"""## hostile

Commands on {len(verdicts):,} hostile inputs, in {seconds / 60:.0f} minutes: files that a user may
hand over, with some of their parts dropped, replaced, doubled or of another type, with bytes that
are flipped, lost or cut off, and with what is worse (see `bench/hostile`); and arguments and URLs
of the same sort.

{machine(["qa_hpo", "transformers", "optuna", "pydantic", "pyarrow"])}

{table(head, rows)}

A traceback is also an exception that the command line shows as such, a process that died, and code
of a model folder that was run. A hang is more than {SECONDS:g} s. A leftover is a file or folder
that a command made, changed or removed although it failed, or one with a temporary name. A bad
message is other than lines that begin with `error:`, is overlong, holds terminal escapes or a
secret. A change may leave an input good: then the command does its work.

{found}
"""
