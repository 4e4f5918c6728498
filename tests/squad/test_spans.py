"""Best spans and null margins, against a slow and obvious reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_helpers import TEXTS, corpus_of

from qa_hpo.squad.spans import Predictions, SpanAccumulator


def window(question, starts, ends, context, cls=0, first_char=0):
    """One unpadded window: its context tokens are `context`, each two characters long."""
    return {
        "question": question,
        "cls": cls,
        "starts": np.array(starts, dtype=np.float32),
        "ends": np.array(ends, dtype=np.float32),
        "char_start": [first_char + 2 * k if k in context else -1 for k in range(len(starts))],
        "char_end": [first_char + 2 * k + 2 if k in context else -1 for k in range(len(starts))],
    }


def feed(accumulator, windows, numbers):
    """One padded batch of the windows with these numbers; the padding has the highest logits."""
    width = max(len(windows[w]["starts"]) for w in numbers) + 1

    def padded(name, fill):
        return np.array([[*windows[w][name], *[fill] * width][:width] for w in numbers])

    accumulator.update(
        window_index=np.array(numbers),
        question_index=np.array([windows[w]["question"] for w in numbers], dtype=np.int32),
        cls_index=np.array([windows[w]["cls"] for w in numbers], dtype=np.int16),
        start_logits=padded("starts", 99.0).astype(np.float32),
        end_logits=padded("ends", 99.0).astype(np.float32),
        char_start=padded("char_start", -1).astype(np.int32),
        char_end=padded("char_end", -1).astype(np.int32),
    )


def best_span(w, n_best, max_answer_length):
    """(score, start, end) of one window, by trying all pairs."""
    context = [k for k, c in enumerate(w["char_start"]) if c >= 0]
    starts, ends = w["starts"].tolist(), w["ends"].tolist()
    top_starts = sorted(context, key=lambda k: (-starts[k], k))[:n_best]
    top_ends = sorted(context, key=lambda k: (-ends[k], k))[:n_best]
    pairs = [
        (-(starts[s] + ends[e]), s, e)
        for s in top_starts
        for e in top_ends
        if s <= e and e - s + 1 <= max_answer_length
    ] or [(-(starts[k] + ends[k]), k, k) for k in context]
    return min(pairs) if pairs else None


def reference(questions, windows, n_best, max_answer_length):
    rows = []
    for q in range(questions):
        own = [(number, w) for number, w in enumerate(windows) if w["question"] == q]
        null = min(float(w["starts"][w["cls"]]) + float(w["ends"][w["cls"]]) for _, w in own)
        best = min(
            (span[0], number, span[1], span[2])
            for number, w in own
            if (span := best_span(w, n_best, max_answer_length)) is not None
        )
        w = windows[best[1]]
        rows.append((w["char_start"][best[2]], w["char_end"][best[3]], -best[0], null))
    return rows


def assert_same(predictions: Predictions, rows):
    assert predictions.char_start.tolist() == [row[0] for row in rows]
    assert predictions.char_end.tolist() == [row[1] for row in rows]
    assert predictions.span_score.tolist() == [row[2] for row in rows]
    assert predictions.null_score.tolist() == [row[3] for row in rows]
    np.testing.assert_allclose(
        predictions.null_margin, [row[3] - row[2] for row in rows], rtol=0, atol=0.5001e-4
    )


@st.composite
def window_sets(draw):
    # Few distinct values, so that ties are the rule.
    logits = st.sampled_from([-1.5, 0.0, 0.25, 1.0]) | st.floats(-4, 4, width=32)
    questions = draw(st.integers(1, 3))
    owners = [*range(questions), *draw(st.lists(st.integers(0, questions - 1), max_size=4))]
    windows = []
    for owner in owners:
        before, tokens, after = (draw(st.integers(*r)) for r in ((1, 2), (1, 7), (0, 2)))
        length = before + tokens + after
        row = st.lists(logits, min_size=length, max_size=length)
        context = range(before, before + tokens)
        cls = draw(st.sampled_from([0, length - 1])) if after else 0
        first = draw(st.integers(0, 9))
        windows.append(window(owner, draw(row), draw(row), context, cls, first))
    order = draw(st.permutations(range(len(windows))))
    cuts = sorted(draw(st.sets(st.integers(1, len(windows)), max_size=3)) | {len(windows)})
    batches = [order[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    return questions, windows, [batch for batch in batches if batch]


@settings(max_examples=300, deadline=None)
@given(window_sets(), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 2, 1024]))
def test_spans_are_those_of_the_reference(case, n_best, max_answer_length, chunk):
    questions, windows, batches = case
    accumulator = SpanAccumulator(questions, n_best=n_best, max_answer_length=max_answer_length)
    accumulator._chunk = chunk
    for batch in batches:
        feed(accumulator, windows, batch)
    assert_same(accumulator.finish(), reference(questions, windows, n_best, max_answer_length))


def test_large_batch_against_the_reference():
    rng = np.random.default_rng(0)
    windows = [
        window(i % 40, rng.normal(size=70), rng.normal(size=70), range(12, 69)) for i in range(90)
    ]
    accumulator = SpanAccumulator(40)
    feed(accumulator, windows, list(range(90)))
    assert_same(accumulator.finish(), reference(40, windows, 20, 30))


def test_worked_by_hand():
    """Token 1..4 are the context, two characters each from character 2 on."""
    accumulator = SpanAccumulator(1)
    windows = [window(0, [1, 0, 3, 0, 0.5], [2, 5, 0, 1, 4], range(1, 5))]
    feed(accumulator, windows, [0])
    predictions = accumulator.finish()
    # 2..4 scores 3 + 4; 1..1 only 0 + 5; 2..1, with 3 + 5, is reversed.
    assert (predictions.char_start[0], predictions.char_end[0]) == (4, 10)
    assert predictions.span_score[0] == 7.0
    assert predictions.null_score[0] == 3.0
    assert predictions.null_margin[0] == -4.0


def test_the_null_score_is_the_lowest_over_windows():
    windows = [
        window(0, [5, 0], [5, 0], [1]),
        window(0, [1, 2], [1, 2], [1]),
        window(0, [7, 1], [7, 1], [1]),
    ]
    accumulator = SpanAccumulator(1)
    feed(accumulator, windows, [0, 1, 2])
    assert accumulator.finish().null_margin.tolist() == [2.0 - 4.0]


def test_no_pair_but_a_single_token():
    """With n_best 1 the best start stands after the best end."""
    accumulator = SpanAccumulator(1, n_best=1)
    feed(accumulator, [window(0, [0, 1, 9], [0, 4, 0], [1, 2])], [0])
    predictions = accumulator.finish()
    assert (predictions.char_start[0], predictions.char_end[0]) == (4, 6)
    assert predictions.span_score[0] == 9.0


def test_no_context_token_is_the_empty_answer():
    accumulator = SpanAccumulator(2)
    windows = [window(0, [1, 0], [1, 0], []), window(1, [0, 2], [0, 2], [1])]
    feed(accumulator, windows, [1, 0])
    predictions = accumulator.finish()
    assert (predictions.char_start[0], predictions.char_end[0]) == (0, 0)
    assert np.isfinite(predictions.null_margin).all()
    assert predictions.null_margin[0] == 0.0


def test_margins_do_not_feel_the_noise_of_float32():
    def margin(noise):
        accumulator = SpanAccumulator(1)
        w = window(0, [1.23456789 + noise, 0.5], [0.5, 0.75], [1])
        feed(accumulator, [w], [0])
        return accumulator.finish().null_margin[0]

    assert margin(0.0) == margin(2e-7) == 0.4846
    zero = Predictions(np.array([0]), np.array([1]), np.array([1e-6]), np.array([0.0]))
    assert not np.signbit(zero.null_margin[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["starts", "ends"])
def test_logits_that_are_no_numbers(bad, place, kind):
    w = window(0, [1, 0, 1], [1, 0, 1], [1])
    w[kind][place] = bad
    with pytest.raises(ValueError, match="not a finite number"):
        feed(SpanAccumulator(1), [w], [0])


def test_logits_outside_context_and_cls_do_not_matter():
    w = window(0, [1, 0, np.nan], [1, 0, np.inf], [1])
    accumulator = SpanAccumulator(1)
    feed(accumulator, [w], [0])
    assert accumulator.finish().null_margin.tolist() == [2.0]


def test_a_question_without_a_window():
    accumulator = SpanAccumulator(3)
    feed(accumulator, [window(1, [0, 1], [0, 1], [1])], [0])
    with pytest.raises(
        ValueError, match="2 of 3 questions have had no window, the first is number 0"
    ):
        accumulator.finish()


@pytest.mark.parametrize("options", [{"n_best": 0}, {"max_answer_length": 0}])
def test_limits_below_one(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        SpanAccumulator(1, **options)


def test_texts_are_substrings():
    corpus = corpus_of([("a", "which?", TEXTS[4], [], ""), ("b", "which?", "🌊é 海", [], "")])
    predictions = Predictions(np.array([2, 0]), np.array([5, 2]), np.zeros(2), np.zeros(2))
    assert len(predictions) == 2
    assert predictions.texts(corpus) == [TEXTS[4][2:5], "🌊é"]
