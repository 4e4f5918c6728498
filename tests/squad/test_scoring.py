"""EM and F1 worked out by hand; the threshold against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_helpers import corpus_of

from qa_hpo.squad.scoring import (
    QuestionScores,
    best_threshold,
    corpus_metrics,
    crossfit,
    exact_match,
    normalize_answer,
    score_answers,
    score_predictions,
    score_texts,
    token_f1,
)
from qa_hpo.squad.spans import Predictions


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Queen's   harbour!", "queens harbour"),
        ("a.n. Other", "other"),  # punctuation goes first, and leaves the article "an"
        ("an a the", ""),
        ("theatre of Thebes", "theatre of thebes"),
        ("A-the", "athe"),
        ("«The» tower", "« » tower"),
        ("naïve\u00a0Café\t海", "naïve café 海"),
        ("İ", "i̇"),
        ("$1,000.50", "100050"),
        ("", ""),
    ],
)
def test_normalisation(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("the harbour", "Harbour.", 1, 1),
        ("old harbour", "harbour", 0, 2 / 3),  # precision 1/2, recall 1
        ("harbour of Lindholm", "the old harbour", 0, 2 / 5),  # 1/3 and 1/2
        ("x x y", "x y y", 0, 2 / 3),  # x and y once each: 2/3 and 2/3
        ("tower", "harbour", 0, 0),
        ("", "harbour", 0, 0),
        ("harbour", "", 0, 0),
        ("", "", 1, 1),
        ("The", "", 1, 1),
        ("a", "!", 1, 1),
        ("海 港", "海港", 0, 0),
        ("CAFÉ", "café", 1, 1),
    ],
)
def test_pairs(prediction, gold, exact, f1):
    assert exact_match(prediction, gold) == exact
    assert token_f1(prediction, gold) == pytest.approx(f1)


def answers(*golds):
    return tuple((gold, 0) for gold in golds)


def test_several_golds_none_and_empty_ones():
    scores = score_answers(
        [
            answers("the tower", "old harbour"),  # the best of each, also of different golds
            answers("the", "tower"),  # "the" normalises to nothing and does not count
            answers("the"),  # nothing is left, so "" is what is wanted
            (),
            (),
            (),
        ],
        ["harbour", "", "", "", "The", "tower"],
        np.arange(6.0),
    )
    assert scores.span_exact.tolist() == [0, 0, 1, 1, 1, 0]
    assert scores.span_f1.tolist() == pytest.approx([2 / 3, 0, 1, 1, 1, 0])
    assert scores.has_answer.tolist() == [True, True, True, False, False, False]
    assert scores.null_exact.tolist() == scores.null_f1.tolist() == [0, 0, 0, 1, 1, 1]
    exact, f1 = scores.at(2.0)
    assert exact.tolist() == [0, 0, 1, 1, 1, 1]
    assert f1.tolist() == pytest.approx([2 / 3, 0, 1, 1, 1, 1])


CONTEXT = "The old harbour of Lindholm."
CORPUS = corpus_of(
    [
        ("a", "What?", CONTEXT, [("old harbour", 4), ("harbour", 8)], "one"),
        ("b", "Where?", CONTEXT, [("Lindholm", 19)], "one"),
        ("c", "Who?", CONTEXT, [], "two"),
        ("d", "When?", CONTEXT, [], "two"),
    ]
)


def test_metrics_worked_by_hand():
    # a is answered "harbour of" (F1 of 2/3 for the gold "harbour"), b "Lindholm", c "old", d "".
    scores = score_texts(
        CORPUS, ["harbour of", "Lindholm", "old", ""], np.array([-1.0, 0.5, -2.0, 3.0])
    )
    metrics = corpus_metrics(scores, CORPUS.groups())
    assert metrics == pytest.approx(
        {
            # At 0, b is not answered; c is, wrongly.
            "exact": 25.0,
            "f1": 100 * (2 / 3 + 0 + 0 + 1) / 4,
            "total": 4,
            "HasAns_exact": 0.0,
            "HasAns_f1": 100 / 3,
            "HasAns_total": 2,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
            # By margin: c (loses 1), a (wins 0 or 2/3), b (wins 1), d (wins 0).
            "best_exact": 50.0,
            "best_exact_thresh": -3.0,  # nothing answered is as good as all, and comes first
            "best_f1": 100 * (2 / 3 + 1 + 0 + 1) / 4,
            "best_f1_thresh": 0.5,
            # Article one fits 0.5, at which two gets 0 + 1; two fits -3, at which one gets 0.
            "crossfit_f1": 25.0,
            "HasAns_f1_no_null": 100 * (2 / 3 + 1) / 2,
        }
    )
    assert isinstance(metrics["total"], int)
    assert "crossfit_f1" not in corpus_metrics(scores)


def test_groups_of_questions_that_are_not_there_have_no_metrics():
    alone = corpus_of([("a", "What?", CONTEXT, [("Lindholm", 19)], "one")])
    metrics = corpus_metrics(score_texts(alone, ["Lindholm"], np.zeros(1)), alone.groups())
    assert not [name for name in metrics if name.startswith("NoAns")]
    assert "crossfit_f1" not in metrics
    assert metrics["exact"] == metrics["best_f1"] == metrics["HasAns_f1_no_null"] == 100.0
    alone = corpus_of([("a", "What?", CONTEXT, [], "one")])
    metrics = corpus_metrics(score_texts(alone, ["Lindholm"], np.zeros(1)))
    assert not [name for name in metrics if name.startswith("HasAns")]
    assert (metrics["f1"], metrics["best_f1"], metrics["best_f1_thresh"]) == (0.0, 100.0, -1.0)


def test_predictions_are_scored_by_their_texts():
    predictions = Predictions(
        np.array([8, 19, 0, 0]), np.array([15, 27, 3, 0]), np.zeros(4), np.array([-1.0, 1, 0, 2])
    )
    scores = score_predictions(CORPUS, predictions)
    assert scores.span_exact.tolist() == [1, 1, 1, 1]  # "The" normalises to nothing
    assert scores.null_margin.tolist() == [-1, 1, 0, 2]


@pytest.mark.parametrize(
    ("texts", "margins", "message"),
    [
        (["x"], np.zeros(4), "4 questions, but 1 texts"),
        (["x"] * 4, np.zeros(3), r"margins of shape \(3,\)"),
        (["x"] * 4, np.array([0, 0, np.nan, 0]), "not a finite number"),
    ],
)
def test_columns_that_do_not_fit(texts, margins, message):
    with pytest.raises(ValueError, match=message):
        score_texts(CORPUS, texts, margins)
    with pytest.raises(ValueError, match="no question"):
        best_threshold(np.zeros(0), np.zeros(0), np.zeros(0))


# ---------------------------------------------------------------------------- threshold


@st.composite
def scored(draw, max_size=12):
    """(span, null, margin) of some questions, most of them tied."""
    n = draw(st.integers(1, max_size))
    unit = st.sampled_from([0.0, 0.0, 1 / 3, 0.5, 1.0])
    margin = st.sampled_from([-2.5, -1.0, 0.0, 0.5, 4.0]) | st.floats(-9, 9)

    def column(values):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)))

    return column(unit), column(st.sampled_from([0.0, 1.0])), column(margin)


def slow_threshold(span, null, margin):
    """Every candidate tried, from the one that answers nothing upwards."""
    best, best_score = None, -1.0
    for candidate in [min(margin) - 1.0, *sorted(set(margin.tolist()))]:
        total = sum(
            s if m <= candidate else n
            for s, n, m in zip(span.tolist(), null.tolist(), margin.tolist(), strict=True)
        )
        if total > best_score + 1e-9:
            best, best_score = candidate, total
    return 100 * best_score / len(span), best


@settings(max_examples=400, deadline=None)
@given(scored())
def test_the_best_threshold_is_that_of_trying_all(columns):
    score, threshold = best_threshold(*columns)
    expected = slow_threshold(*columns)
    assert threshold == expected[1]
    assert score == pytest.approx(expected[0])
    scores = QuestionScores(
        columns[0], columns[0], columns[1], columns[1], columns[1] < 1, columns[2]
    )
    assert score == pytest.approx(100 * scores.at(threshold)[1].mean())


def official_best(span, null, margin):
    """The sweep of the official script, question by question (without ties)."""
    current = best = sum(null)
    threshold = None
    for i in np.argsort(margin, kind="stable"):
        current += span[i] - null[i]
        if current > best + 1e-9:
            best, threshold = current, margin[i]
    return 100 * best / len(span), threshold


@settings(max_examples=200, deadline=None)
@given(scored())
def test_the_best_threshold_is_the_official_one(columns):
    span, null, _ = columns
    margin = np.random.default_rng(len(span)).permutation(len(span)).astype(float)
    score, threshold = best_threshold(span, null, margin)
    expected, at = official_best(span, null, margin)
    assert score == pytest.approx(expected)
    assert threshold == (-1.0 if at is None else at)


def test_questions_of_one_margin_go_together():
    """The official script, in this order, would answer the first and not the second."""
    score, threshold = best_threshold(
        np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([2.0, 2.0])
    )
    assert (score, threshold) == (50.0, 1.0)


# ---------------------------------------------------------------------------- cross-fitting


def slow_crossfit(scores, groups):
    """Largest groups first, each to the half that has fewer questions."""
    import hashlib

    sizes = {g: groups.count(g) for g in groups}
    halves = ([], [])
    for g in sorted(sizes, key=lambda g: (-sizes[g], hashlib.sha256(str(g).encode()).hexdigest())):
        fewer = halves[0] if len(halves[0]) <= len(halves[1]) else halves[1]
        fewer += [i for i, other in enumerate(groups) if other == g]
    if not halves[1]:
        return None
    span, null, margin = scores.span_f1, scores.null_f1, scores.null_margin
    total = 0.0
    for fitted, scored_half in (halves, halves[::-1]):
        _, threshold = slow_threshold(span[fitted], null[fitted], margin[fitted])
        total += sum(span[i] if margin[i] <= threshold else null[i] for i in scored_half)
    return 100 * total / len(groups)


@settings(max_examples=200, deadline=None)
@given(scored(), st.data())
def test_crossfit_is_that_of_the_reference(columns, data):
    span, null, margin = columns
    group = st.integers(0, 4)
    groups = data.draw(st.lists(group, min_size=len(span), max_size=len(span)))
    scores = QuestionScores(span, span, null, null, null < 1, margin)
    ours, expected = crossfit(scores, np.array(groups)), slow_crossfit(scores, groups)
    assert (ours is None) == (len(set(groups)) < 2) == (expected is None)
    if ours is not None:
        assert ours == pytest.approx(expected)
        order = np.array(data.draw(st.permutations(range(len(groups)))))
        shuffled = QuestionScores(*(column[order] for column in vars(scores).values()))
        assert crossfit(shuffled, np.array(groups)[order]) == pytest.approx(ours)


def test_a_threshold_that_only_fits_its_own_article_is_worth_less():
    # Article 0 wants all answered, article 1 nothing: fitted on the other, both are wrong.
    scores = QuestionScores(
        *(np.array([1.0, 1, 0, 0]),) * 2,
        *(np.array([0.0, 0, 1, 1]),) * 2,
        np.array([True, True, False, False]),
        np.array([1.0, 2, 1, 2]),
    )
    assert crossfit(scores, np.array([0, 0, 1, 1])) == 0.0
    assert best_threshold(scores.span_f1, scores.null_f1, scores.null_margin)[0] == 50.0
