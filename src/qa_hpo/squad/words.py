"""Texts tokenised word by word, where a tokenizer allows it: each distinct word only once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count, islice, pairwise, repeat
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.tokens import PlacedTokens, Tokens, encode_and_place, encode_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoder", "is_word_by_word"]

SPACE = " "
STRING = 1024  # characters of new words in one text, so that all the backend's threads have some
Ints = NDArray[np.int64]

# Parts of a tokenizer that never look beyond a space, by the names of their classes.
NORMALIZERS = {"NoneType", "BertNormalizer"}
PRE_TOKENIZERS = {"BertPreTokenizer"}
MODELS = {"WordPiece"}
POST_PROCESSORS = {"NoneType", "BertProcessing", "TemplateProcessing"}


def is_word_by_word(backend: Tokenizer) -> bool:
    """Whether the tokens of a text are those of its words, words being what spaces part.

    So it is with tokenizers like BERT's. Their normaliser drops or changes characters one by one;
    only the order of combining characters depends on what is beside them, and none is moved across
    a space. The text is then cut at white space and punctuation, and each piece looked at alone.

    Added tokens are found before that, in the text as it stands: none may hold a space, or look at
    or take what is beside it. Nor may any be looked for in the normalised text, since the tokenizer
    does not tell what such a token was itself normalised to.
    """
    parts = (
        (backend.normalizer, NORMALIZERS),
        (backend.pre_tokenizer, PRE_TOKENIZERS),
        (backend.model, MODELS),
        (backend.post_processor, POST_PROCESSORS),
    )
    if any(type(part).__name__ not in names for part, names in parts):
        return False
    return not any(
        SPACE in token.content
        or token.normalized
        or token.single_word
        or token.lstrip
        or token.rstrip
        for token in backend.get_added_tokens_decoder().values()
    )


class TextEncoder:
    """Tokenises texts as `encode_texts` and `encode_and_place` do, and mostly sooner.

    Where the tokenizer takes texts word by word (see `is_word_by_word`), each distinct word is
    tokenised once for all texts that this encoder is ever given, and numpy puts the texts together.
    Any other tokenizer is given whole texts.

    Not safe to share between threads. The tokenizer must stay as it is meanwhile.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._by_word = is_word_by_word(tokenizer.backend_tokenizer)
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)  # known words, in turn
        # Of the known words: characters, (words,), and tokens, each word a text.
        self._sizes = np.zeros(0, dtype=np.int64)
        none = np.zeros(0, dtype=np.int32)
        self._words = PlacedTokens(none, np.zeros(1, dtype=np.int64), none, none)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts by themselves, without special tokens."""
        found = self._find(texts)
        if found is None:
            return encode_texts(self._tokenizer, texts)
        words, offsets = found
        source, before = self._source(words)
        return Tokens(self._words.ids[source], before[offsets])

    def encode_and_place(self, texts: Sequence[str]) -> PlacedTokens:
        """Tokenise texts as `encode` does, and find each token's characters."""
        found = self._find(texts)
        if found is None:
            return encode_and_place(self._tokenizer, texts)
        words, offsets = found
        source, before = self._source(words)
        places = _before(self._sizes[words] + 1)  # each word has a space after it
        places = places[:-1] - np.repeat(places[offsets[:-1]], np.diff(offsets))
        shift = np.repeat(places.astype(np.int32), np.diff(before))
        return PlacedTokens(
            self._words.ids[source],
            before[offsets],
            self._words.char_start[source] + shift,
            self._words.char_end[source] + shift,
        )

    def _find(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], Ints] | None:
        """The texts' words; None if the texts must be tokenised whole.

        Returns:
            (words, offsets): numbers of known words, one text after another, and (texts + 1,)
            where in them each text begins.
        """
        if not self._by_word:
            return None
        spaces = map(str.count, texts, repeat(SPACE))
        offsets = _before(np.fromiter(spaces, dtype=np.int64, count=len(texts)) + 1)
        # One word at a time, of which only the new ones are kept.
        words = chain.from_iterable(map(str.split, texts, repeat(SPACE)))
        numbers = map(self._numbers.__getitem__, words)
        found = np.fromiter(numbers, dtype=np.int32, count=int(offsets[-1]))
        self._by_word = self._learn(list(islice(self._numbers, len(self._sizes), None)))
        return (found, offsets) if self._by_word else None

    def _learn(self, words: list[str]) -> bool:
        """Tokenise new words; False if the tokenizer does not keep to them after all."""
        if not words:
            return True
        sizes = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        places = _before(sizes + 1)  # in a text of all of them, which is cut into strings
        firsts = np.flatnonzero(np.diff(places[:-1] // STRING, prepend=-1))  # of each string
        borders = pairwise([*firsts.tolist(), len(words)])
        strings = [SPACE.join(words[first:last]) for first, last in borders]
        tokens = encode_and_place(self._tokenizer, strings)
        shift = np.repeat(places[firsts], tokens.lengths)
        start, end = tokens.char_start + shift, tokens.char_end + shift
        word = np.searchsorted(places, start, side="right") - 1
        if (np.diff(word) < 0).any() or (end >= places[word + 1]).any():
            return False
        old = self._words
        counts = np.bincount(word, minlength=len(words))
        self._sizes = np.append(self._sizes, sizes)
        self._words = PlacedTokens(
            np.append(old.ids, tokens.ids),
            np.append(old.offsets, old.offsets[-1] + np.cumsum(counts)),
            np.append(old.char_start, (start - places[word]).astype(np.int32)),
            np.append(old.char_end, (end - places[word]).astype(np.int32)),
        )
        return True

    def _source(self, words: NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Where the tokens of some words, one after another, stand among those of known words.

        Returns:
            (source, before): (tokens,), and (words + 1,) the number of tokens before each word.
        """
        counts = self._words.lengths[words]
        before = _before(counts)
        source = np.repeat(self._words.offsets[words] - before[:-1], counts)
        source += np.arange(len(source))
        return source, before


def _before(sizes: Ints) -> Ints:
    """(n + 1,) the sum of the sizes before each one, and of all."""
    sums = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=sums[1:])
    return sums
