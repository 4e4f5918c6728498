"""Hostile inputs: each has a name, what kind of thing it is, its files, and a command."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.hostile.mutations import as_json, as_toml, change_bytes, change_tree
from bench.hostile.valid import Valid, corpus, predictions, run_sections, study_sections

__all__ = [
    "Hostile",
    "Make",
    "changed_predictions",
    "changed_studies",
    "good_files",
    "hostile_trees",
    "link",
    "named_predictions",
    "named_studies",
    "put",
]

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """One hostile input.

    Attributes:
        name: Unique within its kind.
        kind: What a user hands over: study, corpus, checkpoint, storage, predictions or command.
        make: Writes its files to an empty folder, in which the command runs.
        argv: The command.
        env: Variables that the command sees.
    """

    name: str
    kind: str
    make: Make
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


def put(folder: Path, name: str, content: Any) -> None:
    """Write a file: bytes and text as they are, anything else as JSON."""
    if not isinstance(content, (bytes, str)):
        content = as_json(content)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    (folder / name).write_bytes(content)


def link(folder: Path, target: Path) -> None:
    """Link to a folder that is good, by its name: so that messages are the same everywhere."""
    (folder / target.name).symlink_to(target)


def good_files(folder: Path, valid: Valid) -> None:
    """Write what a good study needs."""
    put(folder, "train.json", corpus("t"))
    put(folder, "validation.json", corpus("v"))
    put(folder, "study.toml", as_toml(study_sections()))
    link(folder, valid.checkpoint)


def hostile_trees(tree: Any, seed: str, write: Callable[[Any], str]) -> Iterator[tuple[str, str]]:
    """Endless changes to a tree, one to three at a time: a name and what is written."""
    number = 0
    while True:
        rng = random.Random(f"{seed}/{number}")
        change = change_tree(tree, rng, times=rng.choice([1, 1, 1, 2, 3]))
        yield f"{number}: {change.name}", write(change.tree)
        number += 1


# ---------------------------------------------------------------------------- study files


def _study(
    valid: Valid, name: str, content: bytes | str, argv: Sequence[str] = ("check", "study.toml")
) -> Hostile:
    def make(folder: Path) -> None:
        good_files(folder, valid)
        put(folder, "study.toml", content)

    return Hostile(name, "study", make, argv)


def named_studies(valid: Valid) -> Iterator[Hostile]:
    """Study files that somebody thought of."""
    good = as_toml(study_sections())
    for name, content in _study_texts(good).items():
        yield _study(valid, name, content)
    yield from _study_places(valid)


def changed_studies(valid: Valid, seed: int) -> Iterator[Hostile]:
    """Endless changes to a study file, and to a run's configuration."""
    good = as_toml(study_sections())
    changed = hostile_trees(study_sections(), f"{seed}/study", as_toml)
    runs = hostile_trees(run_sections(), f"{seed}/run", as_toml)
    number = 0
    while True:
        yield _study(valid, *next(changed))
        if number % 4 == 0:
            # The folder is there: the command ends before it trains.
            name, content = next(runs)
            yield _study(valid, f"run {name}", content, ("train", "study.toml", "checkpoint"))
        if number % 8 == 0:
            rng = random.Random(f"{seed}/study bytes/{number}")
            what, damaged = change_bytes(good.encode(), rng)
            yield _study(valid, f"bytes {number}: {what}", damaged)
        number += 1


def _study_texts(good: str) -> dict[str, bytes | str]:
    many = "\n".join(f'k{n} = "x"' for n in range(5000))
    return {
        "empty": "",
        "binary": bytes(range(256)) * 40,
        "UTF-16": good.encode("utf-16"),
        "UTF-8 with BOM": "\ufeff" + good,
        "Latin-1": (good + "\n# caf\xe9").encode("latin-1"),
        "NUL": good + "\x00",
        "CR line ends": good.replace("\n", "\r"),
        "twice the same table": good + good,
        "key twice": "[study]\nname = 'a'\nname = 'b'\n",
        "5,000 unknown keys": f"{good}\n[more]\n{many}\n",
        "5,000 unknown tables": good + "\n" + "\n".join(f"[t{n}]" for n in range(5000)),
        "10 MB of comment": good + "\n#" + "x" * 10_000_000,
        "10 MB of one value": good + '\nx = "' + "y" * 10_000_000 + '"',
        "10 MB of key": good + "\n" + "k" * 10_000_000 + " = 1",
        "deep keys": good + "\n" + ".".join("a" * 20_000) + " = 1",
        "deep tables": good + "\n[" + ".".join("a" * 20_000) + "]",
        "many starts": good.replace('"starts" = {', '"starts" = {' + "".join(
            f'"s{n}" = {{"from" = "s{n + 1}", "train" = "train.json"}}, ' for n in range(3000)
        ) + '"s3000" = "checkpoint", '),
        "starts that go round": good.replace('"from" = "base"', '"from" = "v1"'),
        "start above the cache": good.replace('"v1"', '"../../../escaped"'),
        "start of slashes": good.replace('"v1"', '"a/b/c"'),
        "controls in a key": good + '\n"a\\u001b[31m\\nb" = 1',
        "JSON": json.dumps(study_sections()),
        "YAML": "study:\n  name: small\n",
        "an array at the top": "[1, 2]",
        "unclosed text": good + '\nx = """abc',
        "long number": good.replace('"seed" = 1', f'"seed" = {"9" * 5000}'),
        "threads": good.replace('"precision" = "fp32"', '"cpu_threads" = 1000000000'),
    }  # fmt: skip


def _study_places(valid: Valid) -> Iterator[Hostile]:
    """Study files that are no files, or lie at strange places."""

    def a_folder(folder: Path) -> None:
        (folder / "study.toml").mkdir()

    def loop(folder: Path) -> None:
        (folder / "study.toml").symlink_to("other.toml")
        (folder / "other.toml").symlink_to("study.toml")

    def data_loop(folder: Path) -> None:
        good_files(folder, valid)
        (folder / "train.json").unlink()
        (folder / "train.json").symlink_to("train.json")

    def start_loop(folder: Path) -> None:
        good_files(folder, valid)
        (folder / "checkpoint").unlink()
        (folder / "checkpoint").symlink_to("checkpoint")

    def artifacts_file(folder: Path) -> None:
        good_files(folder, valid)
        put(folder, "artifacts", "a file")

    def device(folder: Path) -> None:
        good_files(folder, valid)
        (folder / "train.json").unlink()
        (folder / "train.json").symlink_to("/dev/null")

    def nothing(folder: Path) -> None:
        pass

    check = ("check", "study.toml")
    for name, make in {
        "a folder": a_folder, "links that go round": loop,
        "data that link to themselves": data_loop,
        "a start that links to itself": start_loop, "artifacts are a file": artifacts_file,
        "data are a device": device, "missing": nothing,
    }.items():  # fmt: skip
        yield Hostile(name, "study", make, check)
    for name, path in {
        "long name": "x" * 5000 + ".toml", "deep name": "x/" * 3000 + "a.toml",
        "controls": "a\x1b[31m\nb.toml", "not UTF-8": "a\udce9.toml", "empty": "", "dash": "-",
        "a device": "/dev/zero", "above": "..",
        "markup": "[bold]x[/].toml", "null": "/proc/self/mem",
    }.items():  # fmt: skip
        yield Hostile(f"name {name}", "study", nothing, ("check", path))
        yield Hostile(f"status of {name}", "study", nothing, ("status", path))
        yield Hostile(f"train of {name}", "study", nothing, ("train", path, "out"))


# ---------------------------------------------------------------------------- predictions


def _scored(name: str, answers: Any, scores: Any) -> Hostile:
    def make(folder: Path) -> None:
        put(folder, "data.json", corpus())
        put(folder, "predictions.json", answers)
        put(folder, "nulls.json", scores)

    argv = ("score", "data.json", "predictions.json", "--null-scores", "nulls.json")
    return Hostile(name, "predictions", make, argv)


def named_predictions() -> Iterator[Hostile]:
    """Predictions and null scores that somebody thought of."""
    texts, nulls = predictions()
    for name, content in _prediction_texts().items():
        yield _scored(f"predictions: {name}", content, nulls)
        yield _scored(f"nulls: {name}", texts, content)
    for name, path in {"a folder": ".", "missing": "none.json", "data": "data.json"}.items():

        def make(folder: Path) -> None:
            put(folder, "data.json", corpus())

        yield Hostile(name, "predictions", make, ("score", "data.json", path))


def changed_predictions(seed: int) -> Iterator[Hostile]:
    """Endless changes to predictions and null scores."""
    texts, nulls = predictions()
    first = hostile_trees(texts, f"{seed}/predictions", as_json)
    second = hostile_trees(nulls, f"{seed}/nulls", as_json)
    number = 0
    while True:
        name, content = next(first)
        yield _scored(f"predictions {name}", content, nulls)
        name, content = next(second)
        yield _scored(f"nulls {name}", texts, content)
        if number % 5 == 0:
            rng = random.Random(f"{seed}/prediction bytes/{number}")
            what, damaged = change_bytes(as_json(texts).encode(), rng)
            yield _scored(f"bytes {number}: {what}", damaged, nulls)
        number += 1


def _prediction_texts() -> dict[str, Any]:
    texts, _ = predictions()
    return {
        "empty file": "",
        "a list": "[]",
        "a number": "1",
        "UTF-16": json.dumps(texts).encode("utf-16"),
        "binary": bytes(range(256)),
        "NaN": "NaN",
        "the same id twice": '{"q0": "a", "q0": "b", "q1": "c"}',
        "10 MB answer": {**texts, "q0": "word " * 2_000_000},
        "10 MB of another id": {**texts, "x" * 10_000_000: ""},
        "100,000 other ids": {**texts, **{f"x{n}": "" for n in range(100_000)}},
        "gzip under a plain name": gzip.compress(b"{}", mtime=0),
        "surrogates": '{"q0": "\\ud800", "\\udfff": ""}',
        "not closed": '{"q0": "',
    }
