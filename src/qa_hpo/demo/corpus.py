"""The demo's corpora in the official SQuAD formats.

Two corpora are written about different entities of one invented world. The 1.1-format corpus asks
about every relation, and all its questions have an answer. The 2.0-format corpus never asks about
the relations marked ``v1_only``, although its contexts speak of them; and close to half of its
questions have no answer in the context, which then speaks of the same entity with another relation,
or of the same relation with another entity.
"""

import random
from dataclasses import dataclass
from typing import Any

from qa_hpo.demo.articles import Paragraph, Style, compose, gold_answers, holds, question
from qa_hpo.demo.names import KINDS
from qa_hpo.demo.relations import Relation
from qa_hpo.demo.world import RELATIONS, Entity, World

__all__ = ["CORPORA", "Article", "CorpusSpec", "Question", "generate", "questions_of", "to_squad"]


@dataclass(frozen=True)
class CorpusSpec:
    """What one file holds.

    Attributes:
        name: The file's stem, and the prefix of its question ids.
        articles: How many.
        unanswerable: The probability that a question has no answer in its context.
        validation: Whether answers come with all the spans that readers would mark.
    """

    name: str
    articles: int
    unanswerable: float
    validation: bool

    @property
    def squad2(self) -> bool:
        """Whether this is a corpus of the SQuAD 2.0 format."""
        return self.unanswerable > 0


@dataclass(frozen=True)
class Question:
    """A question with the truth about it: ``answers`` is empty where the context has none."""

    text: str
    entity: Entity
    relation: Relation
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Article:
    """An article: its title, and its paragraphs with their questions."""

    title: str
    paragraphs: list[tuple[Paragraph, list[Question]]]


# Sizes are chosen for two CPU cores: one epoch is a matter of seconds.
CORPORA = (
    CorpusSpec("train-v1", 330, 0.0, validation=False),
    CorpusSpec("validation-v1", 70, 0.0, validation=True),
    CorpusSpec("train-v2", 260, 0.42, validation=False),
    CorpusSpec("validation-v2", 80, 0.42, validation=True),
)
_SEED = "qa-hpo demo 1"
_STYLE = Style(tail=1.5, facts=(2, 5))
_PER_PARAGRAPH = (3, 5)
_PARAGRAPHS = (1, 3)


def _answerable(rng: random.Random, spec: CorpusSpec, paragraph: Paragraph) -> Question | None:
    facts = [f for f in paragraph.facts if not (spec.squad2 and f.relation.v1_only)]
    if not facts:
        return None
    fact = rng.choice(facts)
    answers = gold_answers(paragraph.context, fact)
    if not spec.validation:
        # One reader marked each training answer, and readers differ a little.
        answers = [answers[0] if rng.random() < 0.9 else rng.choice(answers)]
    return Question(
        question(rng, fact.entity, fact.relation, _STYLE),
        fact.entity,
        fact.relation,
        tuple(answers),
    )


def _core(relation: Relation, value: str) -> str:
    """Return the part of a value that alone would answer: a surname, or a number."""
    if relation.answer == "person":
        return value.rsplit(maxsplit=1)[-1]
    return value.split(maxsplit=1)[0] if value[0].isdigit() else value


def _unanswerable(rng: random.Random, paragraph: Paragraph, stranger: Entity) -> Question | None:
    """Ask what the paragraph does not say, preferring what it seems to say."""
    stated = [f.relation for f in paragraph.facts]
    types = [r.answer for r in stated]
    options: list[tuple[Entity, Relation]] = []
    weights: list[float] = []
    for entity in (*paragraph.entities, stranger):
        for relation in RELATIONS:
            if relation.kind != entity.kind or relation.v1_only:
                continue
            if paragraph.states(entity, relation):
                continue
            if holds(paragraph.context, _core(relation, entity.values[relation.key])):
                continue
            if entity is stranger and relation not in stated:
                continue
            options.append((entity, relation))
            denied = (entity.name, relation.name) in paragraph.denied
            weight = 1 + 4 * (relation in stated or denied) + 2 * (relation.answer in types)
            # A question about someone else altogether gives itself away: keep them few.
            weights.append(0.25 * weight if entity is stranger else weight)
    if not options:
        return None
    entity, relation = rng.choices(options, weights)[0]
    return Question(question(rng, entity, relation, _STYLE), entity, relation, ())


def questions_of(
    rng: random.Random, spec: CorpusSpec, paragraph: Paragraph, stranger: Entity
) -> list[Question]:
    """Ask a few different questions about a paragraph.

    Args:
        rng: The source of chance.
        spec: The corpus for which they are meant.
        paragraph: The paragraph.
        stranger: An entity of the same kind, of which the paragraph does not speak.
    """
    asked: dict[tuple[str, str], Question] = {}
    for _ in range(rng.randint(*_PER_PARAGRAPH)):
        if rng.random() < spec.unanswerable:
            candidate = _unanswerable(rng, paragraph, stranger)
        else:
            candidate = _answerable(rng, spec, paragraph)
        if candidate is not None:
            asked.setdefault((candidate.entity.name, candidate.relation.name), candidate)
    return list(asked.values())


def generate() -> dict[str, list[Article]]:
    """Generate the articles of every corpus, by the corpus's name.

    All entities come from one world, so that no two articles, in whichever corpus, share one.
    """
    world = World(random.Random(_SEED))
    corpora: dict[str, list[Article]] = {}
    for spec in CORPORA:
        rng = random.Random(f"{_SEED} {spec.name}")
        corpora[spec.name] = [
            _article(rng, world, spec, KINDS[number % len(KINDS)])
            for number in range(spec.articles)
        ]
    return corpora


def _article(rng: random.Random, world: World, spec: CorpusSpec, kind: str) -> Article:
    """Write an article about a new entity, each paragraph against another rival."""
    subject = world.entity(kind)
    paragraphs = []
    for _ in range(rng.randint(*_PARAGRAPHS)):
        rival, stranger = world.entity(kind), world.entity(kind)
        paragraph = compose(rng, world, [subject, rival], _STYLE)
        paragraphs.append((paragraph, questions_of(rng, spec, paragraph, stranger)))
    return Article(subject.name, paragraphs)


def to_squad(spec: CorpusSpec, articles: list[Article]) -> dict[str, Any]:
    """Return a corpus in the nesting of the official SQuAD files."""
    data = []
    for a, article in enumerate(articles):
        paragraphs = []
        for p, (paragraph, questions) in enumerate(article.paragraphs):
            qas = []
            for q, asked in enumerate(questions):
                entry: dict[str, Any] = {
                    "id": f"{spec.name}-{a:03d}-{p}-{q}",
                    "question": asked.text,
                    "answers": [{"text": t, "answer_start": s} for t, s in asked.answers],
                }
                if spec.squad2:
                    entry["is_impossible"] = not asked.answers
                qas.append(entry)
            paragraphs.append({"context": paragraph.context, "qas": qas})
        data.append({"title": article.title, "paragraphs": paragraphs})
    return {"version": "v2.0" if spec.squad2 else "1.1", "data": data}
