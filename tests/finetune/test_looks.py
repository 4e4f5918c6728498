"""Looks at the validation loss within epochs: where they are, what they see, what they leave."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerCallback

from qa_hpo.finetune import trainer as trainer_module
from qa_hpo.finetune.evaluation import forward_pass
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.looks import look_steps
from qa_hpo.finetune.records import EpochRecord, FineTuned, Look
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.trainer import QuestionAnsweringTrainer
from qa_hpo.paths import RunPaths
from tiny import run_config

STEPS = 7  # of an epoch, in batches of 16 windows
# A quarter, a half and three quarters of it are nearest to steps 2, 4 and 5.
PLACES = [step / STEPS for step in (2, 4, 5)]
FIRST, SECOND, THIRD = (1 + place for place in PLACES)
SECTIONS: dict[str, Any] = {
    "data": {"train_limit": 64, "validation_limit": 30},
    "parameters": {"learning_rate": 3e-3, "epochs": 2, "doc_stride": 0},
}


def config(tiny: Path, evaluations: int, **sections: Any) -> Any:
    given = {name: {**values, **sections.pop(name, {})} for name, values in SECTIONS.items()}
    run = {"evaluations_per_epoch": evaluations, **sections.pop("run", {})}
    return run_config(tiny, run=run, **given, **sections)


def at_ends(records: tuple[EpochRecord, ...] | list[EpochRecord]) -> list[dict[str, Any]]:
    """The records without looks, and without what a clock says."""
    return [
        {name: value for name, value in flat.items() if "seconds" not in name and name != "looks"}
        for flat in (record.as_dict() for record in records)
    ]


def looks(records: tuple[EpochRecord, ...] | list[EpochRecord]) -> list[tuple[Look, ...]]:
    return [record.looks for record in records]


@pytest.fixture(scope="module")
def blind(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """A run without looks."""
    return fine_tune(config(tiny, 1), tmp_path_factory.mktemp("blind") / "run", inputs=inputs)


@pytest.fixture(scope="module")
def seeing(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """The same run with three looks in each epoch."""
    return fine_tune(config(tiny, 4), tmp_path_factory.mktemp("seeing") / "run", inputs=inputs)


# ---------------------------------------------------------------------------- where they are


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [
        (12, 1, ()),
        (12, 2, (6,)),
        (12, 4, (3, 6, 9)),
        (15, 2, (8,)),  # 7.5: the later of two that are as near
        (7, 3, (2, 5)),  # 2.33 and 4.67
        (10, 4, (3, 5, 8)),  # 2.5, 5, 7.5
        (3, 4, (1, 2)),  # 0.75, 1.5 and 2.25: the middle one and the last are the same step
        (2, 5, (1,)),  # 0.4, 0.8, 1.2, 1.6: the first is no step, the last is the epoch's last
        (1, 4, ()),
    ],
)
def test_positions_worked_by_hand(steps: int, evaluations: int, expected: tuple[int, ...]) -> None:
    assert look_steps(steps, evaluations) == expected


@given(st.integers(1, 300), st.integers(1, 100))
def test_positions_are_the_nearest_steps(steps: int, evaluations: int) -> None:
    found = look_steps(steps, evaluations)
    assert list(found) == sorted(set(found))
    assert all(0 < step < steps for step in found)
    assert len(found) <= evaluations - 1
    if steps >= evaluations:
        assert len(found) == evaluations - 1
    for i in range(1, evaluations):
        near = {
            step
            for step in range(steps + 1)
            if abs(step * evaluations - i * steps) * 2 <= evaluations
        }
        assert near & ({0, steps} | set(found))


# ---------------------------------------------------------------------------- what they see


def test_looks_change_nothing(blind: FineTuned, seeing: FineTuned) -> None:
    assert at_ends(seeing.records) == at_ends(blind.records)
    weights = [load_file(run.checkpoint / "model.safetensors") for run in (blind, seeing)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert looks(blind.records) == [(), ()]
    positions = [[look.position for look in record.looks] for record in seeing.records]
    assert positions == [PLACES, [FIRST, SECOND, THIRD]]
    seen = [look.val_loss for record in seeing.records for look in record.looks]
    assert len(set(seen)) == 6
    assert seeing.stop_reason is None


def test_a_look_is_what_an_evaluation_there_gives(
    seeing: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation of its own, of a copy of the weights, after each step."""
    found: dict[float, float] = {}

    class Evaluating(TrainerCallback):
        def __init__(self, trainer: QuestionAnsweringTrainer) -> None:
            self.trainer = trainer

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            validation = self.trainer.validation
            assert validation is not None
            generator = torch.get_rng_state()
            done = forward_pass(
                self.trainer.network, validation[1], n_best=1, max_answer_length=5, batch_size=7
            )
            torch.set_rng_state(generator)
            found[state.epoch] = done.loss

    own = QuestionAnsweringTrainer.__init__

    def watched(self: Any, *arguments: Any, **options: Any) -> None:
        own(self, *arguments, **options)
        self.add_callback(Evaluating(self))

    monkeypatch.setattr(QuestionAnsweringTrainer, "__init__", watched)
    fine_tune(config(tiny, 1), tmp_path / "run", inputs=inputs)
    assert len(found) == 2 * STEPS
    for record in seeing.records:
        assert record.val_loss == pytest.approx(found[record.epoch], abs=1e-6)
        for position, loss in record.looks:
            assert loss == pytest.approx(found[position], abs=1e-6)


def test_their_time_is_evaluation_time(
    tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    own = trainer_module.mean_loss

    def slow(*arguments: Any, **options: Any) -> float:
        time.sleep(0.5)
        return own(*arguments, **options)

    monkeypatch.setattr(trainer_module, "mean_loss", slow)
    tuned = fine_tune(config(tiny, 3), tmp_path / "run", inputs=inputs)
    for record in tuned.records:
        assert len(record.looks) == 2
        assert record.seconds > record.eval_seconds > 1.0


def test_the_model_trains_on_after_a_look(
    tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it draws random numbers in evaluation, as models that hash or sample do."""
    own = trainer_module.mean_loss
    networks = []

    def drawing(network: Any, *arguments: Any, **options: Any) -> float:
        networks.append(network)
        torch.rand(10)
        return own(network, *arguments, **options)

    def told(look: Look) -> None:
        assert networks[-1].training

    monkeypatch.setattr(trainer_module, "mean_loss", drawing)
    first = fine_tune(
        config(tiny, 4, run={"stop_after_epochs": 1}), tmp_path / "a", inputs=inputs, on_look=told
    )
    assert len(networks) == 3
    second = fine_tune(config(tiny, 1, run={"stop_after_epochs": 1}), tmp_path / "b", inputs=inputs)
    assert at_ends(first.records) == at_ends(second.records)


def test_an_epoch_of_few_steps_has_fewer_looks(
    blind: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    told: list[Look] = []
    tuned = fine_tune(config(tiny, 50), tmp_path / "run", inputs=inputs, on_look=told.append)
    assert [look.position for look in told] == [
        epoch + step / STEPS for epoch in range(2) for step in range(1, STEPS)
    ]
    assert looks(tuned.records) == [tuple(told[: STEPS - 1]), tuple(told[STEPS - 1 :])]
    assert at_ends(tuned.records) == at_ends(blind.records)


# ---------------------------------------------------------------------------- what is recorded


def test_records_carry_looks_through_json(seeing: FineTuned, blind: FineTuned) -> None:
    for record in seeing.records:
        flat = json.loads(json.dumps(record.as_dict()))
        assert flat == record.as_dict()
        assert flat["looks"] == [list(look) for look in record.looks]
        again = EpochRecord.from_dict(flat)
        assert again == record
        assert "looks" not in again.metrics
        assert isinstance(again.looks[0], Look)
    assert all("looks" not in record.as_dict() for record in blind.records)
    # A storage has no number for a loss that is not finite.
    lost = EpochRecord(1, 1.0, 1.0, 1.0, None, {}, (Look(0.5, None),))
    assert EpochRecord.from_dict(lost.as_dict()) == lost


# ---------------------------------------------------------------------------- the end of a run


def left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())


def test_a_reason_ends_the_run_within_an_epoch(
    blind: FineTuned, seeing: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    told: list[EpochRecord] = []

    def stop(look: Look) -> str | None:
        return "enough" if look.position == SECOND else None

    tuned = fine_tune(
        config(tiny, 4), tmp_path / "run", inputs=inputs, on_epoch=told.append, on_look=stop
    )
    assert tuned.stop_reason == "enough"
    assert told == list(tuned.records)
    assert at_ends(tuned.records) == at_ends(blind.records)[:1]
    assert looks(tuned.records) == looks(seeing.records)[:1]
    assert tuned.best == tuned.records[0]
    assert tuned.checkpoint == RunPaths(tmp_path / "run").checkpoint(1)
    assert left_over(tmp_path / "run") == ["answers", "checkpoint", "checkpoint/epoch-0001"]
    assert [path.name for path in (tmp_path / "run/answers").iterdir()] == ["epoch-0001.npz"]


def test_a_reason_in_the_first_epoch_leaves_nothing(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    tuned = fine_tune(
        config(tiny, 2), tmp_path / "run", inputs=inputs, on_look=lambda look: "enough"
    )
    assert tuned == FineTuned((), None, None, "enough", 16, tuned.peak_memory_mib)
    assert left_over(tmp_path / "run") == []


def test_a_loss_that_is_not_a_number_is_told(
    tiny: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = QuestionAnsweringTrainer.compute_loss

    def poisoned(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.epoch >= FIRST:
            with torch.no_grad():
                self.network.qa_outputs.weight.fill_(math.nan)
        return own(self, *arguments, **options)

    told: list[float] = []

    def stop(look: Look) -> str | None:
        assert look.val_loss is not None
        told.append(look.val_loss)
        return None if math.isfinite(look.val_loss) else "diverged"

    monkeypatch.setattr(QuestionAnsweringTrainer, "compute_loss", poisoned)
    tuned = fine_tune(config(tiny, 4), tmp_path / "run", inputs=inputs, on_look=stop)
    assert tuned.stop_reason == "diverged"
    assert [math.isfinite(loss) for loss in told] == [True] * 4 + [False]
    assert len(tuned.records) == 1
    assert tuned.checkpoint is not None


# ---------------------------------------------------------------------------- interruptions


class EnoughError(Exception):
    pass


@pytest.mark.parametrize("place", [PLACES[2], FIRST, THIRD])
def test_a_run_that_was_ended_within_an_epoch_goes_on(
    seeing: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path, place: float
) -> None:
    looked: list[Look] = []

    def check() -> None:
        if looked and looked[-1].position == place:
            raise EnoughError

    with pytest.raises(EnoughError):
        fine_tune(
            config(tiny, 4), tmp_path / "run", inputs=inputs, on_look=looked.append, check=check
        )
    told: list[EpochRecord] = []
    again: list[Look] = []
    tuned = fine_tune(
        config(tiny, 4),
        tmp_path / "run",
        inputs=inputs,
        on_epoch=told.append,
        on_look=again.append,
    )
    assert told == list(tuned.records)
    assert at_ends(tuned.records) == at_ends(seeing.records)
    assert looks(tuned.records) == looks(seeing.records)
    # Told are those that are taken here; those of finished epochs come with their records.
    assert [look.position for look in again] == [*PLACES, FIRST, SECOND, THIRD][int(place) * 3 :]


def test_a_check_before_every_batch_of_a_look(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    """What it raises in a look comes out, and the run goes on after its last finished epoch."""
    calls: list[int] = []
    smaller = {"training": {"eval_batch_size": 8}, "run": {"stop_after_epochs": 1}}
    for evaluations in (1, 2):
        calls.append(0)

        def check() -> None:
            calls[-1] += 1

        folder = tmp_path / str(evaluations)
        fine_tune(config(tiny, evaluations, **smaller), folder, inputs=inputs, check=check)
    batches = calls[0] - STEPS
    assert batches > 1
    assert calls[1] == STEPS + 2 * batches


def test_how_often_to_look_is_no_part_of_a_folders_configuration(
    blind: FineTuned, seeing: FineTuned, tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fine_tune(config(tiny, 1, run={"stop_after_epochs": 1}), run, inputs=inputs)
    again = fine_tune(config(tiny, 4), run, inputs=inputs)
    assert at_ends(again.records) == at_ends(blind.records)
