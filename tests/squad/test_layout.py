"""Windows chosen and put together, against windows written out one by one."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from qa_hpo.squad.layout import Windows

Row = dict[str, Any]


def windows_of(rows: list[Row], questions: int, *, types: bool = True) -> Windows:
    """Put windows together that are given one by one."""

    def flat(name: str, kind: type) -> Any:
        return np.array([value for row in rows for value in row[name]], dtype=kind)

    def column(name: str, kind: type) -> Any:
        return np.array([row[name] for row in rows], dtype=kind)

    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row["ids"]))
    return Windows(
        input_ids=flat("ids", np.int32),
        token_type_ids=flat("types", np.uint8) if types else None,
        char_start=flat("from", np.int32),
        char_end=flat("to", np.int32),
        offsets=np.array(offsets, dtype=np.int64),
        question_index=column("question", np.int32),
        cls_index=column("cls", np.int16),
        start_positions=column("start", np.int16),
        end_positions=column("end", np.int16),
        questions=questions,
    )


def rows_of(windows: int, *, seed: int, questions: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for window in range(windows):
        length = int(rng.integers(1, 7))
        rows.append(
            {
                "ids": rng.integers(1, 900, length).tolist(),
                "types": rng.integers(0, 3, length).tolist(),
                "from": rng.integers(-1, 90, length).tolist(),
                "to": rng.integers(-1, 90, length).tolist(),
                "question": min(window, questions - 1),
                "cls": int(rng.integers(0, length)),
                "start": int(rng.integers(0, length)),
                "end": int(rng.integers(0, length)),
            }
        )
    return rows


def assert_same(found: Windows, expected: Windows) -> None:
    for field in dataclasses.fields(Windows):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        else:
            assert one == other, field.name


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("chosen", [[], [0], [7, 2, 2, 0], list(range(8))])
def test_taken_windows_are_those_asked_for_in_their_order(chosen: list[int], types: bool) -> None:
    rows = rows_of(8, seed=1, questions=5)
    taken = windows_of(rows, 5, types=types).take(np.array(chosen, dtype=np.int64))
    assert len(taken) == len(chosen)
    assert_same(taken, windows_of([rows[window] for window in chosen], 5, types=types))


@pytest.mark.parametrize("types", [True, False])
def test_the_second_ones_questions_are_numbered_after_the_firsts(types: bool) -> None:
    first, second = rows_of(6, seed=2, questions=4), rows_of(5, seed=3, questions=3)
    both = windows_of(first, 4, types=types).concatenated(windows_of(second, 3, types=types))
    moved = [{**row, "question": row["question"] + 4} for row in second]
    assert_same(both, windows_of([*first, *moved], 7, types=types))
    assert both.question_index.tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 6]


def test_windows_of_no_question_change_nothing() -> None:
    rows = rows_of(3, seed=4, questions=3)
    windows, empty = windows_of(rows, 3), windows_of([], 0)
    assert_same(windows.concatenated(empty), windows)
    assert_same(empty.concatenated(windows), windows)


def test_token_types_are_in_both_or_in_neither() -> None:
    rows = rows_of(3, seed=5, questions=3)
    one, other = windows_of(rows, 3), windows_of(rows, 3, types=False)
    with pytest.raises(ValueError, match="token types"):
        one.concatenated(other)
    with pytest.raises(ValueError, match="token types"):
        other.concatenated(one)
