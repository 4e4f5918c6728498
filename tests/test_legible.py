"""What is shown on a terminal: one line, of a length, without secrets and escapes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qa_hpo.errors import CorpusError, StudyFileError
from qa_hpo.legible import LONGEST, legible, mask


@given(st.text(st.characters()) | st.text("\x1b\x9b\r\n\u2028\u202e\ud800 a", min_size=5))
def test_any_text_becomes_one_line_that_can_be_printed(text: str) -> None:
    line = legible(text)
    assert len(line.splitlines()) <= 1
    assert len(line) <= LONGEST
    line.encode()
    assert not set(line) & {"\x00", "\x07", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.json: q1: no answer", "a.json: q1: no answer"),
        ("first\n  second\r\nthird\n", "first second third"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("fdp.\u202eexe", r"fdp.\u202eexe"),
        ("half \ud83d", r"half \ud83d"),
        ("日本語 – ünï 👩‍🚀", "日本語 – ünï 👩‍🚀"),
        ("at postgresql://me:a:b@c@host/db, no", "at postgresql://me:***@host/db, no"),
        ("mysql://me@server:hunter2@host/db", "mysql://me@server:***@host/db"),
        (f"postgresql://me:{'hunter2' * 500}@host/db", "postgresql://me:***@host/db"),
        ("at postgresql://me@host/db, no", "at postgresql://me@host/db, no"),
        ("http://s3cret@host/x does not", "http://***@host/x does not"),
        ("HTTPS://s3cret@host:80 and http://a.b/c@d", "HTTPS://***@host:80 and http://a.b/c@d"),
    ],
)
def test_examples(text: str, line: str) -> None:
    assert legible(text) == line


def test_beginning_and_end_of_what_is_long_are_kept() -> None:
    line = legible("data.json: " + "x" * 5_000_000 + ": expected a string")
    assert line.startswith("data.json: xxx")
    assert line.endswith("xxx: expected a string")
    assert len(line) == LONGEST


def test_a_password_is_not_cut_out_of_its_url() -> None:
    for before in (550, 590, 600, 19_990, 20_000):
        shown = legible("y" * before + " postgresql://me:hunter2@host/db " + "z" * 30_000)
        assert "hunter2" not in shown


def test_masking_takes_no_time_for_what_looks_like_urls() -> None:
    began = time.process_time()
    mask("://a:" * 4000)
    mask("http://a" * 4000)
    assert time.process_time() - began < 5


def test_mistakes_of_a_study_file_are_a_line_each_and_not_too_many() -> None:
    assert StudyFileError("a: one\na: two").lines == ["a: one", "a: two"]
    lines = StudyFileError("\n".join(f"a: {n}" for n in range(5000))).lines
    assert len(lines) == 20
    assert lines[-2:] == ["a: 18", "and 4,981 more mistakes"]
    assert CorpusError("a\nb").lines == ["a b"]
