"""Faults for a while: workers killed and databases stopped under a study, on each database."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench.chaos import Chaos, Outcome
from bench.postgres import OwnPostgres
from bench.report import Finding, machine, table
from bench.storage_share import Share, measure_share
from qa_hpo.config import StudyFile
from qa_hpo.demo import write_demo

TRIALS = 40
KILLS = 32
OUTAGES = 5
WORKERS = 4
OUTAGE_SECONDS = 5.0

_FIELDS = ("finished", "kills", "outages", "doubled_epochs", "redone_epochs", "lost")


def run(_pairs: int) -> Finding:
    """Run the study under faults on SQLite and on PostgreSQL, and measure the storage's share."""
    outcomes: dict[str, Outcome] = {}
    shares: dict[str, Share] = {}
    with tempfile.TemporaryDirectory(prefix="qa_hpo-soak-") as name:
        folder = Path(name)
        write_demo(folder / "demo")
        server = OwnPostgres()
        try:
            urls = {
                "SQLite": f"sqlite:///{folder}/soak.db",
                "PostgreSQL": server.url("soak"),
            }
            for database, url in urls.items():
                print(f"{database}: {TRIALS} trials under faults ...", flush=True)
                outages = OUTAGES if database == "PostgreSQL" else 0
                outcomes[database] = Chaos(
                    file=study(folder / "demo", TRIALS),
                    folder=folder / database.lower(),
                    url=url,
                    workers=WORKERS,
                    kills=KILLS,
                    server=server,
                    outages=outages,
                    outage_seconds=OUTAGE_SECONDS,
                ).run()
                print(outcomes[database], flush=True)
            for database, url in (
                ("SQLite", f"sqlite:///{folder}/share.db"),
                ("PostgreSQL", server.url("share")),
            ):
                print(f"{database}: the storage's share of the time ...", flush=True)
                shares[database] = measure_share(url)
        finally:
            server.close()
    return Finding(fields=worst(list(outcomes.values())), body=_body(outcomes, shares))


def study(demo: Path, trials: int, **sections: Any) -> StudyFile:
    """Return a study on a part of the demo's data: trials of a few seconds."""
    given: dict[str, Any] = {
        "study": {"name": "soak", "seed": 5},
        "data": {
            "train": str(demo / "train-v2.json"),
            "validation": str(demo / "validation-v2.json"),
            "max_length": 128,
            "train_limit": 400,
            "validation_limit": 200,
        },
        "starts": {"base": str(demo / "base")},
        "search": {
            "learning_rate": {"low": 1e-4, "high": 3e-3, "log": True},
            "epochs": {"low": 2, "high": 5},
        },
        "training": {"batch_size": 32, "doc_stride": 32},
        "pruning": {"min_delta": 0.02},
        "evaluation": {"doc_stride": 32},
        "budget": {"trials": trials},
        "artifacts": {"folder": "artifacts"},
    }
    return StudyFile.model_validate_json(json.dumps(given | sections))


def worst(outcomes: list[Outcome]) -> dict[str, int]:
    """Return the fields of the key ``soak``: of each, the worst of the outcomes."""
    return {
        "budget": outcomes[0].budget,
        # As far from the budget as any.
        "finished": max(
            (outcome.finished for outcome in outcomes),
            key=lambda finished: abs(finished - outcomes[0].budget),
        ),
        "kills": min(outcome.kills for outcome in outcomes),
        "outages": max(outcome.outages for outcome in outcomes),  # a file has none
        "doubled_epochs": max(outcome.doubled_epochs for outcome in outcomes),
        "redone_epochs": max(outcome.redone_epochs for outcome in outcomes),
        "lost": max(outcome.lost + outcome.given_up for outcome in outcomes),
    }


def _body(outcomes: dict[str, Outcome], shares: dict[str, Share]) -> str:
    rows = [
        [
            database,
            f"{outcome.finished} of {outcome.budget}",
            *(str(getattr(outcome, name)) for name in ("kills", "outages", "interrupted")),
            *(str(getattr(outcome, name)) for name in _FIELDS[3:]),
            str(outcome.given_up),
            str(outcome.shared),
            f"{outcome.seconds / 60:.1f}",
        ]
        for database, outcome in outcomes.items()
    ]
    head = [
        "database", "finished", "kills", "outages", "interrupted trials", "doubled epochs",
        "redone epochs", "lost", "given up", "run by two at once", "minutes",
    ]  # fmt: skip
    share_rows = [
        [
            database,
            str(share.trials),
            str(share.epochs),
            f"{share.median_ms:.0f} ms",
            f"{share.mean_ms:.0f} ms",
            f"{share.mean_ms / 10:.1f}%",
        ]
        for database, share in shares.items()
    ]
    share_head = [
        "database", "trials", "epochs", "median per epoch", "mean per epoch",
        "share of a 1 s epoch",
    ]  # fmt: skip
    return f"""## soak

A study under faults: `qa-hpo run` with {WORKERS} workers on two cores, {TRIALS} trials of the demo
(400 training questions, 2 to 5 epochs). Every 2 to 6 seconds a worker that is at a trial is
killed, by SIGKILL and SIGTERM in turn; PostgreSQL is stopped (immediate shutdown)
{OUTAGES} times for {OUTAGE_SECONDS:g} seconds.

{machine(["qa_hpo", "optuna", "SQLAlchemy", "psycopg"])}

{table(head, rows)}

Finished are complete and pruned trials. Doubled: recorded twice or missing in between, as the
database has it. Redone: recorded by one worker although another one had, as the workers' logs have
it; the epoch that a worker is in when it dies is done again and is not recorded before. Lost:
begun, and in the end neither finished nor given up.

What the storage costs: {shares["SQLite"].workers} workers at once, trials of 1 to 4 epochs that
take no time but {shares["SQLite"].pause_s:g} s of sleep an epoch; per epoch, all that is not
sleep: asking (with TPE's own time), recording, the pruner's question, finishing, and waiting for
the other workers' turns.

{table(share_head, share_rows)}
"""
