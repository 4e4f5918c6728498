"""What two answers are compared by: the words of SQuAD, or characters where words have no spaces.

Words are those of the official SQuAD scripts. In Chinese and Japanese they are of no use: a
sentence is one word, and an answer that has a character too many scores nothing. For such text
there is the segmentation of CMRC 2018 (Cui et al. 2019, "A Span-Extraction Dataset for Chinese
Machine Reading Comprehension"): each Chinese character is a token of its own, and so is each run of
other characters. As in that corpus' evaluation script, F1 is over the longest run of tokens that
both answers have without a gap (its "LCS" is the longest common substring, not the subsequence),
case and punctuation do not count, and articles do.

It differs from the script in what cannot matter to Chinese answers, or is an oversight there: all
Unicode punctuation is dropped, not a list of it; Japanese kana and rare Chinese characters count
one by one too; runs are parted by white space alone, not by an English tokenizer, and white space
between characters does not count in exact match; and two answers of which nothing is left are the
same, as in SQuAD 2.0.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Literal

__all__ = ["AnswerTokens", "answer_f1", "answer_tokens"]

AnswerTokens = Literal["words", "characters"]
"""``words``: the official SQuAD tokens. ``characters``: those of CMRC 2018."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

# Chinese characters with their rare and compatible ones, the marks that repeat or count like them,
# and kana, of full and half width.
_ALONE = (
    "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003ffff\u3005\u3007"
    "\u3041-\u3096\u309d\u309e\u30a1-\u30fa\u30fc-\u30fe\u31f0-\u31ff\uff66-\uff9d"
)
_MIXED = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")


class _WithoutPunctuation(dict[int, int | None]):
    """A table for `str.translate` that drops punctuation of all scripts; it grows as it is used."""

    def __missing__(self, code: int) -> int | None:
        # Of full width, some of what is punctuation in ASCII is a symbol: ＋, ～.
        plain = chr(code - 0xFEE0) if 0xFF01 <= code <= 0xFF5E else chr(code)
        is_mark = unicodedata.category(chr(code)).startswith("P") or plain in string.punctuation
        self[code] = None if is_mark else code
        return self[code]


_ANY_PUNCTUATION = _WithoutPunctuation()


def answer_tokens(text: str, tokens: AnswerTokens = "words") -> tuple[str, ...]:
    """An answer's tokens, normalised; two answers are the same if theirs are."""
    return _character_tokens(text) if tokens == "characters" else _word_tokens(text)


def answer_f1(
    predicted: tuple[str, ...], wanted: tuple[str, ...], tokens: AnswerTokens = "words"
) -> float:
    """F1 of two answers' tokens, in 0..1; where either has none, 1.0 if both have none.

    Of ``words`` as many count as both have, in any order; of ``characters`` the longest run.
    """
    if not predicted or not wanted:
        return float(predicted == wanted)
    if set(predicted).isdisjoint(wanted):  # most pairs that are not the same, and counting is slow
        return 0.0
    if tokens == "characters":
        common = SequenceMatcher(None, predicted, wanted, autojunk=False).find_longest_match().size
    else:
        common = sum((Counter(predicted) & Counter(wanted)).values())
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=1 << 17)  # the same golds are scored again after every epoch
def _word_tokens(text: str) -> tuple[str, ...]:
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@lru_cache(maxsize=1 << 17)
def _character_tokens(text: str) -> tuple[str, ...]:
    return tuple(_MIXED.findall(text.lower().translate(_ANY_PUNCTUATION)))
