import numpy as np
import pytest

from qa_hpo.finetune.batching import LengthGroupedBatches, WindowCollator, longest_first
from qa_hpo.squad.windows import Windows


def lengths_like_squad(windows: int, seed: int = 0) -> np.ndarray:
    """Many of middling length, a few of the greatest: mean about 180 of 384."""
    drawn = np.random.default_rng(seed).lognormal(5.1, 0.45, windows)
    return np.clip(drawn, 40, 384).astype(np.int64)


def order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    batches = LengthGroupedBatches(lengths, batch_size, seed)
    batches.set_epoch(epoch)
    return list(batches)


@pytest.mark.parametrize(
    ("windows", "batch_size"), [(1, 16), (15, 16), (16, 16), (17, 16), (999, 7), (1700, 16), (5, 1)]
)
def test_every_window_comes_once_per_epoch(windows: int, batch_size: int) -> None:
    lengths = lengths_like_squad(windows)
    for epoch in range(3):
        batches = order(lengths, batch_size, seed=3, epoch=epoch)
        assert sorted(window for batch in batches for window in batch) == list(range(windows))
        assert len(batches) == len(LengthGroupedBatches(lengths, batch_size, 3))
        assert sum(len(batch) != batch_size for batch in batches) == (windows % batch_size > 0)


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    lengths = lengths_like_squad(2000)
    used = LengthGroupedBatches(lengths, 16, seed=7)
    for epoch in range(3):
        used.set_epoch(epoch)
        seen = list(used)
        assert seen == list(used) == order(lengths, 16, seed=7, epoch=epoch)
    assert seen != order(lengths, 16, seed=7, epoch=1)
    assert seen != order(lengths, 16, seed=8, epoch=2)
    # Another order of the same batches would hardly be a shuffle.
    assert {tuple(sorted(b)) for b in seen} != {
        tuple(sorted(b)) for b in order(lengths, 16, seed=7, epoch=1)
    }


def test_long_windows_are_not_all_at_one_end_of_the_epoch() -> None:
    lengths = lengths_like_squad(4000)
    longest = [lengths[batch].max() for batch in order(lengths, 16, seed=1, epoch=0)]
    halves = np.mean(longest[:125]), np.mean(longest[125:])
    assert abs(halves[0] - halves[1]) < 0.15 * np.mean(longest)


def padding_share(lengths: np.ndarray, batches: list[list[int]]) -> float:
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - int(lengths.sum()) / padded


def test_hardly_any_padding() -> None:
    lengths = lengths_like_squad(8000)
    shuffled = np.random.default_rng(0).permutation(8000).reshape(-1, 16).tolist()
    assert padding_share(lengths, shuffled) > 0.35
    assert padding_share(lengths, order(lengths, 16, seed=0, epoch=0)) < 0.04
    # No pool is a small rest of the others.
    assert padding_share(lengths[:1009], order(lengths[:1009], 16, seed=0, epoch=0)) < 0.03


def test_longest_first() -> None:
    lengths = np.array([30, 96, 10, 96, 31, 90, 89, 96])
    batches = [batch.tolist() for batch in longest_first(lengths, 2)]
    # 90 is 15/16 of 96, 89 is less; 89 is more than 15/16 of 90, and 30 of 31.
    assert batches == [[1, 3], [7, 5], [6], [4, 0], [2]]
    assert [batch.tolist() for batch in longest_first(lengths, 9)] == [
        [1, 3, 7, 5],
        [6],
        [4, 0],
        [2],
    ]
    assert list(longest_first(lengths[:0], 2)) == []


@pytest.mark.parametrize("windows", [309, 6284])
def test_hardly_any_padding_in_evaluation(windows: int) -> None:
    lengths = lengths_like_squad(windows)
    batches = [batch.tolist() for batch in longest_first(lengths, 64)]
    assert sorted(window for batch in batches for window in batch) == list(range(windows))
    assert padding_share(lengths, batches) < 0.03
    assert max(map(len, batches)) <= 64
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def random_windows(windows: int, *, types: bool, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 30, windows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(offsets[-1])
    start = rng.integers(0, lengths).astype(np.int16)
    return Windows(
        input_ids=rng.integers(1, 5000, tokens).astype(np.int32),
        token_type_ids=rng.integers(0, 3, tokens).astype(np.uint8) if types else None,
        char_start=np.full(tokens, -1, np.int32),
        char_end=np.full(tokens, -1, np.int32),
        offsets=offsets,
        question_index=np.arange(windows, dtype=np.int32),
        cls_index=np.zeros(windows, np.int16),
        start_positions=start,
        end_positions=rng.integers(start, lengths).astype(np.int16),
        questions=windows,
    )


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("multiple", [1, 8])
def test_collator_against_a_slow_reference(left: bool, types: bool, multiple: int) -> None:
    windows = random_windows(40, types=types)
    collator = WindowCollator(windows, 77, left=left, multiple=multiple)
    for chosen in ([0], [5, 3, 39, 3], list(range(40))):
        rows = [slice(int(windows.offsets[w]), int(windows.offsets[w + 1])) for w in chosen]
        width = max(row.stop - row.start for row in rows)
        while width % multiple:
            width += 1
        expected: dict[str, list] = {
            "input_ids": [], "attention_mask": [], "start_positions": [], "end_positions": []
        }  # fmt: skip
        if types:
            expected["token_type_ids"] = []
        for window, row in zip(chosen, rows, strict=True):
            missing = width - (row.stop - row.start)
            before, after = (missing, 0) if left else (0, missing)

            def padded(values, fill, before=before, after=after):
                return [fill] * before + [int(v) for v in values] + [fill] * after

            expected["input_ids"].append(padded(windows.input_ids[row], 77))
            expected["attention_mask"].append(padded([1] * (row.stop - row.start), 0))
            if types:
                expected["token_type_ids"].append(padded(windows.token_type_ids[row], 0))
            expected["start_positions"].append(int(windows.start_positions[window]) + before)
            expected["end_positions"].append(int(windows.end_positions[window]) + before)
        batch = collator(chosen)
        assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
        assert {str(tensor.dtype) for tensor in batch.values()} == {"torch.int64"}
