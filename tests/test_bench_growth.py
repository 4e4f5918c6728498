"""The exponents are those of the power laws, and every row is measured."""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import growth, report

from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study

SIZES = (10, 1000, 5000)


def row(power, *, factor=0.3, constant=0.0, **options):
    values = [factor * size**power + constant for size in SIZES]
    return growth.Row(f"power {power}", "trials", SIZES, values, **options)


# ---------------------------------------------------------------------------- exponents


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.37, 2.0])
def test_the_exponents_of_a_power_law(power):
    assert row(power).exponent == pytest.approx(power, abs=1e-12)
    assert row(power).last_exponent == pytest.approx(power, abs=1e-12)


def test_what_is_constant_hides_growth_from_all_sizes_more_than_from_the_last_step():
    quadratic = row(2.0, factor=1e-4, constant=1.0)
    assert quadratic.exponent < 1.4
    assert 1.9 < quadratic.last_exponent < 2.0


def test_what_is_above_linear_is_told_plainly():
    linear, quadratic, attention = row(1.1), row(2.0), row(1.3, attention=True)

    assert growth.above_linear([linear, quadratic, attention]) == ["power 2.0"]
    assert growth.verdict([linear, quadratic, attention]) == "Above linear: power 2.0."
    assert growth.verdict([linear, attention]) == "None above linear but attention."
    assert growth.verdict([linear]) == "None above linear."


# ---------------------------------------------------------------------------- what is measured


def test_windows_are_full_and_the_same_each_time():
    first, again = (growth.full_windows(6, 32, vocabulary=50) for _ in range(2))

    assert first.lengths.tolist() == [32] * 6
    assert len(first.input_ids) == 6 * 32
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    assert 0 <= first.input_ids.min() <= first.input_ids.max() < 50


def test_a_study_is_filled_to_its_size_and_a_timed_trial_adds_one(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    joined = create_study(growth._study(), storage, fingerprints={})
    growth.fill(joined, 12)
    growth.fill(joined, 60)
    filled = joined.optuna_study.get_trials()
    watch = growth.run_trial(joined)
    after = joined.optuna_study.get_trials()
    storage.close()

    assert len(filled) == 60
    states = [trial.state for trial in filled]
    assert states.count(TrialState.FAIL) == 2
    assert states.count(TrialState.PRUNED) == 4
    assert all(len(trial.user_attrs["epochs"]) == 3 for trial in filled)
    assert len({trial.params["learning_rate"] for trial in filled}) == 60
    assert len(after) == 61
    assert after[-1].state is TrialState.COMPLETE
    assert after[-1].intermediate_values == {1: -1.2, 2: -1.1}
    assert list(watch.wall) == ["ask", "record an epoch and ask the pruner", "finish"]


def test_a_run_of_the_whole_benchmark(monkeypatch, tmp_path):
    monkeypatch.setenv("QA_HPO_REAL_DATA", str(tmp_path))  # the demo's: quicker
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    finding = growth.run(
        1, questions=96, windows=(4, 8, 16), lengths=(16, 32, 64), trials=(12, 24, 36)
    )
    rows = {row["name"]: row for row in finding.fields["rows"]}

    assert len(rows) == len(finding.fields["rows"]) == 12
    for name, found in rows.items():
        values = found["bytes"] if "memory" in name else found["seconds"]
        assert len(values) == len(found["sizes"]) == 3, name
        assert min(values) > 0, name
        assert np.isfinite([found["exponent"], found["last_exponent"]]).all(), name
        assert f"| {name} " in finding.body
    assert rows["building windows"]["sizes"] == [6, 24, 96]
    assert rows["training step"]["sizes"] == [16, 32, 64]
    assert rows["ask"]["sizes"] == [12, 24, 36]
    memory = rows["post-processing's peak memory"]["bytes"]
    assert memory == sorted(memory)
    assert set(finding.fields["above_linear"]) <= set(rows)
    assert "bove linear" in finding.body
    assert "the demo" in finding.body
    assert not re.search(r"(?<![\w.])/\w+/", finding.body), "an absolute path"
    json.dumps(finding.fields)
    report.write_finding(tmp_path, "growth", finding)
