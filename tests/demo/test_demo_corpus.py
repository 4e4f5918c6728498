"""The corpora hold what they promise, proven by the facts from which they are written."""

import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from qa_hpo.demo.articles import holds
from qa_hpo.demo.corpus import CORPORA, generate, to_squad
from qa_hpo.demo.relations import draw, expand
from qa_hpo.demo.world import RELATIONS

NAMES = [spec.name for spec in CORPORA]
SLOT = re.compile(r"[\[\]]|\{(\w)\}")
EVERY = Counter(["s", "a"])
HASH_ALL = """
import hashlib, json
from qa_hpo.demo.corpus import CORPORA, generate, to_squad
articles = generate()
text = json.dumps([to_squad(spec, articles[spec.name]) for spec in CORPORA])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def entries(corpus):
    """Yield (title, context, qa) of every question."""
    for article in corpus["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                yield article["title"], paragraph["context"], qa


def asked(articles):
    """Yield (paragraph, question) of every question, as facts."""
    for article in articles:
        for paragraph, questions in article.paragraphs:
            for question in questions:
                yield paragraph, question


def test_same_files_in_every_process():
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASH_ALL],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_generating_twice_is_the_same(corpora):
    again = generate()
    assert {spec.name: to_squad(spec, again[spec.name]) for spec in CORPORA} == corpora


@pytest.mark.parametrize("spec", CORPORA, ids=NAMES)
def test_official_format(corpora, spec):
    corpus = json.loads(json.dumps(corpora[spec.name]))
    assert corpus["version"] == ("v2.0" if spec.squad2 else "1.1")
    keys = {"id", "question", "answers"} | ({"is_impossible"} if spec.squad2 else set())
    for title, context, qa in entries(corpus):
        assert title
        assert context
        assert qa.keys() == keys
        assert qa["question"].endswith("?")
        assert bool(qa["answers"]) != qa.get("is_impossible", False)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_stands_at_its_offset(corpora, name):
    for _, context, qa in entries(corpora[name]):
        for answer in qa["answers"]:
            start, text = answer["answer_start"], answer["text"]
            assert text
            assert text == text.strip()
            assert context[start : start + len(text)] == text


def test_training_has_one_answer_and_validation_often_more(corpora):
    for name in NAMES:
        counts = Counter(len(qa["answers"]) for _, _, qa in entries(corpora[name]))
        if name.startswith("train"):
            assert max(counts) == 1
        else:
            assert max(counts) <= 3
            assert sum(n for c, n in counts.items() if c > 1) > 60


@pytest.mark.parametrize("spec", CORPORA, ids=NAMES)
def test_share_of_unanswerable_questions(corpora, spec):
    answerless = [not qa["answers"] for _, _, qa in entries(corpora[spec.name])]
    share = sum(answerless) / len(answerless)
    if spec.squad2:
        assert 1 / 3 <= share <= 1 / 2
    else:
        assert share == 0


@pytest.mark.parametrize("name", ["train-v2", "validation-v2"])
def test_an_unanswerable_question_has_no_answer_in_its_context(articles, name):
    for paragraph, question in asked(articles[name]):
        if question.answers:
            continue
        truth = question.entity.values[question.relation.key]
        assert not holds(paragraph.context, truth)
        assert not paragraph.states(question.entity, question.relation)


@pytest.mark.parametrize("name", ["train-v2", "validation-v2"])
def test_unanswerable_questions_are_adversarial(articles, name):
    """Nearly all name an entity or a relation of which the context does speak."""
    hostile = total = 0
    for paragraph, question in asked(articles[name]):
        if question.answers:
            continue
        total += 1
        same_entity = question.entity in paragraph.entities
        same_relation = any(f.relation is question.relation for f in paragraph.facts)
        assert same_entity or same_relation
        hostile += same_relation or any(
            f.relation.answer == question.relation.answer for f in paragraph.facts
        )
    assert hostile / total > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_the_value_of_the_fact_asked_for(articles, name):
    for paragraph, question in asked(articles[name]):
        if not question.answers:
            continue
        truth = question.entity.values[question.relation.key].lower()
        assert any(truth in t.lower() or t.lower() in truth for t, _ in question.answers)
        assert paragraph.states(question.entity, question.relation)


def test_no_entity_is_in_two_corpora(articles, corpora):
    seen = {}
    for name in NAMES:
        for article in articles[name]:
            for paragraph, _ in article.paragraphs:
                for entity in paragraph.entities:
                    assert seen.setdefault(entity.name, (name, article.title)) == (
                        name,
                        article.title,
                    )
    titles = [a["title"] for name in NAMES for a in corpora[name]["data"]]
    assert len(set(titles)) == len(titles)


def test_v1_asks_about_relations_that_v2_lacks(articles):
    def relations(name):
        return {question.relation.name for _, question in asked(articles[name])}

    everything = {relation.name for relation in RELATIONS}
    only = {relation.name for relation in RELATIONS if relation.v1_only}
    assert len(only) >= 8
    assert relations("train-v1") == relations("validation-v1") == everything
    assert relations("train-v2") == relations("validation-v2") == everything - only
    stated = {f.relation.name for p, _ in asked(articles["train-v2"]) for f in p.facts}
    assert only <= stated


def test_sizes(corpora):
    questions = {name: sum(1 for _ in entries(corpora[name])) for name in NAMES}
    assert 1800 <= questions["train-v1"] <= 3000
    assert 1200 <= questions["train-v2"] <= 3000
    assert 400 <= questions["validation-v1"] <= 800
    assert 500 <= questions["validation-v2"] <= 900
    assert sum(len(corpora[name]["data"]) for name in NAMES) >= 500


def test_ids_are_unique(corpora):
    ids = [qa["id"] for name in NAMES for _, _, qa in entries(corpora[name])]
    assert len(set(ids)) == len(ids)


def test_some_names_have_accents(corpora):
    contexts = {context for _, context, _ in entries(corpora["validation-v2"])}
    accented = [c for c in contexts if not c.isascii()]
    assert len(accented) > 50
    assert all(unicodedata.is_normalized("NFC", c) for c in accented)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.name)
def test_wordings_are_well_formed(relation):
    assert len(relation.statements) >= 3
    assert len(relation.questions) >= 2
    rng = random.Random(relation.name)
    for _ in range(40):
        for wording in (expand(rng, w) for w in relation.statements):
            assert Counter(SLOT.findall(wording)) in (EVERY, EVERY | Counter(["d"]))
            assert not wording.endswith(".")
        for wording in (expand(rng, w) for w in relation.questions):
            assert SLOT.findall(wording) == ["s"]


def test_draw_prefers_what_comes_first():
    rng = random.Random(0)
    counts = Counter(draw(rng, "abcd") for _ in range(4000))
    assert [c for c, _ in counts.most_common()] == ["a", "b", "c", "d"]
    assert {draw(rng, "abcd", plain=True) for _ in range(200)} == {"a", "b"}
    assert {expand(rng, "[x|y] of {s}", plain=True) for _ in range(50)} == {"x of {s}"}
