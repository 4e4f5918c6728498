"""Windows to padded batches: grouped by length, padded to the longest of a batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from qa_hpo.squad.windows import Windows

__all__ = ["LengthGroupedBatches", "PaddedBatch", "WindowCollator", "longest_first"]

# Windows are sorted by length within a pool of at least this many batches, where there are so many:
# enough for hardly any padding, and the pools differ from epoch to epoch, as a shuffle should.
_POOL = 50
# In evaluation, where batches may be of any size, a batch's windows have at least this share of its
# longest one's tokens.
_ALIKE = 15 / 16


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of windows of like length, in an order that depends on seed and epoch alone.

    Every window comes once per epoch. As the order is no function of the epochs before, a run that
    is resumed sees the batches that it would have seen.

    Args:
        lengths: Tokens of each window, (windows,).
        batch_size: Windows per batch; the epoch's last windows may make a smaller one.
        seed: Seed of the order.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order is given next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(len(self.lengths))
        pools = max(1, len(self) // _POOL)
        # As many batches each as can be, so that none is a remainder with more padding.
        ends = [len(part) for part in np.array_split(np.arange(len(self)), pools)]
        borders = np.cumsum(ends[:-1], dtype=np.int64) * self.batch_size
        batches: list[NDArray[np.int64]] = []
        for pool in np.split(shuffled, borders):
            windows = pool[np.argsort(self.lengths[pool], kind="stable")]
            cuts = range(self.batch_size, len(windows), self.batch_size)
            batches.extend(np.split(windows, list(cuts)))
        for index in generator.permutation(len(batches)):
            yield batches[index].tolist()


def longest_first(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of windows of like length, the longest first.

    What does not fit into the memory shows at once. A batch ends before a window that is shorter
    than 15/16 of its longest one: few windows would make few batches, of unlike ones.

    Args:
        lengths: Tokens of each window, (windows,).
        batch_size: Windows of a batch, at most.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    first = 0
    while first < len(order):
        # Ascending in their negatives, as a binary search wants them.
        alike = int(np.searchsorted(-descending, -_ALIKE * descending[first], side="right"))
        last = min(first + batch_size, max(alike, first + 1))
        yield order[first:last]
        first = last


@dataclass(frozen=True)
class PaddedBatch:
    """Where the tokens of a padded batch come from.

    Attributes:
        source: Index of each token in the windows' flat arrays, (batch, tokens); 0 on padding.
        mask: True on real tokens, (batch, tokens).
        shift: Padding in front of each window, (batch,): zeros when padding on the right.
    """

    source: NDArray[np.int64]
    mask: NDArray[np.bool_]
    shift: NDArray[np.int64]


class WindowCollator:
    """Turns window numbers into a padded batch of tensors.

    Args:
        windows: The windows.
        pad_id: Token id of the padding.
        left: Whether the tokenizer pads on the left.
        multiple: Length to whose multiple a batch is padded.
    """

    def __init__(self, windows: Windows, pad_id: int, *, left: bool, multiple: int = 1) -> None:
        self.windows = windows
        self.pad_id = pad_id
        self.left = left
        self.multiple = multiple

    def layout(self, indices: NDArray[np.int64]) -> PaddedBatch:
        """Return where the tokens of the batch of windows ``indices``, (batch,), come from."""
        starts = self.windows.offsets[indices]
        lengths = self.windows.offsets[indices + 1] - starts
        width = -(-int(lengths.max()) // self.multiple) * self.multiple
        shift = width - lengths if self.left else np.zeros_like(lengths)
        position = np.arange(width)[None, :] - shift[:, None]  # (batch, tokens)
        mask = (position >= 0) & (position < lengths[:, None])
        source = np.where(mask, starts[:, None] + position, 0)
        return PaddedBatch(source, mask, shift)

    def inputs(self, batch: PaddedBatch) -> dict[str, torch.Tensor]:
        """Return the model's inputs for a laid-out batch, each (batch, tokens), int64."""
        windows, mask = self.windows, batch.mask
        ids = np.where(mask, windows.input_ids[batch.source], self.pad_id).astype(np.int64)
        inputs = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if windows.token_type_ids is not None:
            types = np.where(mask, windows.token_type_ids[batch.source], 0).astype(np.int64)
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs

    def labels(self, indices: NDArray[np.int64], batch: PaddedBatch) -> dict[str, torch.Tensor]:
        """Return the start and end labels in the padded rows, each (batch,), int64."""
        start = self.windows.start_positions[indices].astype(np.int64) + batch.shift
        end = self.windows.end_positions[indices].astype(np.int64) + batch.shift
        return {"start_positions": torch.from_numpy(start), "end_positions": torch.from_numpy(end)}

    def __call__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return inputs and labels of the windows ``indices``."""
        chosen = np.asarray(indices, dtype=np.int64)
        batch = self.layout(chosen)
        return {**self.inputs(batch), **self.labels(chosen, batch)}
