import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from search_helpers import study_file

from qa_hpo.errors import StudyFileError
from qa_hpo.parameters import Parameters
from qa_hpo.search.space import SearchSpace

SEARCH = {
    "warmup": {"low": 0.1, "high": 0.5, "step": 0.15, "when": {"start": "v1"}},
    "start": ["base", "v1"],
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "scheduler": {"value": "cosine"},
    "doc_stride": {"low": 32, "high": 100, "step": 32},
    "batch_size": [16, 32],
    "dropout": {"value": 0.2, "when": {"batch_size": [32, 64], "start": "base"}},
}
SEARCH_OF_64 = {**SEARCH, "batch_size": [16, 32, 64]}
TRAINING = {"epochs": 3, "weight_decay": 0.01}


def space(search=SEARCH_OF_64, **sections) -> SearchSpace:
    return SearchSpace(study_file(search=search, training=TRAINING, **sections))


def test_distributions_are_the_searched_parameters_in_the_files_order():
    assert list(space().distributions.items()) == [
        ("start", CategoricalDistribution(("base", "v1"))),
        ("learning_rate", FloatDistribution(1e-5, 1e-3, log=True)),
        # 32 and 64 of 32 … 100; 0.1, 0.25 and 0.4 of 0.1 … 0.5: the grid ends on its last point.
        ("doc_stride", IntDistribution(32, 96, step=32)),
        ("batch_size", CategoricalDistribution((16, 32, 64))),
        ("warmup", FloatDistribution(0.1, 0.4, step=0.15)),
    ]


CHOSEN = {"start": "v1", "learning_rate": 1e-4, "doc_stride": 64, "batch_size": 32, "warmup": 0.25}


def test_suggest_gives_complete_parameters():
    expected = Parameters(
        start="v1", learning_rate=1e-4, doc_stride=64, batch_size=32, warmup=0.25,
        scheduler="cosine", epochs=3, weight_decay=0.01, dropout=None,
    )  # fmt: skip
    assert space().suggest(FixedTrial(CHOSEN)) == expected
    assert space().parameters_of(CHOSEN) == expected


def test_a_conditional_parameter_has_the_default_where_its_condition_does_not_hold():
    # Had warmup been suggested, FixedTrial would have missed its value.
    chosen = {name: value for name, value in CHOSEN.items() if name != "warmup"} | {"start": "base"}
    parameters = space().suggest(FixedTrial(chosen))
    assert (parameters.warmup, parameters.dropout) == (0.0, 0.2)
    assert space().suggest(FixedTrial(chosen | {"batch_size": 16})).dropout is None
    assert space().suggest(FixedTrial(chosen | {"batch_size": 64})).dropout == 0.2


def test_a_stored_trial_reads_back_as_what_was_suggested():
    searched = space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    suggested = []
    for _ in range(30):
        trial = study.ask()
        suggested.append(searched.suggest(trial))
    assert [searched.parameters_of(trial.params) for trial in study.trials] == suggested
    assert {parameters.warmup for parameters in suggested} == {0.0, 0.1, 0.25, 0.4}
    with_warmup = ["warmup" in trial.params for trial in study.trials]
    assert with_warmup == [parameters.start == "v1" for parameters in suggested]


def test_a_range_of_one_point_and_a_single_choice():
    one = space({"start": ["base", "v1"], "epochs": {"low": 2, "high": 2}, "batch_size": [8]})
    parameters = one.suggest(FixedTrial({"start": "v1", "epochs": 2, "batch_size": 8}))
    assert (parameters.epochs, parameters.batch_size) == (2, 8)


def test_a_space_with_nothing_to_search():
    nothing = SearchSpace(study_file(starts={"base": "x"}, search={}, training=TRAINING))
    assert nothing.distributions == {}
    assert nothing.suggest(FixedTrial({})) == Parameters(epochs=3, weight_decay=0.01)


def test_a_baseline_takes_defaults_and_the_distributions_types():
    complete = space().baseline(
        {"name": "notebook", "start": "v1", "learning_rate": 2e-5, "doc_stride": 64, "warmup": 0.1}
    )
    assert complete == {
        "start": "v1",
        "learning_rate": 2e-5,
        "doc_stride": 64,
        "batch_size": 16,  # the default, which is one of the choices
        "warmup": 0.1,
    }
    whole = SearchSpace(
        study_file(search={"start": ["base", "v1"], "weight_decay": {"low": 0, "high": 1}})
    ).baseline({"weight_decay": 1})
    assert whole == {"start": "base", "weight_decay": 1.0}
    assert type(whole["weight_decay"]) is float


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            {"name": "notebook", "start": "base"},
            "baseline 'notebook': give doc_stride; the default 128 is not in search.doc_stride",
        ),
        (
            {"start": "base", "doc_stride": 32, "warmup": 0.1},
            "baseline: warmup applies only when start is 'v1'",
        ),
        (
            {"start": "v1", "doc_stride": 32},
            "baseline: give warmup; the default 0.0 is not in search.warmup",
        ),
    ],
)
def test_a_baseline_that_cannot_be_run(entry, line):
    with pytest.raises(StudyFileError) as caught:
        space().baseline(entry)
    assert str(caught.value) == line


def test_a_baseline_must_give_dropout_which_has_no_default():
    dropout = space({"start": ["base", "v1"], "dropout": {"low": 0.0, "high": 0.3}})
    with pytest.raises(StudyFileError, match="give dropout; there is no default"):
        dropout.baseline({"start": "base"})


def test_a_baseline_may_name_what_does_not_apply_if_it_is_the_default():
    assert "warmup" not in space().baseline({"start": "base", "doc_stride": 32, "warmup": 0})


def test_a_queued_baseline_is_suggested_without_a_warning():
    searched = space()
    study = optuna.create_study()
    entry = {"start": "v1", "learning_rate": 2e-5, "doc_stride": 96, "warmup": 0.4}
    study.enqueue_trial(searched.baseline(entry))
    parameters = searched.suggest(study.ask())
    assert math.isclose(parameters.learning_rate, 2e-5)
    assert (parameters.doc_stride, parameters.warmup, parameters.batch_size) == (96, 0.4, 16)
