"""Skipped questions and refused sources, each with its message."""
# ruff: noqa: E501 (a table of cases and messages reads best with one case per line)

from __future__ import annotations

import gzip
import json
import time

import pytest
from squad_json import GOOD, HARBOUR, TOWER, qa, rows_of, squad, write

from qa_hpo.errors import CorpusError
from qa_hpo.squad.corpus import Skip, load_corpus

# ---------------------------------------------------------------------------- skips

FINE = qa("fine")
half = "\ud83c"


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (qa("x", answers=[("1742", 30)]), "an answer is not at its offset 30 (it stands once in the context, at 35)"),
        (qa("x", answers=[("e", 0)]), "an answer is not at its offset 0 (it stands 7 times in the context)"),
        (qa("x", answers=[("1743", 30)]), "an answer is not at its offset 30 (it is not in the context)"),
        (qa("x", answers=[("The", 0), ("no", 1)]), "an answer is not at its offset 1 (it is not in the context)"),
        (qa("x", answers=[("The", 1000)]), "an answer is not at its offset 1000 (it stands once in the context, at 0)"),
        (qa("x", answers=[(".", -1)]), "an answer's offset is negative (-1)"),
        (qa("x", answers=[("The", "0")]), "an answer's offset is a string, expected a whole number"),
        (qa("x", answers=[("The", 0.0)]), "an answer's offset is a number, expected a whole number"),
        (qa("x", answers=[("The", False)]), "an answer's offset is a boolean, expected a whole number"),
        (qa("x", answers=[(1742, 35)]), "an answer's text is a number, expected a string"),
        (qa("x", answers=[(None, 35)]), "an answer's text is null, expected a string"),
        (qa("x", answers=[("", 35)]), "an answer's text is empty"),
        (qa("x", answers=[(" ", 3)]), "an answer's text is empty"),
        (qa("x", " \n"), "empty question"),
        (qa("x", None), "question is null, expected a string"),
        (qa("x", ["Which?"]), "question is an array, expected a string"),
        (qa("x", f"Which {half}?"), "question holds half of a surrogate pair"),
        (qa("x", is_impossible=False), "is_impossible is false, but there is no answer"),
        (qa("x", is_impossible="no"), "is_impossible is a string, expected true or false"),
        ({"id": "x", "answers": []}, "no question"),
        ({"id": "x", "question": "Which?"}, "no answers"),
        ({"id": "x", "question": "Which?", "answers": None}, "no answers"),
        ({"id": "x", "question": "Which?", "answers": "The"}, "answers is a string, expected a list"),
        ({"id": "x", "question": "Which?", "answers": ["The"]}, "an answer lacks text or answer_start"),
        ({"id": "x", "question": "Which?", "answers": [{"text": "The"}]}, "an answer lacks text or answer_start"),
        ({"id": "x", "question": "Which?", "answers": {"text": ["The"]}}, "answers need two lists, text and answer_start"),
        ({"id": "x", "question": "Which?", "answers": {"text": ["The"], "answer_start": []}}, "1 answer texts, but 0 offsets"),
    ],
)  # fmt: skip
def test_a_defective_question_is_skipped_with_its_reason(tmp_path, question, reason):
    content = squad(("t", [(HARBOUR, [FINE, question])]))
    corpus = load_corpus(write(tmp_path / "data.json", content), "train")
    assert corpus.ids == ["fine"]
    assert corpus.skipped == (Skip("x", reason),)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (7, "id is a number, expected a string"),
        ("", "empty id"),
        (None, "id is null, expected a string"),
    ],
)
def test_a_question_without_an_id_is_named_by_its_place(tmp_path, name, reason):
    content = squad(("t", [(HARBOUR, [FINE, qa(name)])]))
    corpus = load_corpus(write(tmp_path / "data.json", content), "train")
    assert corpus.skipped == (Skip("data[0].paragraphs[0].qas[1]", reason),)


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ("", "empty context"),
        ("\t ", "empty context"),
        (5, "context is a number, expected a string"),
    ],
)
def test_an_unusable_context_skips_its_questions(tmp_path, context, reason):
    content = squad(("t", [(HARBOUR, [FINE]), (context, [qa("x"), qa("y")])]))
    corpus = load_corpus(write(tmp_path / "data.json", content), "train")
    assert corpus.skipped == (Skip("x", reason), Skip("y", reason))


def test_titles_that_are_no_strings(tmp_path):
    content = squad((None, [(HARBOUR, [FINE])]), (5, [(TOWER, [qa("x")])]))
    corpus = load_corpus(write(tmp_path / "data.json", content), "train")
    assert corpus.titles == [""]
    assert corpus.skipped == (Skip("x", "title is a number, expected a string"),)


def test_plausible_answers_do_not_count(tmp_path):
    content = squad(("t", [(HARBOUR, [qa("x", answers=[("no", 99)], is_impossible=True)])]))
    corpus = load_corpus(write(tmp_path / "data.json", content), "train")
    assert corpus.answers == [()]


def test_rows_are_skipped_too(tmp_path):
    rows = rows_of(GOOD)
    rows[1]["context"] = None
    del rows[2]["id"]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(tmp_path / "data.jsonl", "train")
    assert corpus.skipped == (
        Skip("b", "context is null, expected a string"),
        Skip("line 3", "no id"),
    )


# ---------------------------------------------------------------------------- errors


def refused(path, split="train"):
    """The message about a source, in one line."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(path, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], 'top level: expected an object with the key "data", found an array'),
        ({"version": "2", "rows": []}, 'top level: the key "data" is missing (keys found: version, rows)'),
        ({}, 'top level: the key "data" is missing (keys found: none)'),
        ({"data": {}}, "data: expected an array, found an object"),
        ({"data": [3]}, 'data[0]: expected an object with the key "paragraphs", found a number'),
        ({"data": [{"title": "t"}]}, 'data[0]: the key "paragraphs" is missing (keys found: title)'),
        ({"data": [{"paragraphs": "x"}]}, "data[0].paragraphs: expected an array, found a string"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, 'data[0].paragraphs[0]: the key "context" is missing (keys found: qas)'),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, 'data[0].paragraphs[0]: the key "qas" is missing (keys found: context)'),
        ({"data": [{"paragraphs": [{"context": "x", "qas": None}]}]}, "data[0].paragraphs[0].qas: expected an array, found null"),
        (
            squad(("t", [(HARBOUR, [FINE]), (TOWER, [qa("x"), qa("y"), "z"])])),
            'data[0].paragraphs[1].qas[2]: expected an object with the keys "id", "question" and "answers", found a string',
        ),
    ],
)  # fmt: skip
def test_a_wrong_layout_is_an_error_with_its_place(tmp_path, content, expected):
    path = write(tmp_path / "data.json", content)
    assert refused(path) == f"{path}: {expected}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"data": [', "not valid JSON: Expecting value at line 1, column 11"),
        (b"", "not valid JSON: Expecting value at line 1, column 1"),
        (b'{"a": 1}\n{"a": 2}', "at line 2, column 1 (one object per line? name it .jsonl)"),
        (b"[" * 200_000, "not valid JSON: "),
        (b"1" * 5000, "not valid JSON: Exceeds the limit"),
        ('{"data": "é"}'.encode("latin-1"), "not UTF-8 text (byte 10); save it as UTF-8"),
        ('{"data": []}'.encode("utf-16"), "not UTF-8 text (byte 0); save it as UTF-8"),
    ],
)
def test_malformed_json(tmp_path, content, expected):
    (tmp_path / "data.json").write_bytes(content)
    assert expected in refused(tmp_path / "data.json")


def test_malformed_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(rows_of(GOOD)[0]) + "\n\n{oops\n")
    assert refused(path).startswith(f"{path}: line 3: not valid JSON: Expecting property name")
    path.write_text("[1]\n")
    assert refused(path) == (
        f"{path}: line 1: expected an object with the keys id, question, context, answers, "
        "found an array"
    )


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b'{"data": []}', mtime=0)[:-9]],
    ids=["no gzip", "cut off"],
)
def test_a_damaged_gzip(tmp_path, content):
    (tmp_path / "data.json.gz").write_bytes(content)
    assert "data.json.gz: cannot be read: " in refused(tmp_path / "data.json.gz")


def test_a_parquet_file_that_is_none_or_lacks_columns(tmp_path):
    import datasets

    (tmp_path / "data.parquet").write_bytes(b"PAR1 no")
    assert "data.parquet: cannot be read as Parquet: " in refused(tmp_path / "data.parquet")
    datasets.Dataset.from_list([{"id": "a", "text": "b"}]).to_parquet(tmp_path / "data.parquet")
    assert (
        "the columns question, context, answers are missing (found: id, text); expected id"
        in refused(tmp_path / "data.parquet")
    )


def test_folders(tmp_path):
    import datasets

    assert "not a folder written by save_to_disk; expected a SQuAD-format" in refused(tmp_path)
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows_of(GOOD))}).save_to_disk(
        tmp_path / "d"
    )
    assert refused(tmp_path / "d") == f'{tmp_path / "d"}: has no split "train" (found: test)'
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "state.json").write_text("{")
    assert "not a readable saved dataset: " in refused(tmp_path / "e")


def test_repeated_ids(tmp_path):
    names = ["a", "b", "a", "a", "b", "c"]
    path = write(tmp_path / "d.json", squad(("t", [(HARBOUR, [qa(name) for name in names])])))
    assert refused(path) == (
        f"{path}: 2 question ids stand more than once ('a' 3 times, 'b' 2 times); "
        "each question needs its own id"
    )


def test_nothing_usable(tmp_path):
    path = write(tmp_path / "d.json", squad(("t", [(HARBOUR, [qa("a", ""), qa("b", "")])])))
    assert refused(path) == f"{path}: no usable question (2 left out; the first: a: empty question)"
    assert refused(write(path, {"data": []})) == f"{path}: no usable question (0 left out)"


@pytest.mark.parametrize(
    "source",
    [
        "data/none.json",
        "./none",
        "/no/such",
        "a/b/c",
        "none.jsonl",
        "~/none",
        "~nobody-of-that-name/none.json",
        "a b",
    ],
)
def test_a_path_that_does_not_exist(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refused(source) == f"{source}: no such file or folder (current folder: {tmp_path})"


def test_hostile_names(tmp_path):
    assert "no such file" in refused("a\0b")
    assert "cannot be read" in refused("x" * 5000 + ".json")
    (tmp_path / "data.csv").write_text("id")
    assert "not a kind of file that is read: expected a SQuAD-format .json" in refused(
        tmp_path / "data.csv"
    )


@pytest.mark.parametrize("source", ["squad_v2", "rajpurkar/squad_v2", "org/data-v1.1:plain"])
def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch, source):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    message = refused(source, "validation")
    assert time.monotonic() - began < 10
    name = source.partition(":")[0]
    assert message.startswith(f"{name}: the data set is not in the cache (")
    assert message.endswith(
        "), and HF_HUB_OFFLINE is set: run 'qa-hpo prepare STUDY' where there is a network and "
        "copy HF_HOME from there, or give a file or a folder"
    )
