"""SQuAD-format questions in columns, checked, with a fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qa_hpo.errors import CorpusError
from qa_hpo.squad.readers import RawQuestion, describe, read_source

__all__ = ["Answer", "Answers", "Corpus", "Skip", "load_corpus"]

Answer = tuple[str, int]
"""A gold answer: its text and its offset in the context, in Python characters."""
Answers = tuple[Answer, ...]
"""The gold answers of one question; none where it is unanswerable."""


@dataclass(frozen=True)
class Skip:
    """A question that was left out.

    Attributes:
        id: the question's id, or its place in the source where it has no usable id.
        reason: what is wrong with it, in a few words.
    """

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """Questions in columns; contexts and titles stored once, in the order of their first use.

    Attributes:
        ids: (questions,) unique ids.
        questions: (questions,) as they stand in the source.
        contexts: (contexts,) distinct contexts.
        context_index: (questions,) the question's context.
        titles: (articles,) distinct titles; "" where the source has none.
        title_index: (questions,) the question's article.
        answers: (questions,) gold answers as (text, offset in Python characters); () is
            unanswerable.
        source: the path or hub id, as it was given.
        skipped: the questions left out, in order.
    """

    ids: list[str]
    questions: list[str]
    contexts: list[str]
    context_index: NDArray[np.int64]
    titles: list[str]
    title_index: NDArray[np.int64]
    answers: list[Answers]
    source: str
    skipped: tuple[Skip, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Corpus({self.source!r}, {len(self)} questions, {len(self.contexts)} contexts, "
            f"{len(self.titles)} articles, {len(self.skipped)} skipped)"
        )

    def context_of(self, i: int) -> str:
        """The context of question i."""
        return self.contexts[int(self.context_index[i])]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of ids, questions, contexts, titles and answers, in order.

        The same questions give the same fingerprint whatever kind of file they came from.
        """
        columns = [self.ids, self.questions, self.contexts, self.titles, self.answers]
        digest = hashlib.sha256(b"qa_hpo corpus 1\n")
        digest.update(json.dumps(columns, separators=(",", ":")).encode("ascii"))
        for index in (self.context_index, self.title_index):
            digest.update(index.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def has_unanswerable(self) -> bool:
        """Whether any question has no answer in its context."""
        return not all(self.answers)

    def take(self, n: int, seed: int) -> Corpus:
        """A random subset of n questions in their original order; all of them if n >= len.

        Raises:
            CorpusError: if n is below 1.
        """
        if n < 1:
            raise CorpusError(f"{self.source}: a limit of {n} questions: expected at least 1")
        if n >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False))
        contexts, context_index = _used(self.contexts, self.context_index[chosen])
        titles, title_index = _used(self.titles, self.title_index[chosen])
        return replace(
            self,
            ids=[self.ids[i] for i in chosen],
            questions=[self.questions[i] for i in chosen],
            contexts=contexts,
            context_index=context_index,
            titles=titles,
            title_index=title_index,
            answers=[self.answers[i] for i in chosen],
        )

    def groups(self) -> NDArray[np.int64]:
        """(questions,) the group of each question for cross-fitting.

        The article; where there are fewer than two articles, the context.
        """
        return self.title_index if len(self.titles) >= 2 else self.context_index


def load_corpus(
    source: str | Path,
    split: Literal["train", "validation"],
    *,
    limit: int | None = None,
    seed: int = 0,
    commit: str | None = None,
) -> Corpus:
    """Load and check questions.

    Args:
        source: an existing path (SQuAD-format .json or .json.gz; .jsonl or .parquet with the
            columns id, question, context, answers and optionally title; a folder written by
            save_to_disk), or a hub id ("name" or "org/name", with an optional ":config").
        split: the split to take from a source that has several.
        limit: a random subset of so many questions; None takes all.
        seed: chooses the subset.
        commit: that of a hub id's repository which is meant; None is the newest.

    Returns:
        The usable questions. Those that are not, are listed in `skipped` with the reason.

    Raises:
        CorpusError: if the source cannot be read, is laid out otherwise, repeats an id, or has
            no usable question.
        WorkError: if the hub fails.
    """
    corpus = _assemble(str(source), read_source(str(source), split, commit))
    return corpus if limit is None else corpus.take(limit, seed)


# ---------------------------------------------------------------------------- assembly


def _assemble(source: str, raw_questions: Iterable[RawQuestion]) -> Corpus:
    ids: list[str] = []
    questions: list[str] = []
    answers: list[Answers] = []
    contexts: dict[str, int] = {}
    titles: dict[str, int] = {}
    context_index: list[int] = []
    title_index: list[int] = []
    skipped: list[Skip] = []
    seen: Counter[str] = Counter()
    for raw in raw_questions:
        name = raw.fields.get("id")
        if isinstance(name, str) and name:
            seen[name] += 1
        else:
            name = raw.place
        try:
            question = _check(raw.fields)
        except _DefectError as defect:
            skipped.append(Skip(name, str(defect)))
            continue
        ids.append(name)
        questions.append(question.question)
        answers.append(question.answers)
        context_index.append(contexts.setdefault(question.context, len(contexts)))
        title_index.append(titles.setdefault(question.title, len(titles)))
    _refuse_repeated_ids(source, seen)
    if not ids:
        first = f"; the first: {skipped[0].id}: {skipped[0].reason}" if skipped else ""
        raise CorpusError(f"{source}: no usable question ({len(skipped)} left out{first})")
    return Corpus(
        ids=ids,
        questions=questions,
        contexts=list(contexts),
        context_index=np.array(context_index, dtype=np.int64),
        titles=list(titles),
        title_index=np.array(title_index, dtype=np.int64),
        answers=answers,
        source=source,
        skipped=tuple(skipped),
    )


def _used(values: list[str], index: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """The values that an index uses, in the order of first use, and the index into them."""
    used, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    order = np.argsort(first)  # position in the new list -> position in `used`
    return [values[used[k]] for k in order], np.argsort(order)[inverse]


def _refuse_repeated_ids(source: str, seen: Counter[str]) -> None:
    repeated = [(name, count) for name, count in seen.most_common(3) if count > 1]
    if repeated:
        total = sum(count > 1 for count in seen.values())
        examples = ", ".join(f"{name!r} {count} times" for name, count in repeated)
        raise CorpusError(
            f"{source}: {total} question ids stand more than once ({examples}"
            f"{', ...' if total > len(repeated) else ''}); each question needs its own id"
        )


# ---------------------------------------------------------------------------- one question


class _DefectError(Exception):
    """What is wrong with one question, so that it is left out."""


@dataclass(frozen=True, slots=True)
class _Question:
    question: str
    context: str
    title: str
    answers: Answers


def _check(fields: Mapping[str, Any]) -> _Question:
    """One question from its raw fields.

    Raises:
        _DefectError: if it cannot be used.
    """
    _text(fields, "id")
    question = _text(fields, "question")
    context = _text(fields, "context")
    title = "" if fields.get("title") is None else _text(fields, "title", may_be_empty=True)
    return _Question(question, context, title, _answers(fields, context))


def _text(fields: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    if name not in fields:
        raise _DefectError(f"no {name}")
    value = fields[name]
    if not isinstance(value, str):
        raise _DefectError(f"{name} is {describe(value)}, expected a string")
    if not may_be_empty and not value.strip():
        raise _DefectError(f"empty {name}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write as \ud83d
        raise _DefectError(f"{name} holds half of a surrogate pair") from None
    return value


def _answers(fields: Mapping[str, Any], context: str) -> Answers:
    """The gold answers, each checked to stand at its offset in the context."""
    impossible = fields.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise _DefectError(f"is_impossible is {describe(impossible)}, expected true or false")
    if impossible:
        return ()  # what answers there may be are "plausible" ones, which do not count
    if fields.get("answers") is None:
        raise _DefectError("no answers")
    pairs = _answer_pairs(fields["answers"])
    if impossible is False and not pairs:
        raise _DefectError("is_impossible is false, but there is no answer")
    return tuple(_answer(text, offset, context) for text, offset in pairs)


def _answer_pairs(answers: object) -> list[tuple[object, object]]:
    """(text, offset) pairs from either layout: a list of objects, or an object of two lists."""
    if isinstance(answers, Mapping):
        texts, offsets = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(offsets, list):
            raise _DefectError("answers need two lists, text and answer_start")
        if len(texts) != len(offsets):
            raise _DefectError(f"{len(texts)} answer texts, but {len(offsets)} offsets")
        return list(zip(texts, offsets, strict=True))
    if not isinstance(answers, list):
        raise _DefectError(f"answers is {describe(answers)}, expected a list")
    for answer in answers:
        if not isinstance(answer, Mapping) or not {"text", "answer_start"} <= answer.keys():
            raise _DefectError("an answer lacks text or answer_start")
    return [(answer["text"], answer["answer_start"]) for answer in answers]


def _answer(text: object, offset: object, context: str) -> Answer:
    if not isinstance(text, str):
        raise _DefectError(f"an answer's text is {describe(text)}, expected a string")
    if not isinstance(offset, int) or isinstance(offset, bool):
        raise _DefectError(f"an answer's offset is {describe(offset)}, expected a whole number")
    if not text.strip():
        raise _DefectError("an answer's text is empty")
    if offset < 0:
        raise _DefectError(f"an answer's offset is negative ({offset})")
    if context[offset : offset + len(text)] != text:
        raise _DefectError(
            f"an answer is not at its offset {offset} ({_whereabouts(text, context)})"
        )
    return text, offset


def _whereabouts(text: str, context: str) -> str:
    count = context.count(text)
    if count == 1:
        return f"it stands once in the context, at {context.index(text)}"
    return f"it stands {count} times in the context" if count else "it is not in the context"
