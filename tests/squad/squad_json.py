"""SQuAD-format content for tests."""

from __future__ import annotations

import json

from squad_helpers import TEXTS

HARBOUR, TOWER = TEXTS[0], TEXTS[1]


def qa(name, question="Which?", answers=(), **more):
    return {
        "id": name,
        "question": question,
        "answers": [{"text": text, "answer_start": at} for text, at in answers],
        **more,
    }


def squad(*articles):
    """SQuAD JSON from (title, [(context, [qa, ...]), ...])."""
    return {
        "version": "v2.0",
        "data": [
            {
                "title": title,
                "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs],
            }
            for title, paragraphs in articles
        ],
    }


GOOD = squad(
    (
        "Lindholm",
        [
            (HARBOUR, [qa("a", "  When?", [("1742", 35), ("in 1742", 32)], is_impossible=False)]),
            (TOWER, [qa("b", "How 🌊 high?", [("31", 16)]), qa("c", "Who?")]),
            (HARBOUR, [qa("d", "Who paid?", is_impossible=True)]),
        ],
    ),
    ("Zürich", [(TEXTS[4], [qa("e", "什么?", [("海港", 0)])])]),
)


def rows_of(content, *, with_title=True):
    rows = []
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question["answers"]
                row = {
                    "id": question["id"],
                    "question": question["question"],
                    "context": paragraph["context"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }
                rows.append(row | ({"title": article["title"]} if with_title else {}))
    return rows


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
