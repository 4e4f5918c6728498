"""Corpora from every kind of source."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from squad_helpers import TEXTS
from squad_json import GOOD, HARBOUR, TOWER, qa, rows_of, squad, write

from qa_hpo.errors import CorpusError
from qa_hpo.squad.corpus import load_corpus


def write_as(kind, folder, content):
    """The same questions as one kind of source."""
    import datasets

    folder = folder / "it's a [folder] · 数据"
    folder.mkdir()
    rows = rows_of(content)
    text = json.dumps(content).encode()
    path = folder / "data"
    match kind:
        case "json":
            path = write(folder / "data.json", content)
        case "json with BOM":
            path = folder / "data.JSON"
            path.write_bytes(b"\xef\xbb\xbf" + text)
        case "json.gz":
            path = folder / "data.x.json.gz"
            path.write_bytes(gzip.compress(text))
        case "jsonl":
            path = folder / "data.jsonl"
            lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            path.write_text(lines, encoding="utf-8")
        case "rows of SQuAD answers":
            path = folder / "data.jsonl"
            for row in rows:
                columns = row["answers"].values()
                pairs = zip(*columns, strict=True)
                row["answers"] = [{"text": t, "answer_start": s} for t, s in pairs]
            path.write_text("\n".join(map(json.dumps, rows)))
        case "parquet":
            path = folder / "data.parquet"
            datasets.Dataset.from_list(rows).to_parquet(path)
        case "dataset":
            dataset = datasets.Dataset.from_list(rows).add_column("more", [1] * len(rows))
            dataset.with_format("numpy").save_to_disk(path)
        case "dataset dict":
            dataset = datasets.Dataset.from_list(rows)
            datasets.DatasetDict({"validation": dataset}).save_to_disk(path)
    return path


KINDS = [
    "json",
    "json with BOM",
    "json.gz",
    "jsonl",
    "rows of SQuAD answers",
    "parquet",
    "dataset",
    "dataset dict",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_questions_from_every_kind_of_source(tmp_path, capsys, kind):
    path = write_as(kind, tmp_path, GOOD)
    capsys.readouterr()
    corpus = load_corpus(path, "validation")
    assert capsys.readouterr() == ("", "")
    assert corpus.ids == ["a", "b", "c", "d", "e"]
    assert corpus.questions == ["  When?", "How 🌊 high?", "Who?", "Who paid?", "什么?"]
    assert corpus.contexts == [HARBOUR, TOWER, TEXTS[4]]
    assert corpus.context_index.tolist() == [0, 1, 1, 0, 2]
    assert corpus.context_of(3) == HARBOUR
    assert corpus.titles == ["Lindholm", "Zürich"]
    assert corpus.title_index.tolist() == corpus.groups().tolist() == [0, 0, 0, 0, 1]
    assert corpus.answers == [
        (("1742", 35), ("in 1742", 32)),
        (("31", 16),),
        (),
        (),
        (("海港", 0),),
    ]
    assert corpus.has_unanswerable
    assert corpus.skipped == ()
    assert corpus.source == str(path)
    assert len(corpus) == 5
    reference = load_corpus(write(tmp_path / "reference.json", GOOD), "train")
    assert corpus.fingerprint == reference.fingerprint
    assert str(path) in repr(corpus)


def changed(**change):
    content = json.loads(json.dumps(GOOD))
    question = content["data"][0]["paragraphs"][1]["qas"][0]
    for key, value in change.items():
        if key == "title":
            content["data"][1]["title"] = value
        elif key == "context":
            content["data"][0]["paragraphs"][1]["context"] += value
        else:
            question[key] = value
    return content


@pytest.mark.parametrize(
    "content",
    [
        changed(id="B"),
        changed(question="How high? "),
        changed(title="Zurich"),
        changed(context="."),
        changed(answers=[]),
        changed(answers=[{"text": "31 ", "answer_start": 16}]),
        {"data": GOOD["data"][::-1]},
        {"data": GOOD["data"][:1]},
    ],
)
def test_whatever_matters_changes_the_fingerprint(tmp_path, content):
    good = load_corpus(write(tmp_path / "good.json", GOOD), "train")
    other = load_corpus(write(tmp_path / "other.json", content), "train")
    assert other.skipped == ()
    assert other.fingerprint != good.fingerprint


def test_take(tmp_path):
    articles = [
        (
            f"t{a}",
            [(f"{HARBOUR} {a} {p}", [qa(f"{a}-{p}-{q}") for q in range(3)]) for p in range(4)],
        )
        for a in range(5)
    ]
    path = write(tmp_path / "data.json", squad(*articles))
    corpus = load_corpus(path, "train")
    some = corpus.take(20, seed=3)
    numbers = [corpus.ids.index(name) for name in some.ids]
    assert numbers == sorted(set(numbers))
    assert len(some) == 20
    for i, k in enumerate(numbers):
        assert some.context_of(i) == corpus.context_of(k)
        assert some.titles[some.title_index[i]] == corpus.titles[corpus.title_index[k]]
    # Only what is used is there, in the order of its first use: as if it had been loaded so.
    assert some.contexts == list(dict.fromkeys(some.context_of(i) for i in range(20)))
    assert some.titles == list(dict.fromkeys(some.titles[k] for k in some.title_index))
    lines = [row for row in rows_of(squad(*articles)) if row["id"] in some.ids]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load_corpus(tmp_path / "some.jsonl", "train").fingerprint == some.fingerprint

    assert load_corpus(path, "train", limit=20, seed=3).ids == some.ids
    assert corpus.take(20, seed=4).ids != some.ids
    assert corpus.take(60, seed=0) is corpus
    assert corpus.take(61, seed=0) is corpus
    with pytest.raises(CorpusError, match="a limit of 0 questions: expected at least 1"):
        corpus.take(0, seed=0)


def test_groups_are_contexts_where_there_is_one_article(tmp_path):
    rows = rows_of(GOOD, with_title=False)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(tmp_path / "data.jsonl", "train")
    assert corpus.titles == [""]
    np.testing.assert_array_equal(corpus.groups(), corpus.context_index)


# ---------------------------------------------------------------------------- real data


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "questions", "articles"),
    [
        ("squad/dev-16-articles.json", 6078, 16),
        ("squad/dev-v1-13-articles.json", 4557, 13),
        ("xquad/zh.json", 1190, 48),
    ],
)
def test_real_files_are_whole(real_data, file, questions, articles):
    corpus = load_corpus(real_data / file, "validation")
    assert (len(corpus), len(corpus.titles), corpus.skipped) == (questions, articles, ())
