"""What is drawn where questions are drawn by article: the articles, or blocks of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["blocks"]

# So many tell a standard error to 3%, and what is drawn of them stays small. A corpus with a
# context for each question, and no articles, has as many groups as questions.
_MOST = 500
_SEED = 0  # one for all trials: they share their blocks, and what they are compared by is one


def blocks(groups: NDArray[np.integer[Any]]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the article of each question, counted from 0, and how many questions each one has.

    More than 500 articles are merged into about 500 blocks: put into a random order, always the
    same one, which is cut into pieces of about as many questions. Articles are independent, so
    that the variance of a block's sum is the sum of its articles' variances, and that of the mean
    over all questions is kept. A block is made without regard to its articles' sizes: were they
    dealt out evenly, what larger articles have more or less of would cancel within blocks.

    Raises:
        ValueError: There is no question, or not one group of each.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or len(groups) == 0:
        raise ValueError(f"groups of shape {groups.shape}: expected one of each question")
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) > _MOST:
        order = np.random.default_rng(_SEED).permutation(len(sizes))
        ends = sizes[order].cumsum()
        piece = np.empty(len(sizes), dtype=np.int64)
        piece[order] = (ends - sizes[order] / 2) * (_MOST / len(groups))  # by their middles
        # A piece may be empty beside an article that is larger than it.
        _, index, sizes = np.unique(piece[index], return_inverse=True, return_counts=True)
    return index, sizes.astype(np.float64)
