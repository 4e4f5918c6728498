"""Hostile question-answering data, in every kind of source that is read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars

from bench.hostile.inputs import Hostile, hostile_trees, link, put
from bench.hostile.mutations import CONTROLS, as_json, change_bytes, change_tree
from bench.hostile.valid import Valid, corpus, predictions

__all__ = ["changed_corpora", "named_corpora"]


def named_corpora(valid: Valid, folder: Path) -> Iterator[Hostile]:
    """Corpora that somebody thought of; a good saved data set is made in a folder, once."""
    yield from (_scored(name, file, content) for name, (file, content) in _named().items())
    yield from (_run(valid, name, content) for name, content in _for_a_model().items())
    good = _good_saved(folder)
    for name in sorted(path.name for path in good.iterdir()):
        yield _one_saved(good, f"without {name}", name, None)
        yield _one_saved(good, f"empty {name}", name, b"")
        yield _one_saved(good, f"JSON list as {name}", name, b"[]")
        yield _one_saved(good, f"deep {name}", name, b"[" * 100_000)


def changed_corpora(valid: Valid, seed: int, folder: Path) -> Iterator[Hostile]:
    """Endless changes to corpora of every kind; a good saved data set is made in a folder, once."""
    good = json.dumps(corpus()).encode()
    lines = "\n".join(json.dumps(row) for row in _rows())
    streams: list[Iterator[Hostile]] = [
        (_scored(name, "data.json", text) for name, text in
         hostile_trees(corpus(), f"{seed}/corpus", as_json)),
        (_scored(f"again {name}", "data.json", text) for name, text in
         hostile_trees(corpus(), f"{seed}/corpus again", as_json)),
        (_run(valid, name, text) for name, text in
         hostile_trees(corpus(), f"{seed}/run corpus", as_json)),
        _broken_lines(seed),
        _damaged(seed, "data.json", good),
        _damaged(seed, "data.json.gz", gzip.compress(good, mtime=0)),
        _damaged(seed, "data.jsonl", lines.encode()),
        _damaged(seed, "data.parquet", _parquet(_rows())),
        _other_columns(seed),
        _changed_saved(_good_saved(folder), seed),
    ]  # fmt: skip
    while True:
        yield from map(next, streams)


def _rows() -> list[dict[str, Any]]:
    rows = []
    for article in corpus()["data"]:
        paragraph = article["paragraphs"][0]
        qa = paragraph["qas"][0]
        answers = {
            "text": [answer["text"] for answer in qa["answers"]],
            "answer_start": [answer["answer_start"] for answer in qa["answers"]],
        }
        rows.append({
            "id": qa["id"], "title": article["title"], "context": paragraph["context"],
            "question": qa["question"], "answers": answers,
        })  # fmt: skip
    return rows


def _scored(name: str, file: str, content: Any) -> Hostile:
    def make(folder: Path) -> None:
        put(folder, file, content)
        put(folder, "predictions.json", predictions()[0])

    argv = ("score", file, "predictions.json", "--json")
    return Hostile(f"{file} {name}", "corpus", make, argv)


def _run(valid: Valid, name: str, content: Any) -> Hostile:
    """A corpus that a model is to answer: it is cut into windows, and run."""

    def make(folder: Path) -> None:
        put(folder, "data.json", content)
        link(folder, valid.checkpoint)

    return Hostile(f"evaluated {name}", "corpus", make, ("evaluate", "checkpoint", "data.json"))


def _named() -> dict[str, tuple[str, Any]]:
    good = corpus()
    text = json.dumps(good)
    rows = _rows()
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], delimiter=";")
    writer.writerows(rows)
    repeated = {**good, "data": good["data"] * 2}
    return {
        "empty": ("data.json", ""),
        "a number": ("data.json", "1"),
        "UTF-16": ("data.json", text.encode("utf-16")),
        "UTF-32": ("data.json", text.encode("utf-32")),
        "with BOM": ("data.json", "\ufeff" + text),
        "two BOMs": ("data.json", "\ufeff\ufeff" + text),
        "Latin-1": ("data.json", text.replace("cold", "caf\xe9").encode("latin-1")),
        "NUL": ("data.json", text.replace("cold", "co\x00ld")),
        "cut": ("data.json", text[:200]),
        "more behind it": ("data.json", text + "]"),
        "the same ids": ("data.json", repeated),
        "10 MB of spaces": ("data.json", " " * 10_000_000 + text),
        "10 MB open": ("data.json", '{"data": ' + "[" * 10_000_000),
        "10 MB of context": ("data.json", text.replace("cold", "cold " + "and " * 2_500_000)),
        "10 MB of keys": (
            "data.json", "{" + ",".join(f'"{n:06d}": 1' for n in range(700_000)) + "}"
        ),
        "one key of 1 MB": ("data.json", {"k" * 1_000_000: 1}),
        "controls everywhere": ("data.json", text.replace("Lake", json.dumps(CONTROLS)[1:-1])),
        "controls as keys": ("data.json", {CONTROLS: []}),
        "ids with controls, twice": (
            "data.json", json.dumps(repeated).replace('"q', '"' + json.dumps(CONTROLS)[1:-1])
        ),
        "cut gzip": ("data.json.gz", gzip.compress(text.encode(), mtime=0)[:100]),
        "no gzip": ("data.json.gz", text),
        "empty gzip": ("data.json.gz", ""),
        "gzip of gzip": ("data.json.gz", gzip.compress(gzip.compress(text.encode()))),
        "a bomb of zeros": ("data.json.gz", gzip.compress(bytes(200_000_000), 9, mtime=0)),
        "semicolons": ("data.csv", table.getvalue()),
        "CSV named JSONL": ("data.jsonl", table.getvalue()),
        "SQuAD named JSONL": ("data.jsonl", text),
        "empty lines": ("data.jsonl", "\n" * 100),
        "lines that are no objects": ("data.jsonl", "1\n2\n"),
        "half a line": ("data.jsonl", json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:40]),
        "no parquet": ("data.parquet", text),
        "empty parquet": ("data.parquet", ""),
        "only its mark": ("data.parquet", b"PAR1"),
        "marks around nothing": ("data.parquet", b"PAR1\xff\xff\xff\x7fPAR1"),
        "no rows": ("data.parquet", _parquet(rows, 0)),
        "other columns": ("data.parquet", _parquet([{"a": 1}])),
        "no suffix": ("data", text),
        "unknown suffix": ("data.xml", "<data/>"),
    }  # fmt: skip


def _for_a_model() -> dict[str, Any]:
    """Corpora whose layout is right, and that are too much for a model, or strange to it."""

    def changed(change: Callable[[dict[str, Any]], None]) -> Any:
        made = corpus()
        change(made["data"][0]["paragraphs"][0])
        return made

    def long_question(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0]["question"] = "which town " * 5000

    def long_context(paragraph: dict[str, Any]) -> None:
        paragraph["context"] += " lake0" * 20_000

    def long_word(paragraph: dict[str, Any]) -> None:
        paragraph["context"] += " " + "x" * 1_000_000

    def unknown(paragraph: dict[str, Any]) -> None:
        paragraph["context"] = "\u0b95\u0bcd\u0bb7 \U0001f9d1\u200d\U0001f680 \u202e" * 10
        paragraph["qas"][0].update(question="\u200b\u200b?", answers=[], is_impossible=True)

    def negative(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0]["answers"][0]["answer_start"] = -5

    def outside(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0]["answers"][0]["answer_start"] = 10**18

    def empty(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0]["answers"][0]["text"] = ""

    def strange_id(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0].update(id=CONTROLS, question="which " * 500)

    def half_words(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0]["answers"][0].update(
            text="ort", answer_start=paragraph["context"].index("ort")
        )

    def many_answers(paragraph: dict[str, Any]) -> None:
        paragraph["qas"][0]["answers"] *= 50_000

    changes = [
        long_question, long_context, long_word, unknown, negative, outside, empty, strange_id,
        half_words, many_answers,
    ]  # fmt: skip
    return {change.__name__: changed(change) for change in changes}


def _parquet(rows: list[dict[str, Any]], count: int | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows)[:count], sink)
    return sink.getvalue()


def _broken_lines(seed: int) -> Iterator[Hostile]:
    number = 0
    while True:
        rng = random.Random(f"{seed}/lines/{number}")
        rows = [json.dumps(row) for row in _rows()]
        change = change_tree(_rows(), rng)
        if isinstance(change.tree, list):
            rows = [as_json(row) for row in change.tree]
        what, text = change_bytes("\n".join(rows).encode(), rng)
        text = text if number % 2 else "\n".join(rows).encode()
        yield _scored(f"{number}: {change.name}, {what}", "data.jsonl", text)
        number += 1


def _damaged(seed: int, file: str, content: bytes) -> Iterator[Hostile]:
    number = 0
    while True:
        what, changed = change_bytes(content, random.Random(f"{seed}/{file}/{number}"))
        yield _scored(f"damaged {number}: {what}", file, changed)
        number += 1


def _other_columns(seed: int) -> Iterator[Hostile]:
    """Parquet files that are whole and whose columns are of other types."""
    number = 0
    while True:
        rng = random.Random(f"{seed}/columns/{number}")
        rows = _rows()
        column = rng.choice([*rows[0], "answers.text", "answers.answer_start"])
        kind, values = rng.choice(_COLUMNS)
        name, _, inner = column.partition(".")
        for row, value in zip(rows, values * len(rows), strict=False):
            if inner:
                row["answers"] = {**row["answers"], inner: [value]}
            else:
                row[name] = value
        yield _scored(f"{number}: {column} {kind}", "data.parquet", _parquet(rows))
        number += 1


_COLUMNS: list[tuple[str, list[Any]]] = [
    ("numbers", [1]),
    ("reals", [float("nan")]),
    ("bytes", [b"\xff\xfe"]),
    ("nulls", [None]),
    ("some nulls", ["x", None]),
    ("lists", [["a"]]),
    ("tables", [{"a": 1}]),
    ("truths", [True]),
    ("long", ["y" * 100_000]),
    ("controls", [CONTROLS]),
    ("big", [2**62]),
    ("the same", ["q0"]),
    ("lists of tables", [[{"text": "Port0", "answer_start": 38}]]),
]


def _good_saved(folder: Path) -> Path:
    """A folder that save_to_disk wrote."""
    good = folder / "saved"
    if not good.exists():
        disable_progress_bars()
        Dataset.from_list(_rows()).save_to_disk(str(good))
    return good


def _changed_saved(good: Path, seed: int) -> Iterator[Hostile]:
    names = sorted(path.name for path in good.iterdir())
    number = 0
    while True:
        rng = random.Random(f"{seed}/saved/{number}")
        name = rng.choice(names)
        content = (good / name).read_bytes()
        if name.endswith(".json") and number % 2:
            change = change_tree(json.loads(content), rng)
            yield _one_saved(
                good, f"{number}: {name} {change.name}", name, as_json(change.tree).encode()
            )
        else:
            what, changed = change_bytes(content, rng)
            yield _one_saved(good, f"{number}: {name} {what}", name, changed)
        number += 1


def _one_saved(good: Path, name: str, file: str, content: bytes | None) -> Hostile:
    def make(folder: Path) -> None:
        shutil.copytree(good, folder / "saved")
        if content is None:
            (folder / "saved" / file).unlink()
        else:
            (folder / "saved" / file).write_bytes(content)
        put(folder, "predictions.json", predictions()[0])

    return Hostile(f"saved {name}", "corpus", make, ("score", "saved", "predictions.json"))
