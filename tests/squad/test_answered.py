"""What is kept of a checkpoint's answers is what it answered."""

import io

import numpy as np
import pytest
from squad_helpers import word_corpus

from qa_hpo.squad.answered import Answered
from qa_hpo.squad.scoring import corpus_metrics, score_texts
from qa_hpo.squad.spans import Predictions

CORPUS = word_corpus(60)


def predictions() -> Predictions:
    """Some right answers, some wrong ones, margins of either sign."""
    rng = np.random.default_rng(3)
    start, end = [], []
    for i, golds in enumerate(CORPUS.answers):
        context = CORPUS.context_of(i)
        if golds and rng.random() < 0.6:
            text, at = golds[0]
            start.append(at)
            end.append(at + len(text))
        else:
            start.append(int(rng.integers(0, len(context))))
            end.append(min(len(context), start[-1] + 12))
    size = len(CORPUS)
    return Predictions(np.array(start), np.array(end), rng.normal(size=size), rng.normal(size=size))


def test_the_scores_are_those_of_the_metrics():
    made = predictions()
    answered = Answered.of(CORPUS, made)
    metrics = corpus_metrics(score_texts(CORPUS, made.texts(CORPUS), made.null_margin))
    assert answered.threshold == metrics["best_f1_thresh"]
    assert 100 * answered.f1.mean() == pytest.approx(metrics["best_f1"], abs=1e-12)
    # Some are answered and some are not, else this says little.
    texts = answered.texts(CORPUS)
    spans = made.texts(CORPUS)
    is_null = made.null_margin > answered.threshold
    assert 0 < is_null.sum() < len(CORPUS)
    assert texts == ["" if null else text for null, text in zip(is_null, spans, strict=True)]
    exact = [
        text in [gold for gold, _ in golds] if golds else text == ""
        for text, golds in zip(texts, CORPUS.answers, strict=True)
    ]
    assert np.mean(answered.scores.at(answered.threshold)[0]) >= np.mean(exact)


def test_kept_and_read_again_it_is_the_same():
    answered = Answered.of(CORPUS, predictions())
    content = answered.to_bytes()
    again = Answered.from_bytes(content)
    for name in ("char_start", "char_end", "groups"):
        assert np.array_equal(getattr(again, name), getattr(answered, name))
    for name in vars(answered.scores):
        assert np.array_equal(getattr(again.scores, name), getattr(answered.scores, name)), name
    assert again.threshold == answered.threshold
    assert again.to_bytes() == content, "the same answers are the same bytes"


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut off"])
def test_what_is_damaged_is_said_to_be(content: bytes):
    with pytest.raises(ValueError, match=r"holds no answers|pickle|magic"):
        Answered.from_bytes(content)


def test_pickles_are_not_read():
    file = io.BytesIO()
    np.savez(file, char_start=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"allow_pickle|holds no answers"):
        Answered.from_bytes(file.getvalue())


def test_other_questions_are_refused():
    answered = Answered.of(CORPUS, predictions())
    with pytest.raises(ValueError, match="60 answers, but 20 questions"):
        answered.texts(word_corpus(20))
