"""What a tokenizer does to texts and to pairs of texts, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qa_hpo.errors import WindowError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PairTemplate",
    "PlacedTokens",
    "Tokens",
    "check_tokenizer",
    "encode_and_place",
    "encode_texts",
    "learn_template",
]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that windows cannot be made with.

    Raises:
        WindowError: if it is not a fast one, or has no CLS or no padding token, or does not put
            CLS beside a pair of texts, or leaves one of them out.
    """
    name = f"tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__})"
    if not tokenizer.is_fast:
        raise WindowError(f"{name}: is a slow one; windows need the offsets that fast ones give")
    if tokenizer.cls_token_id is None:
        raise WindowError(f"{name}: has no CLS token, whose logits stand for 'no answer'")
    if tokenizer.pad_token_id is None:
        raise WindowError(f"{name}: has no padding token; set one, as tokenizer.pad_token = ...")
    pair = tokenizer("a", "b", verbose=False)
    if tokenizer.cls_token_id not in pair["input_ids"]:
        raise WindowError(
            f"{name}: puts no {tokenizer.cls_token} beside a question and its context; windows "
            "need a CLS token, whose logits stand for 'no answer'"
        )
    alone = tokenizer("a b", add_special_tokens=False, verbose=False)["input_ids"]
    if alone and not {0, 1} <= set(pair.sequence_ids()):
        raise WindowError(f"{name}: leaves out one of a question and its context")


BATCH = 1024  # texts encoded at once: enough for the tokenizer, and little memory


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of several texts, one text after another, without special tokens.

    Attributes:
        ids: int32 (tokens,).
        offsets: int64 (texts + 1,) text t holds the tokens offsets[t]:offsets[t + 1].
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(texts,) tokens in each text."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class PlacedTokens(Tokens):
    """Tokens, and the characters that they stand for.

    Attributes:
        char_start: int32 (tokens,) the token's first character in its text.
        char_end: int32 (tokens,) one past its last character.
    """

    char_start: NDArray[np.int32]
    char_end: NDArray[np.int32]

    @property
    def in_order(self) -> bool:
        """Whether neither end of the tokens ever moves backwards within a text."""
        inside = np.ones(max(len(self.ids) - 1, 0), dtype=bool)  # pairs of neighbouring tokens
        borders = self.offsets[1:-1] - 1
        inside[borders[(borders >= 0) & (borders < len(inside))]] = False
        steps = np.minimum(np.diff(self.char_start), np.diff(self.char_end))
        return bool((steps[inside] >= 0).all())


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tokens:
    """Tokenise texts by themselves, without special tokens."""
    # Without characters, which the backend then need not follow through its normalisation.
    encode = _backend(tokenizer).encode_batch_fast
    return Tokens(*_joined([e.ids for batch in _batches(texts) for e in encode(batch, **_BARE)]))


def encode_and_place(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> PlacedTokens:
    """Tokenise texts as `encode_texts` does, and find each token's characters."""
    encode = _backend(tokenizer).encode_batch
    rows: list[list[int]] = []
    characters: list[NDArray[np.int32]] = []
    for batch in _batches(texts):
        encodings = encode(batch, **_BARE)
        rows += [e.ids for e in encodings]
        pairs = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        characters.append(np.fromiter(pairs, dtype=np.int32).reshape(-1, 2))
    spans = np.concatenate(characters)  # (tokens, 2)
    return PlacedTokens(*_joined(rows), spans[:, 0].copy(), spans[:, 1].copy())


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(texts), BATCH):
        yield list(texts[first : first + BATCH])


_BARE = {"add_special_tokens": False}


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer proper, which takes whole texts; the call around it makes lists of lists.

    Each such call sets anew what is set here.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _joined(rows: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(ids of all texts, offsets of the texts), as `Tokens` has them."""
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32)
    return ids, np.cumsum([0, *map(len, rows)], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PairTemplate:
    """The special tokens that a tokenizer puts around a pair of texts.

    Attributes:
        specials: ids before, between and after the two texts.
        special_types: their token types.
        text_types: token types of the first and of the second text.
        cls: (which of the three specials, position in it) of the CLS token.
    """

    specials: tuple[list[int], list[int], list[int]]
    special_types: tuple[list[int], list[int], list[int]]
    text_types: tuple[int, int]
    cls: tuple[int, int]

    @property
    def length(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.specials))


def learn_template(tokenizer: PreTrainedTokenizerBase) -> PairTemplate | None:
    """The template, read off an encoded pair; None if a pair is not laid out so simply."""
    probe = tokenizer("a", "b", truncation=False, padding=False, verbose=False)
    encoding = probe.encodings[0]
    texts = [0 if text is None else text + 1 for text in encoding.sequence_ids]
    first, second = (
        [i for i, t in enumerate(texts) if t == 1],
        [i for i, t in enumerate(texts) if t == 2],
    )
    if not first or not second or first[-1] > second[0]:
        return None
    parts = (
        slice(0, first[0]),
        slice(first[-1] + 1, second[0]),
        slice(second[-1] + 1, len(texts)),
    )
    if any(text for part in parts for text in texts[part]):
        return None
    specials = [encoding.ids[part] for part in parts]
    places = [
        (p, part.index(tokenizer.cls_token_id))
        for p, part in enumerate(specials)
        if tokenizer.cls_token_id in part
    ]
    types = encoding.type_ids
    if not places:
        return None
    return PairTemplate(
        specials=(specials[0], specials[1], specials[2]),
        special_types=(types[parts[0]], types[parts[1]], types[parts[2]]),
        text_types=(types[first[0]], types[second[0]]),
        cls=places[0],
    )
