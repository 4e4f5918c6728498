"""Which questions of the old task a run goes on seeing."""

import numpy as np
from numpy.typing import NDArray

from qa_hpo.finetune.retention.base import OldData
from qa_hpo.squad.layout import Windows

__all__ = ["remembered", "stratified"]


def stratified(groups: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Draw a share of the questions, of every article in proportion to what it has.

    An article's part is its exact proportion, rounded down; the questions that are then missing
    come from the articles with the largest remainders, one each. Between equal remainders, and
    within an article, chance decides.

    Args:
        groups: The article of each question, (questions,).
        share: Share of the questions, 0 to 1.
        seed: Seed of the draw; the same arguments give the same questions.

    Returns:
        Their numbers, ascending: as many as the share comes to when rounded, at least one if
        there are questions and the share is above 0.

    Raises:
        ValueError: The share is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is from 0 to 1, not {share}")
    questions = len(groups)
    if questions == 0 or share == 0:
        return np.empty(0, dtype=np.int64)
    wanted = max(1, round(share * questions))
    generator = np.random.default_rng(seed)
    _, article, counts = np.unique(groups, return_inverse=True, return_counts=True)
    # In whole numbers: a remainder that rounding has changed would decide between articles.
    parts, remainders = np.divmod(wanted * counts, questions)
    shuffled = generator.permutation(len(counts))
    by_remainder = shuffled[np.argsort(-remainders[shuffled], kind="stable")]
    parts[by_remainder[: wanted - int(parts.sum())]] += 1
    # Article by article, each article's questions in an order that was drawn.
    drawn = generator.permutation(questions)
    drawn = drawn[np.argsort(article[drawn], kind="stable")]
    place = np.arange(questions) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(drawn[place < parts[article[drawn]]])


def remembered(old: OldData, share: float, seed: int) -> Windows:
    """Return the windows of a share of the old task's questions, drawn by `stratified`.

    Args:
        old: The old task's questions.
        share: Share of them, 0 to 1.
        seed: Seed of the draw.
    """
    chosen = np.zeros(old.windows.questions, dtype=np.bool_)
    chosen[stratified(old.groups, share, seed)] = True
    return old.windows.take(np.flatnonzero(chosen[old.windows.question_index]))
