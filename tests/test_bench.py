"""The benchmarks' sides give the same, and their results are written without loss."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import __main__ as command
from bench import data, notebook, postprocess, report, timing

OFFICIAL = {
    *(f"{prefix}{kind}" for prefix in ("", "HasAns_", "NoAns_") for kind in ("exact", "f1")),
    *("total", "HasAns_total", "NoAns_total"),
    *("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"),
}


@pytest.fixture(scope="module")
def bout():
    """A hundred questions of the demo, in windows so short that most contexts take several."""
    material = replace(data.demo_material(limit=100), max_length=48, doc_stride=12)
    return postprocess.prepare(material)


@pytest.fixture(scope="module")
def ours(bout):
    return postprocess.run_ours(bout, timing.Stopwatch())


# ---------------------------------------------------------------------------- the two sides


@pytest.mark.parametrize("as_dataset", [True, False])
def test_the_notebook_and_ours_give_identical_answers_and_metrics(bout, ours, as_dataset):
    watch = timing.Stopwatch()
    theirs = postprocess.run_notebook(bout, watch, as_dataset=as_dataset)

    assert theirs.input_ids == ours.input_ids
    assert theirs.labels == ours.labels
    assert theirs.texts == ours.texts
    assert theirs.metrics.keys() == OFFICIAL
    assert ours.metrics.keys() >= OFFICIAL
    np.testing.assert_allclose(theirs.margins, ours.margins, atol=0.51e-4)
    for name in OFFICIAL:
        tolerance = 0.51e-4 if name.endswith("thresh") else 1e-9
        assert theirs.metrics[name] == pytest.approx(ours.metrics[name], abs=tolerance), name
    postprocess.check_same(theirs, ours)
    assert set(watch.wall) == set(postprocess.PARTS)


def test_the_comparison_is_worth_something(bout, ours):
    """Several windows a question, answers of several lengths, some right, some null."""
    assert len(ours.input_ids) > 1.5 * len(bout.rows)
    assert len({len(text.split()) for text in ours.texts}) > 3
    assert all(ours.texts)
    assert 0.02 < np.mean(ours.margins > 0) < 0.98
    assert 10 < ours.metrics["f1"] < 90
    assert ours.metrics["best_f1"] > ours.metrics["f1"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("windows", lambda o: replace(o, input_ids=o.input_ids[1:])),
        ("labels", lambda o: replace(o, labels=[(0, 1), *o.labels[1:]])),
        ("1 spans differ", lambda o: replace(o, texts=["other", *o.texts[1:]])),
        ("null margins", lambda o: replace(o, margins=o.margins + 1e-3)),
        ("best_f1", lambda o: replace(o, metrics={**o.metrics, "best_f1": 1.0})),
        ("exact", lambda o: replace(o, metrics={**o.metrics, "exact": o.metrics["exact"] + 1e-3})),
    ],
)
def test_a_difference_between_the_sides_is_found(ours, name, change):
    with pytest.raises(postprocess.DisagreementError, match=name):
        postprocess.check_same(change(ours), ours)


def test_the_sweep_by_hand():
    questions = [
        {"id": "a", "answers": {"text": ["The Mill", "mill hill"]}},
        {"id": "b", "answers": {"text": []}},
        {"id": "c", "answers": {"text": ["castle"]}},
    ]
    predictions = {"a": ("mill!", -2.0), "b": ("harbour", -1.0), "c": ("old castle", 0.5)}
    exact, f1 = notebook.question_scores(questions, predictions)
    metrics = notebook.official_metrics(questions, predictions, exact, f1)

    assert exact == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert f1 == pytest.approx({"a": 1.0, "b": 0.0, "c": 2 / 3})
    assert metrics == pytest.approx(
        {
            **{"exact": 100 / 3, "f1": 100 / 3, "total": 3},
            **{"HasAns_exact": 50, "HasAns_f1": 50, "HasAns_total": 2},
            **{"NoAns_exact": 0, "NoAns_f1": 0, "NoAns_total": 1},
            **{"best_exact": 200 / 3, "best_exact_thresh": -2.0},
            **{"best_f1": 200 / 3, "best_f1_thresh": -2.0},
        }
    )


@pytest.mark.parametrize(
    ("longest", "found"), [(2, ("old mill", 1.0 - 10.0)), (1, ("mill", 1.0 - 7.5))]
)
def test_the_notebook_takes_the_lowest_null_score_and_valid_spans_only(longest, found):
    question = {"id": "a", "context": "old mill"}
    # CLS, one token of the question, two of the context.
    window = {
        "example_id": "a",
        "input_ids": [9, 1, 2, 3],
        "offset_mapping": [None, None, (0, 3), (4, 8)],
    }
    # Null scores 6 and 1. In the first window the best spans begin in the question, and the second
    # window's best is reversed: "mill" to "old" would be 12.
    starts = np.array([[3, 9, 5, 2.5], [0.5, 0, 1, 6]], dtype=np.float32)
    ends = np.array([[3, 0, 1, 5], [0.5, 0, 6, 0]], dtype=np.float32)
    answers = notebook.best_answers(
        [question], [window, window], starts, ends, cls_id=9, max_answer_length=longest
    )

    assert answers == {"a": found}


# ---------------------------------------------------------------------------- timing


def test_sides_run_in_turn_and_ratios_are_of_neighbours(monkeypatch):
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # a second with all that is imported
    order = []

    def side(name, seconds):
        def run(watch):
            order.append(name)
            watch.wall["work"] = seconds.pop(0)
            watch.cpu = 1.0

        return run

    compared = timing.alternate(side("A", [4.0, 9.0, 8.0]), side("B", [2.0, 3.0, 1.0]), 3)
    assert order == ["A", "B"] * 3
    assert compared.ratios == [2.0, 3.0, 8.0]
    assert compared.summary() == {"median": 3.0, "min": 2.0, "max": 8.0, "pairs": 3}
    assert timing.part_medians(compared.ours) == {"work": 2.0}


# ---------------------------------------------------------------------------- reporting


def test_an_update_keeps_other_sections_and_keys(tmp_path):
    for name in ("one", "two", "three"):
        report.write_finding(tmp_path, name, report.Finding({"median": 1}, f"## {name}\n\nold"))
    page = tmp_path / report.RESULTS_MD
    page.write_text(page.read_text().replace("# Benchmarks\n", "# Benchmarks\n\nBy hand.\n"))
    before = page.read_text()

    report.write_finding(tmp_path, "two", report.Finding({"median": 2}, "## two\n\nnew \\1"))

    assert page.read_text() == before.replace("## two\n\nold", "## two\n\nnew \\1")
    values = json.loads((tmp_path / report.RESULTS_JSON).read_text())
    assert values == {"one": {"median": 1}, "two": {"median": 2}, "three": {"median": 1}}
    assert sorted(p.name for p in tmp_path.iterdir()) == [report.RESULTS_MD, report.RESULTS_JSON]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("<!-- end one -->", ""),
        lambda text: text + text,
        lambda text: "<!-- end one -->\n<!-- begin one -->\n",
    ],
)
def test_broken_markers_are_refused_and_nothing_is_written(tmp_path, spoil):
    report.write_finding(tmp_path, "one", report.Finding({"median": 1}, "## one"))
    page, values = tmp_path / report.RESULTS_MD, tmp_path / report.RESULTS_JSON
    page.write_text(spoil(page.read_text()))
    before = page.read_text(), values.read_text()

    with pytest.raises(ValueError, match="begin one"):
        report.write_finding(tmp_path, "one", report.Finding({"median": 2}, "## one"))

    assert (page.read_text(), values.read_text()) == before


def test_a_run_of_the_whole_benchmark(bout, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(postprocess, "load_material", lambda: bout.material)
    finding = postprocess.run(1)

    assert set(finding.fields) == {"median", "min", "max", "pairs"}
    assert finding.fields["pairs"] == 1
    assert 0 < finding.fields["min"] <= finding.fields["median"] <= finding.fields["max"]
    assert "100 questions" in finding.body
    assert all(f"| {part} " in finding.body for part in postprocess.PARTS)
    assert not re.search(r"(?<![\w.])/\w+/", finding.body), "an absolute path"
    assert "The sides agree" in capsys.readouterr().out
    report.write_finding(tmp_path, "postprocess_vs_notebook", finding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["postproces"], "postprocess_vs_notebook"),
        (["--pairs", "2"], "at least 3"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_real_data_are_used_only_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("QA_HPO_REAL_DATA", str(tmp_path))
    assert "demo" in data.load_material().name


@pytest.mark.real
def test_real_data_are_named_without_their_path(real_data):
    name = data.load_material().name
    assert name.startswith("SQuAD 2.0 dev, 16 articles, 6,078 questions")
    assert str(real_data) not in name
