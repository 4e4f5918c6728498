"""Workers that are killed and a database that is stopped, under a real `qa-hpo run`."""

from pathlib import Path
from typing import Any

import pytest
from bench.chaos import Chaos
from bench.postgres import OwnPostgres

from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths
from qa_hpo.results.select import run_config
from qa_hpo.search.failures import lineages
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import load_study
from qa_hpo.search.trials import epoch_records
from tiny import study_file


def measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_nothing_is_lost(database: str, tiny: Path, tmp_path: Path) -> None:
    file = study_file(
        tiny,
        Path("artifacts"),
        data={"train_limit": 120},
        training={"epochs": 12, "cpu_threads": 1},
        pruning={"control_fraction": 1.0},
        budget={"trials": 6},
    )
    server = OwnPostgres() if database == "postgres" else None
    try:
        url = server.url("chaos") if server else f"sqlite:///{tmp_path}/study.db"
        outcome = Chaos(
            file=file,
            folder=tmp_path / "it's ünusual",
            url=url,
            workers=3,
            kills=3,
            seconds_between=(0.5, 2.5),
            server=server,
            outages=2 if server else 0,
            outage_seconds=2.0,
        ).run()
        assert outcome.code == 0, outcome.output
        assert outcome.finished == outcome.budget == 6
        assert outcome.kills >= 2, outcome.output
        assert outcome.outages == (2 if server else 0)
        assert (outcome.doubled_epochs, outcome.redone_epochs) == (0, 0)
        assert (outcome.lost, outcome.given_up, outcome.shared) == (0, 0, 0)
        assert outcome.interrupted > 0
        assert "Winner: trial " in outcome.output

        # The records of interrupted trials are those of uninterrupted ones, exactly.
        storage = open_storage(url, create=False)
        joined = load_study("tiny", storage)
        inputs = Inputs(CachePaths(tmp_path / "cache"))
        retried_first = sorted(lineages(outcome.trials).values(), key=len, reverse=True)
        for last in [own[-1] for own in retried_first[:2]]:
            alone = fine_tune(
                run_config(joined, last), tmp_path / f"alone-{last.number}", inputs=inputs
            )
            assert measured(epoch_records(last)) == measured([r.as_dict() for r in alone.records])
        storage.close()
    finally:
        if server:
            server.close()


@pytest.mark.slow
def test_nothing_is_lost_where_trials_are_promoted(tiny: Path, tmp_path: Path) -> None:
    file = study_file(
        tiny,
        Path("artifacts"),
        data={"train_limit": 120},
        training={"epochs": 4, "cpu_threads": 1},
        pruning={"across": "promote", "reduction_factor": 2, "patience": 9},
        budget={"trials": 7},
    )
    url = f"sqlite:///{tmp_path}/study.db"
    outcome = Chaos(
        file=file,
        folder=tmp_path / "it's ünusual",
        url=url,
        workers=2,
        kills=3,
        seconds_between=(0.5, 2.0),
    ).run()
    assert outcome.code == 0, outcome.output
    assert outcome.finished == outcome.budget == 7
    assert outcome.kills >= 1, outcome.output
    assert (outcome.doubled_epochs, outcome.redone_epochs) == (0, 0)
    assert (outcome.lost, outcome.given_up, outcome.shared) == (0, 0, 0)
    assert "waits at a rung, epoch 1 of 4" in outcome.output
    latest = [own[-1] for own in lineages(outcome.trials).values()]
    ends = [(len(epoch_records(t)), t.user_attrs.get("stop_reason")) for t in latest]
    assert set(ends) <= {
        (1, "hopeless"),
        (2, "hopeless"),
        (4, None),
        (1, "diverged"),
        (2, "diverged"),
        (3, "diverged"),
    }
    assert (4, None) in ends

    # One that went all the way is the trial that never waited.
    storage = open_storage(url, create=False)
    last = next(trial for trial in latest if len(epoch_records(trial)) == 4)
    config = run_config(load_study("tiny", storage), last)
    storage.close()
    alone = fine_tune(config, tmp_path / "alone", inputs=Inputs(CachePaths(tmp_path / "cache")))
    assert measured(epoch_records(last)) == measured([r.as_dict() for r in alone.records])
