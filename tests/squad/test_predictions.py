"""Predictions files in the official format."""

from __future__ import annotations

import json

import pytest
from squad_helpers import corpus_of
from squad_json import HARBOUR, qa, squad, write

from qa_hpo.errors import CorpusError
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.predictions import score_predictions_file

V2 = corpus_of(
    [
        ("a", "When?", HARBOUR, [("1742", 35), ("in 1742", 32)], "one"),
        ("b", "Where?", HARBOUR, [("harbour of Lindholm", 4)], "one"),
        ("c", "Who?", HARBOUR, [], "two"),
        ("d", "Why?", HARBOUR, [], "two"),
    ]
)
V1 = corpus_of(
    [
        ("a", "When?", HARBOUR, [("1742", 35)], "one"),
        ("b", "Where?", HARBOUR, [("harbour of Lindholm", 4)], "one"),
    ]
)
TEXTS = {"a": "In 1742!", "b": "the harbour", "c": "", "d": "Queen"}
# F1 of b: precision 1, recall 1/3.
HALF = 0.5


def test_v2_without_null_scores(tmp_path):
    metrics = score_predictions_file(V2, write(tmp_path / "p.json", TEXTS), None)
    assert metrics == pytest.approx(
        {
            "exact": 50.0,
            "f1": 100 * (1 + HALF + 1 + 0) / 4,
            "total": 4,
            "HasAns_exact": 50.0,
            "HasAns_f1": 75.0,
            "HasAns_total": 2,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
        }
    )


def test_v2_with_null_scores(tmp_path):
    nulls = write(tmp_path / "n.json", {"a": 0.5, "b": 2, "c": 3.0, "d": 0.1})
    metrics = score_predictions_file(V2, write(tmp_path / "p.json", TEXTS), nulls)
    # At 1.0, b and c are not answered.
    assert metrics["exact"] == 50.0
    assert metrics["f1"] == 50.0
    assert metrics["HasAns_f1"] == 50.0
    # By null score: d (loses 1), a (wins 1), b (wins 1/2 of F1), c (wins nothing).
    assert (metrics["best_exact"], metrics["best_exact_thresh"]) == (50.0, pytest.approx(-0.9))
    assert (metrics["best_f1"], metrics["best_f1_thresh"]) == (pytest.approx(62.5), 2.0)


def test_v1(tmp_path):
    texts = write(tmp_path / "p.json", {"a": "in 1742", "b": ""})
    metrics = score_predictions_file(V1, texts, None)
    assert metrics == pytest.approx(
        {
            "exact": 0.0,
            "f1": 100 * (2 / 3 + 0) / 2,
            "total": 2,
            "HasAns_exact": 0.0,
            "HasAns_f1": 100 * (2 / 3 + 0) / 2,
            "HasAns_total": 2,
        }
    )


def test_predictions_for_skipped_questions_may_be_there(tmp_path):
    path = write(tmp_path / "c.json", squad(("t", [(HARBOUR, [qa("a"), qa("b", "")])])))
    corpus = load_corpus(path, "validation")
    assert score_predictions_file(corpus, write(path, {"a": "", "b": "x"}), None)["exact"] == 100.0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "x"}, "3 ids are missing that stand in made up ('b', 'c', 'd'); expected its 4 ids"),
        ({}, "4 ids are missing that stand in made up ('a', 'b', 'c', ...); expected its 4 ids"),
        (TEXTS | {"e": "x"}, "1 ids are not in made up ('e'); expected its 4 ids"),
        (TEXTS | {"a": None}, "'a': expected the answer's text, found null"),
        (TEXTS | {"a": ["x"]}, "'a': expected the answer's text, found an array"),
        ([TEXTS], "expected an object {question id: value}, found an array"),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, texts, message):
    path = write(tmp_path / "p.json", texts)
    with pytest.raises(CorpusError) as caught:
        score_predictions_file(V2, path, None)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "0.5"}, "'a': expected a finite number, found a string"),
        ({"a": True}, "'a': expected a finite number, found a boolean"),
        ({"a": float("nan")}, "'a': expected a finite number, found nan"),
        ({"a": float("inf")}, "'a': expected a finite number, found inf"),
        ({"a": 10**400}, "'a': expected a finite number, found a number"),
        ({"e": 0.5}, "1 ids are not in made up ('e'); expected its 4 ids"),
    ],
)
def test_null_scores_that_do_not_fit(tmp_path, change, message):
    texts = write(tmp_path / "p.json", TEXTS)
    nulls = write(tmp_path / "n.json", dict.fromkeys(TEXTS, 0.5) | change)
    with pytest.raises(CorpusError) as caught:
        score_predictions_file(V2, texts, nulls)
    assert str(caught.value) == f"{nulls}: {message}"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.json: cannot be read: .*No such file"):
        score_predictions_file(V2, tmp_path / "none.json", None)
    (tmp_path / "p.json").write_text(json.dumps(TEXTS)[:-1])
    with pytest.raises(CorpusError, match=r"p\.json: not valid JSON: "):
        score_predictions_file(V2, tmp_path / "p.json", None)
