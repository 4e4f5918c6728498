"""The evaluate.Metric: the dictionaries of evaluate's own squad metrics, and no rubbish."""

from __future__ import annotations

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_hpo.squad.metric import SquadMetric
from qa_hpo.squad.scoring import exact_match, token_f1


def references(*golds):
    return [
        {"id": str(i), "answers": {"text": list(g), "answer_start": [0] * len(g)}}
        for i, g in enumerate(golds)
    ]


def predictions(*texts, probabilities=None):
    rows = [{"id": str(i), "prediction_text": text} for i, text in enumerate(texts)]
    for row, probability in zip(rows, probabilities or [], strict=False):
        row["no_answer_probability"] = probability
    return rows


def test_squad_worked_by_hand():
    metric = SquadMetric("squad")
    assert isinstance(metric, evaluate.Metric)
    golds = references(["the old harbour", "harbour"], ["31 m"], ["Lindholm"], ["the"])
    texts = predictions("Harbour!", "31", "", "a")
    # F1: 1, 2/3, 0; "a" and "the" are exactly the same nothing, whose F1 was 0 in SQuAD 1.1.
    assert metric.compute(predictions=texts, references=golds) == pytest.approx(
        {"exact_match": 50.0, "f1": 100 * (1 + 2 / 3) / 4}
    )


def test_squad_v2_worked_by_hand():
    golds = references(["the old harbour", "harbour"], ["31 m"], [], [])
    texts = predictions("Harbour", "31", "", "x", probabilities=[0.25, 0.5, 0.75, 0.875])
    metric = SquadMetric("squad_v2")
    expected = {
        "exact": 50.0,
        "f1": 100 * (1 + 2 / 3 + 1 + 0) / 4,
        "total": 4,
        "HasAns_exact": 50.0,
        "HasAns_f1": 100 * (1 + 2 / 3) / 2,
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        "best_exact": 75.0,
        "best_exact_thresh": 0.25,
        "best_f1": 100 * (1 + 2 / 3 + 1 + 1) / 4,
        "best_f1_thresh": 0.5,
    }
    result = metric.compute(predictions=texts, references=golds)
    assert result == pytest.approx(expected)
    assert list(result) == list(expected)
    at = metric.compute(predictions=texts, references=golds, no_answer_threshold=0.3)
    assert (at["exact"], at["NoAns_f1"], at["HasAns_f1"]) == (75.0, 100.0, 50.0)


def test_predictions_in_any_order_and_in_batches():
    metric = SquadMetric("squad")
    golds, texts = references(["x"], ["y"], ["z"]), predictions("x", "y", "-")
    metric.add_batch(predictions=texts[::-1][:2], references=golds[:2])
    metric.add(prediction=texts[0], reference=golds[2])
    assert metric.compute()["exact_match"] == pytest.approx(200 / 3)


def official(texts, golds, probabilities, threshold):
    """evaluate's squad_v2, condensed; for distinct probabilities."""

    def raw(score, text, of_question):
        return max(score(text, gold) for gold in of_question or [""])

    result = {}
    answerable = [bool(g) for g in golds]
    for name, score in (("exact", exact_match), ("f1", token_f1)):
        values = [raw(score, t, g) for t, g in zip(texts, golds, strict=True)]
        at = [
            float(not a) if p > threshold else v
            for a, p, v in zip(answerable, probabilities, values, strict=True)
        ]
        result[name] = 100 * sum(at) / len(at)
        for prefix, wanted in (("HasAns", True), ("NoAns", False)):
            chosen = [v for v, a in zip(at, answerable, strict=True) if a == wanted]
            if chosen:
                result[f"{prefix}_{name}"] = 100 * sum(chosen) / len(chosen)
                result[f"{prefix}_total"] = len(chosen)
        current = best = answerable.count(False)
        best_threshold = 0.0
        for i in np.argsort(probabilities):
            current += values[i] if answerable[i] else (-1 if texts[i] else 0)
            if current > best + 1e-9:
                best, best_threshold = current, probabilities[i]
        result[f"best_{name}"] = 100 * best / len(texts)
        result[f"best_{name}_thresh"] = best_threshold
    return result | {"total": len(texts)}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_squad_v2_is_evaluate_s(data):
    n = data.draw(st.integers(1, 7))
    words = st.sampled_from(["x", "y", "x y", "x y z"])
    texts = data.draw(st.lists(words | st.just(""), min_size=n, max_size=n))
    golds = data.draw(st.lists(st.lists(words, max_size=2), min_size=n, max_size=n))
    probabilities = [k / 16 for k in data.draw(st.permutations(range(16)))[:n]]
    threshold = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    result = SquadMetric("squad_v2").compute(
        predictions=predictions(*texts, probabilities=probabilities),
        references=references(*golds),
        no_answer_threshold=threshold,
    )
    assert result == pytest.approx(official(texts, golds, probabilities, threshold))


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    import evaluate.config

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    SquadMetric("squad").compute(predictions=predictions("x"), references=references(["x"]))
    assert list(tmp_path.iterdir()) == []


def test_evaluate_s_own_options(tmp_path):
    metric = SquadMetric("squad", cache_dir=str(tmp_path), experiment_id="mine")
    result = metric.compute(predictions=predictions("x"), references=references(["x"]))
    assert result == {"exact_match": 100.0, "f1": 100.0}
    assert metric.experiment_id == "mine"
    assert (tmp_path / "squad_metric" / "squad").is_dir()


def test_wrong_use():
    with pytest.raises(ValueError, match="config_name is 'squad2': expected 'squad' or 'squad_v2'"):
        SquadMetric("squad2")
    one = references(["x"])
    with pytest.raises(ValueError, match=r"1 references have no prediction, e\.g\. '0'"):
        SquadMetric("squad").compute(
            predictions=[{"id": "z", "prediction_text": "x"}], references=one
        )
    with pytest.raises(ValueError, match="1 references have no answer: use 'squad_v2'"):
        SquadMetric("squad").compute(predictions=predictions("x"), references=references([]))
    with pytest.raises(TypeError, match="no_answer_threshold"):
        SquadMetric("squad").compute(
            predictions=predictions("x"), references=one, no_answer_threshold=0.5
        )
    with pytest.raises(ValueError, match="don't match the expected format"):
        SquadMetric("squad_v2").compute(predictions=["x"], references=one)
