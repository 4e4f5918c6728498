"""Hostile input: one clear line, an exit code, and nothing left over, whatever is handed over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bench.hostile.inputs import Hostile
from bench.hostile.judging import MARKER, Ended, judge, listing
from bench.hostile.running import SHARES, hostile_inputs, try_input
from bench.hostile.valid import Valid, write_valid

INPUTS = 720
"""Those that somebody thought of, and some two hundred changes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def valid(place: Path) -> Valid:
    return write_valid(place)


@pytest.fixture(scope="module")
def inputs(valid: Valid, place: Path) -> list[Hostile]:
    return list(hostile_inputs(valid, place, INPUTS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_no_input_leads_to_a_fault(
    kind: str,
    inputs: list[Hostile],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    own = [hostile for hostile in inputs if hostile.kind == kind]
    codes: Counter[int | None] = Counter()
    faults = {}
    for hostile in own:
        verdict, _ = try_input(hostile, place)
        codes[verdict.code] += 1
        if verdict.faults:
            faults[hostile.name[:200]] = [(f.sort, f.words[:400]) for f in verdict.faults]
    assert faults == {}
    assert codes[2] > len(own) / 3, "most of it is to be refused"
    record_property(f"hostile {kind}", len(own))


def test_there_are_enough_of_them_and_no_two_alike(inputs: list[Hostile]) -> None:
    assert len(inputs) == INPUTS
    assert len({(hostile.kind, hostile.name) for hostile in inputs}) == INPUTS


def test_the_same_seed_gives_the_same_inputs(valid: Valid, place: Path, tmp_path: Path) -> None:
    def made(seed: int) -> list[tuple[str, dict[str, str]]]:
        found = []
        for number, hostile in enumerate(hostile_inputs(valid, place, INPUTS + 60, seed)):
            if number >= INPUTS:
                folder = tmp_path / f"{time.monotonic_ns()}"
                folder.mkdir()
                hostile.make(folder)
                found.append((hostile.name, listing(folder)))
        return found

    first = made(3)
    assert made(3) == first
    assert made(4) != first


# ---------------------------------------------------------------------------- the judge itself

GOOD_LINE = "error: a.json: not valid JSON: expected a value at line 1, column 1\n"


@pytest.mark.parametrize(
    ("ended", "sorts"),
    [
        (Ended(2, "", GOOD_LINE), []),
        (Ended(0, "", ""), []),
        (
            Ended(1, "", "Traceback (most recent call last):\nKeyError: 1\n"),
            ["traceback", "message"],
        ),
        (Ended(1, "", "error: KeyError: 'x' (--debug tells more)\n"), ["traceback"]),
        (Ended(None, "", "", escaped="PanicException: x"), ["traceback", "message"]),
        (Ended(None, "", "", hung=True), ["hang"]),
        (Ended(2, "", "error: a\nUsage: x\n"), ["message"]),
        (Ended(2, "", "error: \x1b[31mred\n"), ["message"]),
        (Ended(2, "", f"error: {'x' * 5000}\n"), ["message"]),
        (Ended(2, "", "error: postgresql://me:hunter2-s3cr3t@host/db\n"), ["message"]),
        (Ended(0, "", "UserWarning: x\n"), ["message"]),
        (Ended(0, "a\u202eb", ""), ["message"]),
        (Ended(137, "", GOOD_LINE), ["traceback"]),
    ],
)
def test_the_judge_sees_what_is_wrong(ended: Ended, sorts: list[str]) -> None:
    assert [fault.sort for fault in judge(ended, {}, {})] == sorts


def test_the_judge_sees_what_is_left_over() -> None:
    before = {"a.json": "1", "b.json": "2"}
    failed, done = Ended(2, "", GOOD_LINE), Ended(0, "", "")

    def left(ended: Ended, after: dict[str, str]) -> list[str]:
        return [fault.words for fault in judge(ended, before, after) if fault.sort == "leftover"]

    assert left(failed, before) == []
    assert left(failed, {**before, "out": "folder"}) == ["new out"]
    assert left(failed, {**before, "a.json": "3"}) == ["changed a.json"]
    assert left(done, {**before, "out": "folder"}) == []
    assert left(done, {**before, ".out.abc": "folder"}) == ["temporary .out.abc"]
    assert left(done, {"a.json": "1"}) == ["gone b.json"]
    ran = judge(done, {}, {f"model/{MARKER}": "1"})
    assert [fault.words for fault in ran] == ["code of a model folder was run"]


# ---------------------------------------------------------------------------- real processes

SAMPLE = [
    ("study", "deep tables"),
    ("study", "name a device"),
    ("corpus", "data.json controls as keys"),
    ("corpus", "data.json.gz cut gzip"),
    ("predictions", "predictions: surrogates"),
    ("checkpoint", "evaluated remote code"),
    ("storage", "status told, tables with strange names"),
    ("command", "('init', 'locked/x')"),
]


@pytest.mark.parametrize(("kind", "name"), SAMPLE)
def test_a_real_process_ends_as_well(
    kind: str, name: str, inputs: list[Hostile], valid: Valid, tmp_path: Path
) -> None:
    (hostile,) = [each for each in inputs if (each.kind, each.name) == (kind, name)]
    hostile.make(tmp_path)
    before = listing(tmp_path)
    ended = process(tmp_path, *hostile.argv)
    assert judge(ended, before, listing(tmp_path)) == []
    assert ended.code in {1, 2} or name == "evaluated remote code"


def test_a_terminal_without_unicode_gets_escapes(valid: Valid, tmp_path: Path) -> None:
    (tmp_path / "漢.txt").write_text("ein Café", encoding="utf-8")
    ended = process(
        tmp_path, "answer", valid.export, "--context", "漢.txt", "--question", "Wo?",
        PYTHONIOENCODING="latin-1",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    refused = process(tmp_path, "check", "漢.txt", PYTHONIOENCODING="latin-1:strict")
    assert refused.code == 2
    assert refused.err.startswith(r"error: \u6f22.txt: is not TOML: ")


def process(folder: Path, *argv: str | Path, **env: str) -> Ended:
    ended = subprocess.run(
        [sys.executable, "-m", "qa_hpo", *map(str, argv)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    out, err = (text.decode("utf-8", "surrogateescape") for text in (ended.stdout, ended.stderr))
    return Ended(ended.returncode, out, err)
