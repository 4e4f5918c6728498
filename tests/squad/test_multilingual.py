"""Text of all scripts through windows: offsets, gold answers, and answers as substrings."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from squad_helpers import TOKENIZERS, corpus_of

from qa_hpo.errors import CorpusError
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.scoring import score_texts
from qa_hpo.squad.spans import Predictions, SpanAccumulator
from qa_hpo.squad.windows import build_windows

PIECES = [
    *("海港", "建于", "一七四二年", "。", "，", "さくら", "サクラ", "서울", "𠮷野家"),
    *("الميناء", "قديم", "جدًا", "؟", "עברית", "\u200fabc\u200e"),
    *("🌊", "👩‍👩‍👧", "👍🏽", "🇩🇪", "❤️", "\U0010fffd", "\ufeff", "\u200b"),
    *("café", unicodedata.normalize("NFD", "café"), "Å", "A\u030a", "ยำ", "हिन्दी", "Việt"),
    *("１２３", "４２", "½", "ﬁn", "İ", "ß", "²", "…"),
    *("the", "tower", "1742", "-", "\u00a0", "\n"),
]

texts = st.lists(
    st.tuples(st.sampled_from(PIECES), st.sampled_from(["", " ", "  "])), min_size=4, max_size=40
)


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest):
    return TOKENIZERS[request.param]()


def context_rows(windows, number):
    """(first, last) token of the context in a window, and where its tokens begin in the arrays."""
    begin, end = windows.offsets[number], windows.offsets[number + 1]
    inside = np.flatnonzero(windows.char_start[begin:end] >= 0)
    return begin, inside


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=texts, data=st.data())
def test_a_gold_answer_is_what_its_label_covers(tokenizer, parts, data):
    """However many windows there are: the label covers the answer, and no token too many."""
    context = "".join(piece + gap for piece, gap in parts)
    chosen = data.draw(st.integers(0, len(parts) - 1))
    begin = sum(len(piece) + len(gap) for piece, gap in parts[:chosen])
    answer = parts[chosen][0]
    if not answer.strip():
        return
    row = ("q", "  海港 where 👍🏽 ?", context, [(answer, begin)], "article")
    corpus = corpus_of([row])
    windows = build_windows(corpus, tokenizer, max_length=96, doc_stride=24)
    covered = np.zeros(len(context), dtype=bool)
    for number in range(len(windows)):
        at, inside = context_rows(windows, number)
        starts, ends = windows.char_start[at + inside], windows.char_end[at + inside]
        assert (starts <= ends).all()
        assert (ends <= len(context)).all()
        for start, end in zip(starts, ends, strict=True):
            covered[start:end] = True
        first, last = (
            int(labels[number]) for labels in (windows.start_positions, windows.end_positions)
        )
        holds = starts[0] <= begin and ends[-1] >= begin + len(answer)
        cls = int(windows.cls_index[number])
        assert ((first, last) == (cls, cls)) == (not holds)
        if not holds:
            continue
        span = slice(windows.char_start[at + first], windows.char_end[at + last])
        assert answer in context[span] or not covered[begin : begin + len(answer)].all()
        # No token at either end of the label is all outside the answer.
        if covered[begin : begin + len(answer)].all():
            assert windows.char_end[at + first] > begin
            assert windows.char_start[at + last] < begin + len(answer)
    # What no token stands for: white space, and what the normaliser drops or strips.
    lost = "".join(c for c, seen in zip(context, covered, strict=True) if not seen)
    assert all(unicodedata.category(c)[0] in "ZCM" for c in lost), ascii(lost)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=texts, seed=st.integers(0, 1000))
def test_an_answer_is_a_substring_of_its_context(tokenizer, parts, seed):
    """Whichever tokens a model likes best."""
    context = "".join(piece + gap for piece, gap in parts) + "塔"
    corpus = corpus_of([("q", "哪里?", context, [], "article")])
    windows = build_windows(corpus, tokenizer, max_length=64, doc_stride=16)
    rng = np.random.default_rng(seed)
    spans = SpanAccumulator(1, n_best=20, max_answer_length=30)
    best = []
    for number in range(len(windows)):
        place = slice(windows.offsets[number], windows.offsets[number + 1])
        starts, ends = windows.char_start[place], windows.char_end[place]
        logits = rng.normal(size=(2, 1, place.stop - place.start)).astype(np.float32)
        spans.update(
            window_index=np.array([number]),
            question_index=np.array([0]),
            cls_index=windows.cls_index[[number]],
            start_logits=logits[0],
            end_logits=logits[1],
            char_start=starts[None],
            char_end=ends[None],
        )
        inside = np.flatnonzero(starts >= 0)
        top = [set(inside[np.argsort(-logits[k, 0, inside])[:20]].tolist()) for k in (0, 1)]
        best += [
            (float(logits[0, 0, s]) + float(logits[1, 0, e]), context[starts[s] : ends[e]].strip())
            for s in top[0]
            for e in top[1]
            if s <= e < s + 30
        ]
    (found,) = spans.finish().texts(corpus)
    assert found in context
    assert found == max(best, key=lambda pair: pair[0])[1]


def test_spans_that_begin_with_a_space_lose_it():
    corpus = corpus_of([("q", "?", "in 上海\u3000\n 塔", [], "article")])
    zeros = np.zeros(1)
    spans = Predictions(np.array([2]), np.array([6]), zeros, zeros)
    assert spans.texts(corpus) == ["上海"]


def written(tmp_path: Path, context: str, answer: str, start: int, ascii_only: bool) -> str:
    qa = {"id": "q", "question": "吗?", "answers": [{"text": answer, "answer_start": start}]}
    data = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [qa]}]}]}
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps(data, ensure_ascii=ascii_only), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_characters_beyond_16_bits_count_as_one(tmp_path, tokenizer, ascii_only):
    """In JSON they may be written as two surrogates; offsets count characters."""
    context = "🌊🌊𠮷野家 是 tower 吗"
    source = written(tmp_path, context, "tower", 8, ascii_only)
    corpus = load_corpus(source, "validation")
    assert corpus.contexts == [context]
    windows = build_windows(corpus, tokenizer, max_length=96, doc_stride=8)
    first, last = int(windows.start_positions[0]), int(windows.end_positions[0])
    assert context[windows.char_start[first] : windows.char_end[last]].strip() == "tower"


def test_offsets_in_16_bit_units_are_told_of(tmp_path):
    context = "🌊🌊𠮷野家 是 tower 吗"
    in_units = len(context[:8].encode("utf-16-le")) // 2
    with pytest.raises(CorpusError, match="no usable question"):
        load_corpus(written(tmp_path, context, "tower", in_units, True), "validation")


def test_half_a_surrogate_pair_is_one_clear_line(tmp_path):
    """JSON can hold one; it is no character, and no tokenizer takes it."""
    source = written(tmp_path, "the \ud83c tower", "tower", 6, True)
    with pytest.raises(CorpusError) as caught:
        load_corpus(source, "validation")
    assert "\n" not in str(caught.value)


def test_composed_and_decomposed_are_other_characters():
    """As in the official script; an answer is the context's own substring, so that it fits."""
    composed = "café"
    decomposed = unicodedata.normalize("NFD", composed)
    for gold, f1 in ((composed, 1.0), (decomposed, 0.0)):
        corpus = corpus_of([("q", "?", f"a {gold}", [(gold, 2)], "t")])
        assert score_texts(corpus, [composed], np.zeros(1)).span_f1.tolist() == [f1]
