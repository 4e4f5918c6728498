"""Seeded logits that look like a mediocre model's: a few peaks over noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.layout import Windows
from qa_hpo.squad.scoring import normalize_answer

PEAKS = 5  # spans that stand out in each window; the n_best of a search is larger
GOLD_SHARE = 0.6  # windows where one of them is the gold answer
MEAN_TOKENS = 3.0  # of a peak's span

Logits = NDArray[np.float32]


def make_logits(
    windows: Windows, token_strings: list[str], width: int, seed: int
) -> tuple[Logits, Logits]:
    """Start and end logits of padded windows, (windows, width) each.

    The outcome of a search through them depends on no detail in which two right searches may
    differ: no two scores are the same, and the peaks stand among the n_best of the whole row as
    well as of the context alone. Peaks begin at tokens that are not an article or punctuation, so
    that no answer is empty once it is normalised.

    Args:
        windows: the windows, unpadded; padded here on the right.
        token_strings: (vocabulary,) each token as the tokenizer writes it.
        width: tokens of a padded window.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    begins_well = np.array([bool(normalize_answer(token.strip("#Ġ▁"))) for token in token_strings])
    shape = (len(windows), width)
    start = rng.normal(-8.0, 1.0, shape)
    end = rng.normal(-8.0, 1.0, shape)
    for w in range(len(windows)):
        flat = slice(windows.offsets[w], windows.offsets[w + 1])
        context = np.flatnonzero(windows.char_start[flat] >= 0)
        start[w, context] = rng.normal(-4.0, 1.2, len(context))
        end[w, context] = rng.normal(-4.0, 1.2, len(context))
        cls = windows.cls_index[w]
        gold = windows.start_positions[w], windows.end_positions[w]
        null = rng.normal(5.0 if gold[0] == cls else 2.0, 1.5, 2)
        start[w, cls], end[w, cls] = null

        candidates = context[begins_well[windows.input_ids[flat][context]]]
        if not len(candidates):
            continue
        firsts = rng.choice(candidates, PEAKS)
        lasts = np.minimum(firsts + rng.geometric(1 / MEAN_TOKENS, PEAKS) - 1, context[-1])
        heights = 2.0 + np.abs(rng.normal(0.0, 1.5, (2, PEAKS)))
        if gold[0] != cls and rng.random() < GOLD_SHARE:
            firsts[0], lasts[0] = gold
            heights[:, 0] += 4.0
        start[w, firsts], end[w, lasts] = heights
    return start.astype(np.float32), end.astype(np.float32)
