"""Retention methods in a study file: how they are written, where they apply, what they need."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from qa_hpo.config import StudyFile, parse_study, to_toml
from qa_hpo.errors import StudyFileError
from qa_hpo.parameters import METHODS, RANKED, STRENGTHS, Parameters, Retention
from qa_hpo.search.space import SearchSpace

STUDY = """
[study]
name = "kept"
[data]
train = "v2.json"
validation = "v2.json"
[starts]
base = "folder"
[starts.v1]
from = "base"
train = "v1.json"
train_limit = 300
[starts.v2]
from = "v1"
train = "v2.json"
[budget]
trials = 3
"""

SEARCH = """
[search.start]
choices = ["base", "v1", "v2"]
[search.retention.method]
choices = ["none", "ewc", "replay", "lora"]
when = { start = ["v1", "v2"] }
[search.retention.strength.ewc]
low = 10
high = 1000
log = true
[search.retention.strength.replay]
low = 0.05
high = 0.5
[search.retention.rank]
low = 2
high = 8
"""


def study(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(STUDY + text)
    return StudyFile.from_toml(path)


def refusal(tmp_path, text):
    with pytest.raises(StudyFileError) as caught:
        study(tmp_path, text)
    (line,) = str(caught.value).splitlines()
    return line.partition("study.toml: ")[2]


def test_each_method_has_its_own_range(tmp_path):
    space = SearchSpace(study(tmp_path, SEARCH))
    assert list(space.distributions.items()) == [
        ("start", CategoricalDistribution(("base", "v1", "v2"))),
        ("retention.method", CategoricalDistribution(("none", "ewc", "replay", "lora"))),
        ("retention.strength.ewc", FloatDistribution(10, 1000, log=True)),
        ("retention.strength.replay", FloatDistribution(0.05, 0.5)),
        ("retention.rank", IntDistribution(2, 8)),
    ]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"start": "base"}, Retention()),
        ({"start": "v1", "retention.method": "none"}, Retention()),
        (
            {"start": "v1", "retention.method": "ewc", "retention.strength.ewc": 50.0},
            Retention(method="ewc", strength=50.0),
        ),
        (
            {"start": "v2", "retention.method": "replay", "retention.strength.replay": 0.25},
            Retention(method="replay", strength=0.25),
        ),
        (
            {"start": "v2", "retention.method": "lora", "retention.rank": 4},
            Retention(method="lora", rank=4),
        ),
    ],
)
def test_what_does_not_apply_is_not_chosen(tmp_path, chosen, expected):
    # A fixed trial knows these parameters and no others: to ask for another one is an error.
    space = SearchSpace(study(tmp_path, SEARCH))
    parameters = space.suggest(FixedTrial(chosen))
    assert parameters.retention == expected
    assert parameters.start == chosen["start"]
    assert space.parameters_of(chosen) == parameters
    assert Parameters.from_flat(parameters.flat()) == parameters


def test_a_sampler_draws_points_that_read_back(tmp_path):
    space = SearchSpace(study(tmp_path, SEARCH))
    drawn = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    points = []
    for _ in range(40):
        trial = drawn.ask()
        points.append(space.suggest(trial))
        drawn.tell(trial, 0.0)
    assert [space.parameters_of(trial.params) for trial in drawn.trials] == points
    assert {point.retention.method for point in points} == {"none", "ewc", "replay", "lora"}
    for point in points:
        assert point.start != "base" or point.retention.method == "none"


def test_a_stored_study_reads_back(tmp_path):
    file = study(tmp_path, SEARCH)
    assert parse_study(file.model_dump_json(by_alias=True), "stored") == file
    (tmp_path / "again.toml").write_text(to_toml(file))
    assert StudyFile.from_toml(tmp_path / "again.toml") == file


def test_a_method_without_a_strength_has_its_own():
    assert Retention.model_validate({"method": "ewc"}).strength == STRENGTHS["ewc"]
    assert Retention.model_validate("mask") == Retention(method="mask")
    assert Retention.model_validate({"method": "none", "strength": 3.0, "rank": 2}) == Retention()
    for method in METHODS:
        flat = Parameters(retention=Retention(method=method)).flat()
        assert ("retention.strength" in flat) == (method in STRENGTHS)
        assert ("retention.rank" in flat) == (method in RANKED)
        assert "retention" not in flat


def test_another_method_does_not_inherit_a_strength(tmp_path):
    text = """
[search.start]
choices = ["v1"]
[search.retention.method]
choices = ["ewc", "replay"]
[training.retention]
method = "ewc"
strength = 400.0
"""
    space = SearchSpace(study(tmp_path, text))
    ewc = space.suggest(FixedTrial({"start": "v1", "retention.method": "ewc"}))
    replay = space.suggest(FixedTrial({"start": "v1", "retention.method": "replay"}))
    assert ewc.retention.strength == 400.0
    assert replay.retention.strength == STRENGTHS["replay"]


def test_one_strength_for_methods_of_a_kind(tmp_path):
    text = """
[search]
start = "v1"
retention.method = ["none", "ewc", "l2sp", "lora"]
retention.strength = { low = 1, high = 10 }
"""
    space = SearchSpace(study(tmp_path, text))
    assert list(space.distributions) == ["retention.method", "retention.strength"]
    chosen = {"retention.method": "l2sp", "retention.strength": 2.0}
    assert space.suggest(FixedTrial(chosen)).retention == Retention(method="l2sp", strength=2.0)
    lora = space.suggest(FixedTrial({"retention.method": "lora"}))
    assert lora.retention == Retention(method="lora")


def test_a_baseline_names_method_and_strength(tmp_path):
    text = (
        SEARCH
        + """
[[baseline]]
start = "v1"
retention.method = "ewc"
retention.strength = 100
[[baseline]]
start = "base"
"""
    )
    file = study(tmp_path, text)
    space = SearchSpace(file)
    assert [space.baseline(entry) for entry in file.baseline] == [
        {"start": "v1", "retention.method": "ewc", "retention.strength.ewc": 100.0},
        {"start": "base"},
    ]


def test_a_baseline_whose_method_does_not_apply_is_refused(tmp_path):
    text = SEARCH + '[[baseline]]\nstart = "base"\nretention.method = "ewc"\n'
    file = study(tmp_path, text)
    with pytest.raises(StudyFileError) as caught:
        SearchSpace(file).baseline(file.baseline[0])
    assert str(caught.value) == (
        "baseline: retention.method applies only when start is 'v1' or 'v2'"
    )


def test_a_condition_on_one_methods_strength_is_refused(tmp_path):
    text = (
        SEARCH
        + '[search.warmup]\nlow = 0.0\nhigh = 0.1\nwhen = { "retention.strength.ewc" = 10 }\n'
    )
    assert (
        "search.warmup.when.retention.strength.ewc: retention.strength.ewc is of one m"
        in refusal(tmp_path, text)
    )


def test_recipes_are_trained_without_a_method(tmp_path):
    text = '[search]\nstart = ["v1", "v2"]\n[training.retention]\nmethod = "replay"\n'
    file = study(tmp_path, text)
    recipe = file.starts["v2"]
    assert file.defaults.retention.method == "replay"
    assert recipe.parameters(file.defaults).retention.method == "none"


def test_the_old_task_is_what_the_nearest_recipe_of_other_questions_taught(tmp_path):
    file = study(tmp_path, SEARCH)
    assert file.old_training("v1") == ("v1.json", 300)
    assert file.old_training("v2") == ("v1.json", 300)  # whose own are those of the trials
    assert file.old_training("base") is None
    named = STUDY.replace("[data]", '[data]\nold_task = "older.json"\nold_task_limit = 7')
    path = tmp_path / "named.toml"
    path.write_text(named + SEARCH)
    assert StudyFile.from_toml(path).old_training("base") == ("older.json", 7)


@pytest.mark.parametrize("methods", ['["none", "si"]', '["none"]'])
def test_path_integrals_are_collected_where_si_is_searched(tmp_path, methods):
    text = f'[search]\nstart = ["v1"]\nretention.method = {methods}\n'
    file = study(tmp_path, text)
    assert file.starts["v1"].path_integral == ("si" in methods)
    assert file.starts["v2"].path_integral is False


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[search]\nstart = "v1"\nretention.method = ["none", "ewk"]',
            "search.retention.method: input should be 'none', 'l2sp', 'ewc', 'si', 'replay', "
            "'distill', 'freeze', 'mask', 'lora' or 'adalora', got 'ewk'",
        ),
        (
            '[search]\nstart = "v1"\nretention.strenght = 2',
            "search.retention.strenght: unknown parameter; did you mean 'retention.strength'?",
        ),
        (
            '[search]\nstart = "v1"\nretention.strength = 2',
            "search.retention.strength: no trial has a method with it; search retention.method: "
            "l2sp, ewc, si, replay, distill, freeze, mask",
        ),
        (
            '[search]\nstart = "v1"\nretention.method = ["none", "lora"]\n'
            "retention.strength.lora = 2",
            "search.retention.strength.lora: no method of that name has a strength; valid: l2sp, "
            "ewc, si, replay, distill, freeze, mask",
        ),
        (
            '[search]\nstart = "v1"\nretention.method = ["replay"]\n'
            "retention.strength.replay = { low = 0.5, high = 1.5 }",
            "search.retention.strength.replay: the strength of replay is a share, 0 to 1, got 1.5",
        ),
        (
            '[search]\nstart = "v1"\nretention.method = ["ewc", "replay"]\n'
            "retention.strength = { low = 0.5, high = 100 }",
            "search.retention.strength: 100.0 is no strength of replay, which is a share; give "
            "each method its own: search.retention.strength.replay",
        ),
        (
            '[search]\nstart = ["base", "v1"]\nretention.method = ["none", "ewc"]',
            "search.retention.method: 'ewc' needs the training questions of what start 'base' has "
            'learnt before; give data.old_task, or another start: when = { start = "…" }',
        ),
        (
            '[search]\nstart = ["base", "v1"]\n[search.retention.method]\nchoices = ["si"]\n'
            'when = { start = "base" }',
            "search.retention.method: 'si' needs a start that a recipe builds, which 'base' is "
            'not; choose another start: when = { start = "…" }',
        ),
        (
            '[search]\nstart = { choices = ["base", "v1"], when = { "retention.method" = "none" } }'
            '\n[search.retention.method]\nchoices = ["none"]\nwhen = { start = "v1" }',
            "search.start.when.retention.method: goes round: start is a condition of "
            "retention.method",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, text, line):
    assert refusal(tmp_path, text) == line
