"""Runs whose process is killed, in real processes, and what goes on after them."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from wholeness import check_whole

from processes import finished, start, train
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import RunPaths
from tiny import run_config

pytestmark = pytest.mark.slow

KILLED = -9
EPOCHS = 5
SECTIONS: dict[str, Any] = {"parameters": {"epochs": EPOCHS}}


def measured(flat: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat.items() if "seconds" not in name}


@pytest.fixture(scope="module")
def expected(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The epochs of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tuned = fine_tune(run_config(tiny, **SECTIONS), folder, inputs=inputs)
    return [measured(record.as_dict()) for record in tuned.records]


def goes_on(tiny: Path, inputs: Inputs, run: Path, expected: list[Any], *, least_kept: int) -> None:
    """Finish the run here; its records must be those of an uninterrupted one."""
    check_whole(RunPaths(run))
    states = RunPaths(run).resume_states()
    kept = int(states[-1].name[-4:]) if states else 0
    assert kept >= least_kept
    told: list[dict[str, Any]] = []
    before = time.monotonic()
    tuned = fine_tune(
        run_config(tiny, **SECTIONS),
        run,
        inputs=inputs,
        on_epoch=lambda record: told.append(record.as_dict()),
    )
    after = time.monotonic()
    assert [measured(flat) for flat in told] == expected
    assert [measured(record.as_dict()) for record in tuned.records] == expected
    # The epochs that were kept are those that were measured then, by their times.
    assert sum(record.seconds for record in tuned.records[kept:]) <= after - before
    names = sorted(path.name for path in run.rglob("*") if path.is_dir())
    assert tuned.checkpoint is not None
    assert names == ["answers", "checkpoint", tuned.checkpoint.name]


# Where the process dies: module, class, function, its call in the second epoch, before or after.
DEATHS = {
    "before the checkpoint": ("qa_hpo.finetune.trainer", "", "new_folder", 2, False),
    "before its weights": ("transformers", "PreTrainedModel", "save_pretrained", 3, False),
    "after its weights": ("transformers", "PreTrainedModel", "save_pretrained", 3, True),
    "in the resume state": ("transformers", "PreTrainedModel", "save_pretrained", 4, True),
    "before its records": ("qa_hpo.finetune.trainer", "", "write_json", 4, False),
    "after its records": ("qa_hpo.finetune.trainer", "", "write_json", 4, True),
    "before the old state is removed": ("qa_hpo.paths", "RunPaths", "checkpoints", 2, False),
}


@pytest.mark.parametrize("where", DEATHS)
def test_killed_while_it_writes(
    tiny: Path, inputs: Inputs, tmp_path: Path, expected: list[Any], where: str
) -> None:
    run, told = tmp_path / "run", tmp_path / "told"
    finished(start(train, tiny, run, told, DEATHS[where], SECTIONS), code=KILLED)
    assert len(told.read_text().splitlines()) == 1
    goes_on(tiny, inputs, run, expected, least_kept=2 if where.endswith("removed") else 1)


def test_killed_again_and_again_at_any_moment(
    tiny: Path, inputs: Inputs, tmp_path: Path, expected: list[Any]
) -> None:
    run = tmp_path / "run"
    rng = random.Random(4)
    for attempt in range(4):
        told = tmp_path / f"told-{attempt}"
        child = start(train, tiny, run, told, (), SECTIONS)
        deadline = time.monotonic() + 60
        # Each gets one epoch further than the one before, and then a part of the next.
        while not told.exists() or len(told.read_text().splitlines()) < attempt + 1:
            assert time.monotonic() < deadline
            assert child.is_alive()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, expected_seconds(told)))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break  # it was faster
        check_whole(RunPaths(run))
    goes_on(tiny, inputs, run, expected, least_kept=0 if child.exitcode == 0 else 4)


def expected_seconds(told: Path) -> float:
    """How long an epoch takes, as far as is known."""
    seconds: float = json.loads(told.read_text().splitlines()[0])["seconds"]
    return seconds


def test_a_run_that_has_ended_leaves_no_state_to_go_on_from(
    tiny: Path, inputs: Inputs, tmp_path: Path, expected: list[Any]
) -> None:
    run = tmp_path / "run"
    finished(start(train, tiny, run, tmp_path / "told", (), SECTIONS))
    goes_on(tiny, inputs, run, expected, least_kept=0)
