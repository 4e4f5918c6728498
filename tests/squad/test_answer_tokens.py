"""Answers compared by characters: values worked out by hand from the rules of CMRC 2018."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from qa_hpo.arguments import Tokens
from qa_hpo.sections import Evaluation
from qa_hpo.squad.answer_tokens import AnswerTokens, answer_tokens
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.metric import SquadMetric
from qa_hpo.squad.predictions import score_predictions_file
from qa_hpo.squad.scoring import corpus_metrics, exact_match, score_texts, token_f1
from qa_hpo.squad.spans import Predictions


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("北京大学", ["北", "京", "大", "学"]),
        ("《红楼梦》，1791年。", ["红", "楼", "梦", "1791", "年"]),
        ("使用iPhone 7手机", ["使", "用", "iphone", "7", "手", "机"]),
        ("2-3次……（约）", ["23", "次", "约"]),  # marks within a run join it
        ("１２＋３～４", ["１２３４"]),  # of full width: digits stay, marks go
        ("さくらとサクラー", list("さくらとサクラー")),
        ("𠮷野家々", ["𠮷", "野", "家", "々"]),  # beyond 16 bits, and the mark of repetition
        ("the Tower, a mill", ["the", "tower", "a", "mill"]),  # articles count
        ("서울 대학교", ["서울", "대학교"]),  # Korean has spaces
        ("ميناء قديم؟", ["ميناء", "قديم"]),
        ("👩‍👩‍👧 家", ["👩‍👩‍👧", "家"]),
        ("？！、", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert list(answer_tokens(text, "characters")) == tokens


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("北京大学", "北京大学", 1, 1),
        ("“北京大学”。", "北京大学", 1, 1),
        # Four of six, four of four: 2 * 4/6 / (4/6 + 1).
        ("在北京大学里", "北京大学", 0, 0.8),
        # 甲乙 and 丁 are in both, but the longest run is 甲乙: 2 of 4 and 2 of 3.
        ("甲乙丙丁", "甲乙丁", 0, 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        # The same characters the other way round share runs of one: 1 of 2 each.
        ("京北", "北京", 0, 0.5),
        ("1791年", "1792年", 0, 0.5),
        ("北京", "上海", 0, 0),
        ("", "上海", 0, 0),
        ("。", "", 1, 1),
    ],
)
def test_f1_and_exact(prediction: str, gold: str, exact: float, f1: float) -> None:
    assert exact_match(prediction, gold, "characters") == exact
    assert token_f1(prediction, gold, "characters") == pytest.approx(f1)


def test_a_character_too_many_costs_all_by_words_and_little_by_characters() -> None:
    assert token_f1("在北京大学", "北京大学") == 0
    assert token_f1("在北京大学", "北京大学", "characters") == pytest.approx(8 / 9)
    # English by words: order is free, articles go.
    assert token_f1("the tower of adela", "adela tower") == pytest.approx(0.8)


def test_everyone_has_the_same_choices() -> None:
    choices = get_args(AnswerTokens)
    assert choices == get_args(Tokens)
    assert choices == get_args(Evaluation.model_fields["tokens"].annotation)
    assert Evaluation().tokens == choices[0] == "words"


CONTEXT = "他一八九八年在北京大学读书，后来去了上海。"


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    """Two answered questions and one without an answer."""
    qas = [
        {"id": "where", "question": "他在哪里读书？", "answers": [
            {"text": "北京大学", "answer_start": CONTEXT.index("北京大学")}
        ]},
        {"id": "then", "question": "后来呢？", "answers": [
            {"text": "上海", "answer_start": CONTEXT.index("上海")}
        ]},
        {"id": "who", "question": "谁？", "answers": [], "is_impossible": True},
    ]  # fmt: skip
    paragraph = {"context": CONTEXT, "qas": qas}
    corpus = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    path = tmp_path / "chinese.json"
    path.write_text(json.dumps(corpus), encoding="utf-8")
    return path


# 在北京大学 for 北京大学: 8/9; 上海。 for 上海: 1; nothing for nothing: 1.
ANSWERS = {"where": "在北京大学", "then": "上海。", "who": ""}
BY_CHARACTERS = {"f1": 100 * (8 / 9 + 1 + 1) / 3, "exact": 100 * 2 / 3}
BY_WORDS = {"f1": 100 / 3, "exact": 100 / 3}


@pytest.mark.parametrize(
    ("tokens", "expected"), [("characters", BY_CHARACTERS), ("words", BY_WORDS)]
)
def test_wherever_answers_are_scored(
    chinese: Path, tmp_path: Path, tokens: AnswerTokens, expected: dict[str, float]
) -> None:
    corpus = load_corpus(str(chinese), "validation")
    texts = [ANSWERS[name] for name in corpus.ids]
    margins = np.array([-2.0, -1.0, 3.0])

    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(ANSWERS), encoding="utf-8")
    nulls = tmp_path / "null.json"
    nulls.write_text(json.dumps(dict(zip(corpus.ids, margins.tolist(), strict=True))))
    for null_scores in (None, nulls):
        found = score_predictions_file(corpus, file, null_scores, tokens)
        assert {name: found[name] for name in expected} == pytest.approx(expected)

    swept = corpus_metrics(score_texts(corpus, texts, margins, tokens))
    assert {name: swept[name] for name in expected} == pytest.approx(expected)
    # By words, 在北京大学 is worth nothing whatever the threshold; by characters both are.
    assert swept["best_f1"] == pytest.approx(expected["f1"])

    starts = [CONTEXT.index(text) if text else 0 for text in texts]
    ends = [start + len(text) for start, text in zip(starts, texts, strict=True)]
    zeros = np.zeros(3)
    spans = Predictions(np.array(starts), np.array(ends), zeros, margins)
    answered = Answered.of(corpus, spans, tokens)
    assert 100 * answered.f1.mean() == pytest.approx(expected["f1"])
    assert Answered.from_bytes(answered.to_bytes()).f1.tolist() == answered.f1.tolist()

    predictions = [
        {"id": name, "prediction_text": text, "no_answer_probability": float(not text)}
        for name, text in ANSWERS.items()
    ]
    references = [
        {"id": name, "answers": {
            "text": [text for text, _ in golds], "answer_start": [at for _, at in golds]
        }}
        for name, golds in zip(corpus.ids, corpus.answers, strict=True)
    ]  # fmt: skip
    metric = SquadMetric("squad_v2", tokens=tokens)
    found = metric.compute(predictions=predictions, references=references)
    assert found is not None
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    first = SquadMetric("squad", tokens=tokens)
    for kept in (predictions, references):
        kept.pop()
        for entry in kept:
            entry.pop("no_answer_probability", None)
    found = first.compute(predictions=predictions, references=references)
    assert found is not None
    assert found["f1"] == pytest.approx(100 * (8 / 9 + 1) / 2 if tokens == "characters" else 0)


def test_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens is 'letters': expected 'words' or 'characters'"):
        SquadMetric("squad_v2", tokens="letters")  # type: ignore[arg-type]
