"""The baseline: validation as a question-answering notebook does it, in plain Python loops.

Windows come from the tokenizer pair by pair and are padded to max_length; spans are searched
feature by feature; scores follow the official SQuAD 2.0 rules question by question. Two things are
as in ours, so that both give the same answers: the null score of a question is the lowest of its
windows, and the threshold is tuned on null margins (the notebook gives a constant in their place).
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerFast

BATCH = 1000  # what Dataset.map hands over at once by default
Rows = Sequence[Mapping[str, Any]] | Dataset
"""Questions, or windows: a list of dictionaries, or a Dataset."""
Predictions = dict[str, tuple[str, float]]
"""Question id -> the text of its best span, and its null margin in logits."""


# ---------------------------------------------------------------------------- windows


def _encoded(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    doc_stride: int,
) -> BatchEncoding:
    """The windows of some questions as the tokenizer gives them, padded to max_length."""
    encoded: BatchEncoding = tokenizer(
        [question.lstrip() for question in batch["question"]],
        batch["context"],
        truncation="only_second",
        padding="max_length",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return encoded


def tokenise(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    doc_stride: int,
) -> dict[str, list[Any]]:
    """The windows of some questions, in columns; characters are None outside the context."""
    encoded = _encoded(batch, tokenizer, max_length, doc_stride)
    owners = encoded.pop("overflow_to_sample_mapping")
    columns = dict(encoded)
    columns["example_id"] = [batch["id"][owner] for owner in owners]
    columns["offset_mapping"] = [
        [
            span if part == 1 else None
            for span, part in zip(spans, encoded.sequence_ids(window), strict=True)
        ]
        for window, spans in enumerate(encoded["offset_mapping"])
    ]
    return columns


def label(
    batch: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    doc_stride: int,
) -> dict[str, list[Any]]:
    """The windows of some questions as training takes them: with the labels, token by token."""
    encoded = _encoded(batch, tokenizer, max_length, doc_stride)
    owners = encoded.pop("overflow_to_sample_mapping")
    columns = {name: rows for name, rows in encoded.items() if name != "offset_mapping"}
    columns["start_positions"], columns["end_positions"] = [], []
    for window, characters in enumerate(encoded["offset_mapping"]):
        cls = encoded["input_ids"][window].index(tokenizer.cls_token_id)
        first, last = _answer(
            characters, encoded.sequence_ids(window), batch["answers"][owners[window]], cls
        )
        columns["start_positions"].append(first)
        columns["end_positions"].append(last)
    return columns


def _answer(
    characters: list[tuple[int, int]],
    parts: list[int | None],
    answers: Mapping[str, list[Any]],
    cls: int,
) -> tuple[int, int]:
    """The first and the last token of a window's answer; CLS twice where it does not hold it."""
    if not answers["text"]:
        return cls, cls
    begins = answers["answer_start"][0]
    ends = begins + len(answers["text"][0])
    first = parts.index(1)
    last = len(parts) - 1 - parts[::-1].index(1)
    if characters[first][0] > begins or characters[last][1] < ends:
        return cls, cls
    while first < len(characters) and characters[first][0] <= begins:
        first += 1
    while characters[last][1] >= ends:
        last -= 1
    return first - 1, last + 1


def dataset_windows(questions: Dataset, make: Callable[..., dict[str, list[Any]]]) -> Dataset:
    """The windows as a Dataset, which is how the notebook holds them."""
    return questions.map(
        make,
        batched=True,
        batch_size=BATCH,
        remove_columns=questions.column_names,
        load_from_cache_file=False,
        keep_in_memory=True,
    )


def list_windows(
    questions: Sequence[Mapping[str, Any]], make: Callable[..., dict[str, list[Any]]]
) -> list[dict[str, Any]]:
    """The windows as plain dictionaries: no Arrow, so quicker to read, and larger."""
    windows: list[dict[str, Any]] = []
    for first in range(0, len(questions), BATCH):
        rows = questions[first : first + BATCH]
        columns = make({name: [row[name] for row in rows] for name in rows[0]})
        names = list(columns)
        windows += [
            dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    return windows


# ---------------------------------------------------------------------------- spans


def best_answers(
    questions: Rows,
    windows: Rows,
    start_logits: NDArray[np.float32],
    end_logits: NDArray[np.float32],
    cls_id: int,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> Predictions:
    """The best span of every question, and its null margin.

    As in the notebook, each field of a window is looked up by itself, which with a Dataset makes
    its whole row anew, and all spans are kept and sorted.

    Args:
        questions: each with id and context.
        windows: each with example_id, input_ids and offset_mapping.
        start_logits: (windows, max_length).
        end_logits: (windows, max_length).
        cls_id: the token whose logits stand for no answer.
        n_best: starts, and ends, that are tried in each window.
        max_answer_length: in tokens.
    """
    windows_of = defaultdict(list)
    for number, window in enumerate(windows):
        windows_of[window["example_id"]].append(number)
    predictions: Predictions = {}
    for question in questions:
        null_score = None
        found: list[dict[str, Any]] = []
        for number in windows_of[question["id"]]:
            starts, ends = start_logits[number], end_logits[number]
            characters = windows[number]["offset_mapping"]
            cls = windows[number]["input_ids"].index(cls_id)
            null = starts[cls] + ends[cls]
            if null_score is None or null < null_score:
                null_score = null
            found += _spans(
                question["context"],
                characters,
                starts,
                ends,
                n_best,
                max_answer_length,
            )
        best = {"score": 0.0, "text": ""}
        if found:
            best = sorted(found, key=lambda span: span["score"], reverse=True)[0]
        predictions[question["id"]] = best["text"], float(null_score - best["score"])
    return predictions


def _spans(
    context: str,
    characters: list[tuple[int, int] | None],
    starts: NDArray[np.float32],
    ends: NDArray[np.float32],
    n_best: int,
    max_answer_length: int,
) -> Iterable[dict[str, Any]]:
    """The score and the text of every span that one window offers."""
    top_ends = np.argsort(ends)[: -n_best - 1 : -1].tolist()
    for start in np.argsort(starts)[: -n_best - 1 : -1].tolist():
        for end in top_ends:
            if characters[start] is None or characters[end] is None:
                continue
            if end < start or end - start + 1 > max_answer_length:
                continue
            text = context[characters[start][0] : characters[end][1]]
            yield {"score": starts[start] + ends[end], "text": text}


# ---------------------------------------------------------------------------- scores


def question_scores(
    questions: Rows, predictions: Predictions
) -> tuple[dict[str, float], dict[str, float]]:
    """Exact match and F1 by question id, each in 0..1, of the spans."""
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    for question in questions:
        name, text = question["id"], predictions[question["id"]][0]
        golds = [gold for gold in question["answers"]["text"] if _normalise(gold)] or [""]
        exact[name] = max(float(_normalise(text) == _normalise(gold)) for gold in golds)
        f1[name] = max(_overlap(text, gold) for gold in golds)
    return exact, f1


def _normalise(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(text: str, gold: str) -> float:
    predicted, wanted = _normalise(text).split(), _normalise(gold).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def official_metrics(
    questions: Rows,
    predictions: Predictions,
    exact: dict[str, float],
    f1: dict[str, float],
    threshold: float = 0.0,
) -> dict[str, float]:
    """The squad_v2 metrics, in percent, with "" answered where the margin is above the threshold.

    Args:
        questions: each with id and answers.
        predictions: of all questions.
        exact: by question id, if the span is answered.
        f1: likewise.
        threshold: in logits.
    """
    has_answer = {row["id"]: bool(row["answers"]["text"]) for row in questions}
    answered = [name for name, has in has_answer.items() if has]
    unanswerable = [name for name, has in has_answer.items() if not has]
    metrics: dict[str, float] = {}
    scores = {"exact": exact, "f1": f1}
    for prefix, names in (("", [*has_answer]), ("HasAns_", answered), ("NoAns_", unanswerable)):
        if not names:
            continue
        for kind, of_span in scores.items():
            total = 0.0
            for name in names:
                is_null = predictions[name][1] > threshold
                total += float(not has_answer[name]) if is_null else of_span[name]
            metrics[f"{prefix}{kind}"] = 100.0 * total / len(names)
        metrics[f"{prefix}total"] = len(names)
    for kind, of_span in scores.items():
        best, at = _sweep(predictions, of_span, has_answer)
        metrics[f"best_{kind}"], metrics[f"best_{kind}_thresh"] = best, at
    return metrics


def _sweep(
    predictions: Predictions, of_span: dict[str, float], has_answer: dict[str, bool]
) -> tuple[float, float]:
    """(the best mean score in percent, its threshold), answering one question more at a time."""
    current = best = float(sum(not has for has in has_answer.values()))
    at = 0.0
    for name in sorted(predictions, key=lambda name: predictions[name][1]):
        text, margin = predictions[name]
        if has_answer[name]:
            current += of_span[name]
        elif text:
            current -= 1.0
        if current > best:
            best, at = current, margin
    return 100.0 * best / len(has_answer), at
