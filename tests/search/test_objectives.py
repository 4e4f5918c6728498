"""Two objectives, and a bound on what may be forgotten: what is stored, proposed, chosen, kept."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from search_helpers import FINGERPRINTS, asked, created, opened, study_file

from qa_hpo.config import Runtime, StudyFile, load_study_file, to_toml
from qa_hpo.errors import InputError, StorageError, StudyFileError
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.search.choosing import Rule, candidates, choose, non_dominated, parse_rule
from qa_hpo.search.finalists import finalists_among, finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.proposing import propose
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import create_study, load_study
from qa_hpo.search.trials import FORGETTING, excess, finish, record_epoch, trial_id
from told_study import TWO, ToldStudy

OLD = {"old_task": "old.json"}
LINE = {
    "start": {"choices": ["base"]},
    "learning_rate": {"low": 0.0001, "high": 1.0},
    "weight_decay": {"low": 0.0, "high": 1.0},
    "epochs": {"value": 2},
}


def two(storage: StudyStorage, **sections: Any) -> JoinedStudy:
    return created(storage, **{"study": TWO, "evaluation": OLD, **sections})


def end(
    joined: JoinedStudy,
    best_f1: float,
    old_task_f1: float,
    drop: float | None = None,
    *,
    state: TrialState = TrialState.COMPLETE,
) -> int:
    trial = asked(joined).trial
    record_epoch(joined, trial, {"epoch": 1, "val_loss": 1.5})
    attrs = {"best_f1": best_f1, "old_task_f1": old_task_f1, "old_task_drop": drop}
    reason = "overfitting" if state is TrialState.PRUNED else None
    finish(joined, trial, state=state, stop_reason=reason, attrs=attrs)
    return trial.number


# ---------------------------------------------------------------------------- the study file


def file_with(**sections: Any) -> StudyFile:
    base = json.loads(study_file().model_dump_json(by_alias=True))
    for section in ("study", "evaluation", "pruning", "constraints"):
        base.pop(section)
    name = {"name": "demo"}
    return StudyFile.from_dict({"study": name, **base, **sections})


def objectives(*names: str) -> dict[str, Any]:
    return {"name": "demo", "objectives": list(names)}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"study": objectives("old_task_f1"), "evaluation": OLD},
            "study.objectives: must be ['best_f1'] or ['best_f1', 'old_task_f1'], got "
            "['old_task_f1']",
        ),
        (
            {"study": objectives("best_f1", "best_f1")},
            "study.objectives: must be ['best_f1'] or ['best_f1', 'old_task_f1'], got "
            "['best_f1', 'best_f1']",
        ),
        (
            {"study": objectives()},
            "study.objectives: must be ['best_f1'] or ['best_f1', 'old_task_f1'], got []",
        ),
        (
            {"study": objectives("f1")},
            "study.objectives[0]: input should be 'best_f1' or 'old_task_f1', got 'f1'",
        ),
        (
            {"study": objectives("best_f1", "old_task_f1")},
            "study.objectives: old_task_f1 needs evaluation.old_task, the corpus on which it is "
            "measured",
        ),
        (
            {"constraints": {"max_forgetting": 3.0}},
            "constraints.max_forgetting: needs evaluation.old_task, the corpus on which it is "
            "measured",
        ),
        (
            {"constraints": {"max_forgetting": -1.0}, "evaluation": OLD},
            "constraints.max_forgetting: input should be greater than or equal to 0, got -1.0",
        ),
        (
            {
                "study": objectives("best_f1", "old_task_f1"),
                "evaluation": OLD,
                "pruning": {"across": "median"},
            },
            "pruning.across: 'median' needs one objective, and study.objectives has 2; valid: "
            "'none'",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(sections: dict[str, Any], line: str) -> None:
    with pytest.raises(StudyFileError) as refused:
        file_with(**sections)
    assert str(refused.value) == f"study: {line}"


def test_none_is_pruned_across_trials_where_there_are_two_objectives(tmp_path: Path) -> None:
    both = objectives("old_task_f1", "best_f1")
    for pruning in ({}, {"pruning": {"across": "none"}}, {"pruning": {"patience": 2}}):
        file = file_with(study=both, evaluation=OLD, **pruning)
        assert file.pruning.across == "none"
        assert file.study.objectives == ("old_task_f1", "best_f1")
        # As a study stores it, in which all is written explicitly.
        assert StudyFile.model_validate_json(file.model_dump_json(by_alias=True)) == file
        path = tmp_path / "study.toml"
        path.write_text(to_toml(file))
        assert load_study_file(path) == file
        assert file.with_trials(3).pruning == file.pruning
    assert file_with().pruning.across == "median"
    assert file_with(evaluation=OLD).study.objectives == ("best_f1",)


# ---------------------------------------------------------------------------- what is stored


def test_both_scores_of_the_best_epoch_are_the_values(storage: StudyStorage):
    joined = two(storage)
    study = joined.optuna_study
    assert study.directions == [StudyDirection.MAXIMIZE] * 2
    assert study.metric_names == ["best_f1", "old_task_f1"]
    end(joined, 60.0, 40.0)
    end(joined, 70.0, 30.0, state=TrialState.PRUNED)
    end(joined, 90.0, 90.0, state=TrialState.FAIL)
    first, second, third = study.trials
    assert (first.values, second.values, third.values) == ([60.0, 40.0], [70.0, 30.0], None)
    assert second.state is TrialState.PRUNED
    # Optuna takes no reports there: its pruners and TPE would ask for the study's one direction.
    assert [trial.intermediate_values for trial in study.trials] == [{}, {}, {}]
    assert [record["val_loss"] for record in first.user_attrs["epochs"]] == [1.5]
    assert [trial.number for trial in study.best_trials] == [0]  # of the complete ones
    assert [trial.number for trial in finished_trials(joined)] == [1, 0]


def test_values_are_in_the_order_of_the_objectives(sqlite: StudyStorage):
    joined = two(sqlite, study={**TWO, "objectives": ["old_task_f1", "best_f1"]})
    end(joined, 60.0, 40.0)
    assert joined.optuna_study.trials[0].values == [40.0, 60.0]
    assert joined.optuna_study.metric_names == ["old_task_f1", "best_f1"]


def test_a_complete_trial_needs_both(sqlite: StudyStorage):
    joined = two(sqlite)
    trial = asked(joined).trial
    attrs: dict[str, Any] = {"best_f1": 60.0, "old_task_f1": None}
    with pytest.raises(ValueError, match="trial 0 is complete and has no old_task_f1"):
        finish(joined, trial, state=TrialState.COMPLETE, attrs=attrs)
    finish(joined, trial, state=TrialState.PRUNED, stop_reason="diverged", attrs={})
    assert joined.optuna_study.trials[0].values is None


def refused(storage: StudyStorage, **sections: Any) -> str:
    with pytest.raises(StorageError) as error:
        create_study(study_file(**sections), storage, fingerprints=FINGERPRINTS)
    return str(error.value)


def test_objectives_and_constraints_stay_as_they_are(sqlite: StudyStorage):
    two(sqlite, constraints={"max_forgetting": 3.0})
    assert refused(sqlite, evaluation=OLD, constraints={"max_forgetting": 3.0}) == (
        'study \'demo\' exists and differs: study.objectives: ["best_f1", "old_task_f1"] in the '
        'study, ["best_f1"] in the file; pruning.across: "none" in the study, "median" in the '
        "file. Choose another study.name"
    )
    line = refused(sqlite, study=TWO, evaluation=OLD, constraints={"max_forgetting": 4.0})
    assert "constraints.max_forgetting: 3.0 in the study, 4.0 in the file" in line
    one = {"name": "one", "seed": 3}
    created(sqlite, study=one, evaluation=OLD)
    line = refused(sqlite, study={**one, "objectives": TWO["objectives"]}, evaluation=OLD)
    assert 'study.objectives: ["best_f1"] in the study, ["best_f1", "old_task_f1"] in the' in line


def test_a_study_with_other_directions_is_refused(sqlite: StudyStorage):
    joined = two(sqlite)
    twin = optuna.create_study(study_name="twin", storage=sqlite.rdb, direction="maximize")
    text = json.loads(joined.optuna_study.user_attrs["study_file"])
    text["study"]["name"] = "twin"
    twin.set_user_attr("study_file", json.dumps(text))
    with pytest.raises(StorageError) as error:
        load_study("twin", sqlite)
    assert str(error.value).endswith(
        "study 'twin' has other objectives; qa_hpo maximises best_f1 and old_task_f1"
    )


# ---------------------------------------------------------------------------- within a trial


def stop_reason(joined: JoinedStudy, losses: list[float]) -> str | None:
    records = [
        EpochRecord(epoch, 1.0, 1.0, 1.0, loss, {"best_f1": 50.0, "old_task_f1": 40.0})
        for epoch, loss in enumerate(losses, start=1)
    ]
    joined.optuna_study.enqueue_trial({"start": "base", "learning_rate": 1e-4, "epochs": 4})
    objective = Objective(joined, cast("Any", None), Runtime())
    return objective.rules.reason(asked(joined), records)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_what_overfits_ends_early_but_for_controls(
    sqlite: StudyStorage, tmp_path: Path, fraction: float
):
    joined = two(
        sqlite,
        pruning={"control_fraction": fraction},
        artifacts={"folder": str(tmp_path / "artifacts")},
    )
    assert stop_reason(joined, [1.0, 0.9, 0.8]) is None
    assert stop_reason(joined, [1.0, 0.9, 1.1]) == ("overfitting" if fraction == 0 else None)
    assert stop_reason(joined, [9.0]) == "diverged"


# ---------------------------------------------------------------------------- the sampler


def told(
    storage: StudyStorage, name: str, values: list[tuple[float, float]], *early: int
) -> JoinedStudy:
    """A study of trials with these values, of which some ended early."""
    joined = two(storage, study={**TWO, "name": name}, search=LINE, budget={"trials": 500})
    for number, (best_f1, old_task_f1) in enumerate(values):
        state = TrialState.PRUNED if number in early else TrialState.COMPLETE
        end(joined, best_f1, old_task_f1, state=state)
    return joined


def proposed(joined: JoinedStudy) -> tuple[dict[str, Any], dict[str, Any]]:
    """The next point: as workers get it, and as Optuna's own trial does."""
    rdb, study = joined.storage.rdb, joined.optuna_study
    trial = rdb.get_trial(rdb.create_new_trial(joined.key))
    ours = propose(joined, trial, study.get_trials(deepcopy=False))
    study._thread_local.cached_all_trials = None  # as Study.ask() does
    theirs = optuna.Trial(study, trial_id(trial))
    joined.space.suggest(theirs)
    return ours, theirs.params


def test_trials_that_ended_early_count_with_their_values(sqlite: StudyStorage):
    """Whatever has which values, it is proposed what would be if all were complete."""
    some = random.Random(5)
    values = [(60 + 20 * some.random(), 40 + 20 * some.random()) for _ in range(24)]
    early = (1, 4, 5, 11, 12, 13, 17, 20, 22, 23)
    complete = told(sqlite, "complete", values)
    expected, again = proposed(complete)
    assert expected == again
    assert proposed(told(sqlite, "early", values, *early)) == (expected, expected)
    # And they do count: with the best of them as the worst, something else is proposed.
    best = max(early, key=lambda number: sum(values[number]))
    worse = [(1.0, 1.0) if number == best else pair for number, pair in enumerate(values)]
    assert proposed(told(sqlite, "worse", worse, *early))[0] != expected
    # What they are in the storage is not touched.
    stored = load_study("early", sqlite).optuna_study.trials
    assert [t.number for t in stored if t.state is TrialState.PRUNED] == list(early)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_it_learns_where_both_are_high(sqlite: StudyStorage, state: TrialState):
    """Both want a small weight decay; the learning rate trades one for the other."""
    joined = two(sqlite, search=LINE, budget={"trials": 500})
    decays = []
    for _ in range(50):
        asked_now = asked(joined)
        rate, decay = asked_now.parameters.learning_rate, asked_now.parameters.weight_decay
        decays.append(decay)
        attrs = {"best_f1": 80 * rate - 50 * decay, "old_task_f1": 80 * (1 - rate) - 50 * decay}
        record_epoch(joined, asked_now.trial, {"epoch": 1, "val_loss": 1.0})
        reason = "overfitting" if state is TrialState.PRUNED else None
        finish(joined, asked_now.trial, state=state, stop_reason=reason, attrs=attrs)
    assert sum(decays[-20:]) / 20 < 0.25  # by chance it would be 0.5, give or take 0.065


def test_a_bound_is_told_to_optuna(storage: StudyStorage, storage_url: str):
    joined = created(storage, evaluation=OLD, constraints={"max_forgetting": 3.0})
    end(joined, 80.0, 40.0, 7.5)
    end(joined, 70.0, 47.0, 3.0)
    end(joined, 75.0, 46.0, 3.25, state=TrialState.PRUNED)
    end(joined, 60.0, 20.0, None)
    end(joined, 99.0, 99.0, 9.0, state=TrialState.FAIL)
    with opened(storage_url) as others:  # another worker's
        trials = load_study("demo", others).optuna_study.get_trials()
        assert [trial.constraints for trial in trials] == [
            {"max_forgetting": 4.5},
            {"max_forgetting": 0.0},
            {"max_forgetting": 0.25},
            {"max_forgetting": -3.0},
            {},
        ]
        assert load_study("demo", others).optuna_study.best_trial.number == 1
    assert [excess(trial) for trial in trials[:4]] == [4.5, 0.0, 0.25, 0.0]
    assert [t.number for t in finished_trials(joined)] == [1, 3, 2, 0]
    assert [t.number for t in finished_trials(joined, constrained=False)] == [0, 2, 1, 3]
    assert finalists_among(trials, 3) == [1, 3, 2]


def test_the_attribute_is_named_as_optunas_own():
    study = optuna.create_study()
    study.ask().set_constraint("max_forgetting", 1.5)
    assert study.trials[0].system_attrs[FORGETTING] == 1.5


def test_without_a_bound_there_is_no_constraint(sqlite: StudyStorage):
    joined = two(sqlite)
    end(joined, 80.0, 40.0, 70.0)
    assert joined.optuna_study.trials[0].constraints == {}
    assert excess(joined.optuna_study.trials[0]) == 0.0


def rising(joined: JoinedStudy) -> list[float]:
    """Learning rates proposed where with the rate best F1 rises, and what is forgotten does."""
    rates = []
    for _ in range(40):
        asked_now = asked(joined)
        rate = asked_now.parameters.learning_rate
        rates.append(rate)
        attrs = {"best_f1": 80 * rate, "old_task_f1": 50 - 10 * rate, "old_task_drop": 10 * rate}
        record_epoch(joined, asked_now.trial, {"epoch": 1, "val_loss": 1 - rate})
        finish(joined, asked_now.trial, state=TrialState.COMPLETE, attrs=attrs)
    return rates


def test_the_sampler_keeps_to_the_bound(sqlite: StudyStorage):
    """The best is at a rate of 1, and the best within the bound at 0.3."""
    free = created(sqlite, evaluation=OLD, search=LINE, budget={"trials": 500})
    name, bound = {"name": "bound", "seed": 3}, {"max_forgetting": 3.0}
    sections = {"study": name, "evaluation": OLD, "search": LINE, "budget": {"trials": 500}}
    bounded = created(sqlite, constraints=bound, **sections)
    rates = rising(bounded)
    assert sum(rising(free)[-20:]) / 20 > 0.6
    assert sum(rates[-20:]) / 20 < 0.45  # by chance, both would be 0.5, give or take 0.065
    winner = finished_trials(bounded)[0]
    assert winner.user_attrs["best_f1"] == 80 * max(rate for rate in rates if rate <= 0.3)


def test_with_two_objectives_as_well(sqlite: StudyStorage):
    joined = two(sqlite, search=LINE, constraints={"max_forgetting": 3.0}, budget={"trials": 500})
    rates = rising(joined)
    assert sum(rates[-20:]) / 20 < 0.35
    winner = finished_trials(joined)[0]
    assert winner.user_attrs["best_f1"] == 80 * max(rate for rate in rates if rate <= 0.3)


# ---------------------------------------------------------------------------- rules


def test_rules_are_read():
    assert parse_rule("best_f1") == Rule("best_f1")
    assert parse_rule("old_task_f1") == Rule("old_task_f1")
    for text in ("forgetting<=2.5", "forgetting <= 2.5", "forgetting<=2.50"):
        assert parse_rule(text) == Rule("forgetting", 2.5)
        assert str(parse_rule(text)) == "forgetting<=2.5"


@pytest.mark.parametrize(
    "text",
    ["", "f1", "forgetting", "forgetting<=", "forgetting<=x", "forgetting<=-1", "forgetting<=nan",
     "forgetting<=inf", "forgetting<3", "best_f1<=3"],
)  # fmt: skip
def test_what_is_no_rule_is_told_what_would_be(text: str):
    with pytest.raises(InputError) as error:
        parse_rule(text)
    assert str(error.value) == (
        f"--prefer {text!r}: valid: best_f1, old_task_f1 or forgetting<=X (X in points of F1, at "
        "least 0)"
    )


def chosen(joined: JoinedStudy, rule: str) -> int | None:
    trial = choose(joined, parse_rule(rule))
    return None if trial is None else trial.number


def test_each_rule_chooses_its_trial(sqlite: StudyStorage):
    joined = two(sqlite)
    assert chosen(joined, "best_f1") is chosen(joined, "old_task_f1") is None
    assert chosen(joined, "forgetting<=1") is None
    end(joined, 80.0, 40.0, 20.0)
    end(joined, 75.0, 50.0, 10.0, state=TrialState.PRUNED)
    end(joined, 70.0, 55.0, 5.0)
    end(joined, 60.0, 55.0, 5.0)
    assert chosen(joined, "best_f1") == 0
    assert chosen(joined, "old_task_f1") == 2  # the better one of two equal ones
    assert chosen(joined, "forgetting<=20") == 0
    assert chosen(joined, "forgetting<=19.99") == 1
    assert chosen(joined, "forgetting<=5") == 2
    with pytest.raises(InputError) as error:
        choose(joined, Rule("forgetting", 4.5))
    assert str(error.value) == (
        "--prefer forgetting<=4.5: no finished trial forgets so little; the least is 5.00 points "
        "of F1, of trial 2"
    )
    end(joined, 65.0, 10.0, None)  # its start has not learnt the task
    assert chosen(joined, "forgetting<=4.5") == 4


def test_the_studys_bound_and_the_rules(sqlite: StudyStorage):
    joined = created(sqlite, evaluation=OLD, constraints={"max_forgetting": 6.0})
    end(joined, 80.0, 60.0, 20.0)
    end(joined, 70.0, 55.0, 7.0)
    assert chosen(joined, "best_f1") == 1  # none keeps to it, and this one forgets the least
    assert chosen(joined, "old_task_f1") == 0
    end(joined, 65.0, 50.0, 5.0)
    assert chosen(joined, "best_f1") == chosen(joined, "old_task_f1") == 2
    assert chosen(joined, "forgetting<=30") == 0  # a bound of its own


def test_a_study_without_an_old_task_has_one_rule(sqlite: StudyStorage):
    joined = created(sqlite)
    trial = asked(joined).trial
    finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": 50.0})
    assert chosen(joined, "best_f1") == 0
    with pytest.raises(InputError) as error:
        choose(joined, Rule("old_task_f1"))
    assert str(error.value) == (
        "--prefer old_task_f1: study 'demo' has no evaluation.old_task, so that what is forgotten "
        "was not measured; valid: best_f1"
    )


# ---------------------------------------------------------------------------- what is kept


def made(number: int, best_f1: float, old: float, drop: float | None, most: float) -> FrozenTrial:
    trial = create_trial(
        values=[best_f1, old],
        user_attrs={"best_f1": best_f1, "old_task_f1": old, "old_task_drop": drop},
        system_attrs={FORGETTING: (drop or 0.0) - most},
    )
    trial.number = number
    return trial


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_rule_chooses_later_was_kept_all_the_time(seed: int):
    """Trials finish one by one; what is not kept once is gone for good."""
    some = random.Random(seed)
    file = study_file(evaluation=OLD)
    trials: list[FrozenTrial] = []
    study = SimpleNamespace(get_trials=lambda **_: list(trials))
    joined = cast("JoinedStudy", SimpleNamespace(file=file, optuna_study=study))
    gone: set[int] = set()
    for number in range(30):
        had = some.choice([None, 60, 66])
        old = float(some.randint(40, 60))
        drop = None if had is None else had - old
        trials.append(made(number, float(some.randint(50, 60)), old, drop, most=4.0))
        ranked = finished_trials(joined)
        gone |= {t.number for t in ranked[1:]} - candidates(ranked)  # artifacts.keep is 1
        drops = sorted({max(0.0, t.user_attrs["old_task_drop"] or 0.0) for t in trials})
        rules = [Rule("best_f1"), Rule("old_task_f1"), *(Rule("forgetting", x) for x in drops)]
        picked = {trial.number for rule in rules if (trial := choose(joined, rule)) is not None}
        assert not picked & gone
    assert len(gone) > 10


def test_of_two_numbers_neither_of_which_says_anything_of_the_other_few_are_on_the_front():
    some = random.Random(1)
    sizes = [
        sum(non_dominated([(some.random(), some.random()) for _ in range(500)])) for _ in range(40)
    ]
    # The expected number is 1 + 1/2 + … + 1/500.
    assert sum(sizes) / 40 == pytest.approx(sum(1 / n for n in range(1, 501)), abs=1.5)


@pytest.mark.parametrize("study", [{"name": "demo"}, TWO], ids=["one", "two"])
def test_checkpoints_on_the_front_are_not_collected(
    sqlite: StudyStorage, tmp_path: Path, study: dict[str, Any]
):
    one = ToldStudy(sqlite, tmp_path, study=study, artifacts={"keep": 1})
    for best_f1, old, drop in ((70, 20, 30), (60, 40, 10), (50, 30, 20), (40, 49, 1), (60, 39, 9)):
        one.end(float(best_f1), float(old), float(drop))
        one.collect()
    # 2 is beaten in both by 1; 4 knows less than 1 does, and yet forgets less of what it knew.
    assert one.kept() == {0, 1, 3, 4}
    for rule, number in (("best_f1", 0), ("old_task_f1", 3), ("forgetting<=9", 4)):
        assert chosen(one.joined, rule) == number


def test_feasible_trials_are_kept_beside_the_front(sqlite: StudyStorage, tmp_path: Path):
    bound = {"max_forgetting": 5.0}
    one = ToldStudy(sqlite, tmp_path, constraints=bound, artifacts={"keep": 2})
    ends = [(70, 60, 8, "v1"), (50, 20, None, "base"), (48, 21, None, "base"),
            (45, 15, None, "base"), (40, 12, None, "base")]  # fmt: skip
    for best_f1, old, drop, start in ends:
        one.end(float(best_f1), float(old), drop, start=start)
        one.collect()
    # 0 beats all of them, and forgets too much; 1 and 2 lead among those that keep to the bound.
    assert one.kept() == {0, 1, 2}
    assert chosen(one.joined, "best_f1") == 1


def test_without_an_old_task_as_many_are_kept_as_the_file_says(
    sqlite: StudyStorage, tmp_path: Path
):
    one = ToldStudy(sqlite, tmp_path, evaluation={}, artifacts={"keep": 1})
    for best_f1 in (50.0, 70.0, 60.0):
        one.end(best_f1)
        one.collect()
    assert one.kept() == {1}
