"""Paragraphs made of facts, and the questions about them."""

import random
import re
from dataclasses import dataclass, field

from qa_hpo.demo.names import ARTICLE, CLOSED, NOUN_PHRASE
from qa_hpo.demo.relations import Relation, draw, expand
from qa_hpo.demo.world import RELATIONS, Entity, World, with_article

__all__ = [
    "Fact",
    "Paragraph",
    "Sentence",
    "Style",
    "compose",
    "gold_answers",
    "holds",
    "question",
    "statement",
]

_COLOUR = (
    "{s} [is|was] a favourite of [painters|schoolchildren|travellers]",
    "much has been [said|written] about {s}",
    "few [visitors|strangers] know the name of {s}",
    "there are two songs about {s}",
    "{s} [appears|is shown] on an old stamp",
    "opinions about {s} [differ|are divided]",
    "local [guides|teachers] like to speak of {s}",
    "a small [exhibition|street|club] is named after {s}",
    "letters that mention {s} are kept in the state archive",
)
_DENIALS = (
    "the {t} of {s} is [unknown|disputed]",
    "[no record|no source] [names|gives] the {t} of {s}",
    "the {t} of {s} is [not mentioned in the archives|still a riddle]",
    "about the {t} of {s}, the [archives|chronicles] are silent",
)
_LEADS = ("by most accounts, ", "as far as is known, ", "according to the chronicle, ")
_JOINTS = (", while ", ", and ", ", whereas ")
_HEDGES = ("about", "nearly", "some")


@dataclass(frozen=True)
class Style:
    """How a text is written; a number is a probability, unless it says otherwise.

    Attributes:
        plain: Keep to the plain half of the wordings.
        pronouns: A later mention of an entity is a pronoun or a noun phrase.
        joins: Two sentences about different entities become one.
        denials: The paragraph says that something is unknown.
        colour: A sentence without a fact stands in between.
        overlap: A fact of the first entity has its counterpart about the second.
        tail: Zipf's exponent for the wordings.
        facts: The fewest and the most facts about an entity.
    """

    plain: bool = False
    pronouns: float = 0.5
    joins: float = 0.25
    denials: float = 0.3
    colour: float = 0.6
    overlap: float = 0.6
    tail: float = 1.0
    facts: tuple[int, int] = (2, 4)


@dataclass(frozen=True)
class Fact:
    """A fact that a paragraph states: its value is ``context[start:start + len(text)]``."""

    entity: Entity
    relation: Relation
    start: int
    text: str


@dataclass
class Paragraph:
    """A context with what it states.

    Attributes:
        context: The text.
        entities: Those that it is about.
        facts: Those that it states.
        denied: Names of (entity, relation) of which it says that they are unknown.
        topics: Start, end and entity of each sentence.
    """

    context: str = ""
    entities: list[Entity] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    denied: list[tuple[str, str]] = field(default_factory=list)
    topics: list[tuple[int, int, Entity]] = field(default_factory=list)

    def states(self, entity: Entity, relation: Relation) -> bool:
        """Say whether the paragraph states this fact."""
        return any(f.entity.name == entity.name and f.relation is relation for f in self.facts)


@dataclass
class Sentence:
    """A sentence in the making, without capital and full stop, and its answer's place in it."""

    text: str
    entity: Entity
    relation: Relation | None = None
    start: int = 0
    end: int = 0


def holds(context: str, text: str) -> bool:
    """Say whether a text stands in a context as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", context, re.IGNORECASE) is not None


def _mention(rng: random.Random, entity: Entity, wording: str, *, again: bool, style: Style) -> str:
    """Put a mention of the entity into a wording that still holds ``{a}``."""
    full = with_article(entity.kind, entity.name)
    if again and rng.random() < style.pronouns:
        if wording.startswith("{s} ") and rng.random() < 0.6:
            return entity.pronoun + wording.removeprefix("{s}")
        full = NOUN_PHRASE.get(entity.kind, entity.name.split()[-1])
    return wording.replace("{s}", full)


def _wording(rng: random.Random, wordings: tuple[str, ...], style: Style) -> str:
    """Draw a wording, slots and all."""
    wording = draw(rng, wordings, plain=style.plain, tail=style.tail)
    return expand(rng, wording, plain=style.plain, tail=style.tail)


def statement(
    rng: random.Random,
    world: World,
    entity: Entity,
    relation: Relation,
    style: Style,
    *,
    again: bool = False,
) -> Sentence:
    """Word one fact.

    Args:
        rng: The source of chance.
        world: Where wrong values come from.
        entity: What it is about.
        relation: What it says.
        style: How it is worded.
        again: Whether the sentence before it is about the same entity.
    """
    value = entity.values[relation.key]
    wording = _wording(rng, relation.statements, style)
    text = _mention(rng, entity, wording, again=again, style=style)
    if "{d}" in text:
        wrong = value
        while wrong == value:
            wrong = world.value(relation)
        text = text.replace("{d}", with_article(relation.answer, wrong))
    before, after = text.split("{a}")
    if relation.answer in ARTICLE:
        before += "the "
    elif value[0].isdigit() and relation.answer != "year" and rng.random() < 0.3:
        before += rng.choice(_HEDGES) + " "
    if not again and rng.random() < 0.1:
        before = rng.choice(_LEADS) + before
    start, end = len(before), len(before) + len(value)
    return Sentence(before + value + after, entity, relation, start, end)


def _plan(rng: random.Random, entities: list[Entity], style: Style) -> list[list[Relation]]:
    """Choose what is said about the first entity and about each that it is set against."""
    known = [
        r for r in RELATIONS if r.kind == entities[0].kind and (r.pretrained or not style.plain)
    ]
    first = rng.sample(known, rng.randint(*style.facts))
    plans = [first]
    for _ in entities[1:]:
        shared = [r for r in first if rng.random() < style.overlap]
        rest = [r for r in known if r not in first]
        extra = max(0, rng.randint(*style.facts) - 1 - len(shared))
        plan = shared + rng.sample(rest, min(extra, len(rest)))
        rng.shuffle(plan)
        plans.append(plan or rng.sample(known, 1))
    return plans


def _sentences(
    rng: random.Random, world: World, entities: list[Entity], style: Style
) -> list[Sentence]:
    """Word the facts, entity by entity; the first may come back at the end."""
    plans = _plan(rng, entities, style)
    late = plans[0].pop() if len(plans[0]) > 2 and len(plans) > 1 and rng.random() < 0.4 else None
    sentences = []
    for entity, plan in zip(entities, plans, strict=True):
        for rank, relation in enumerate(plan):
            sentences.append(statement(rng, world, entity, relation, style, again=rank > 0))
    if late is not None:
        sentences.append(statement(rng, world, entities[0], late, style, again=False))
    return sentences


def _insert(rng: random.Random, sentences: list[Sentence], entity: Entity, wording: str) -> None:
    """Put a sentence without a fact after the entity's own, where no pronoun follows."""
    places = [
        i + 1
        for i, s in enumerate(sentences)
        if s.entity is entity and (i + 1 == len(sentences) or sentences[i + 1].entity is not entity)
    ]
    text = expand(rng, wording).replace("{s}", with_article(entity.kind, entity.name))
    sentences.insert(rng.choice(places), Sentence(text, entity))


def _assemble(
    rng: random.Random, paragraph: Paragraph, sentences: list[Sentence], style: Style
) -> None:
    """Join the sentences to a text and record where each fact's value stands."""
    text = ""
    for i, sentence in enumerate(sentences):
        joint = ". "
        if i and sentences[i - 1].entity is not sentence.entity and rng.random() < style.joins:
            joint = rng.choice(_JOINTS)
        body = sentence.text
        if i == 0 or joint == ". ":
            body = body[0].upper() + body[1:]
        if i:
            text += joint
        offset, text = len(text), text + body
        paragraph.topics.append((offset, len(text), sentence.entity))
        if sentence.relation is not None:
            start, end = offset + sentence.start, offset + sentence.end
            paragraph.facts.append(Fact(sentence.entity, sentence.relation, start, text[start:end]))
    paragraph.context = text + "."


def compose(rng: random.Random, world: World, entities: list[Entity], style: Style) -> Paragraph:
    """Write a paragraph about entities of one kind.

    Args:
        rng: The source of chance.
        world: Where wrong values come from.
        entities: The subject, and those that it is set against.
        style: How it is written.
    """
    paragraph = Paragraph(entities=list(entities))
    sentences = _sentences(rng, world, entities, style)
    if rng.random() < style.denials:
        entity = rng.choice(entities)
        stated = {s.relation.key for s in sentences if s.entity is entity and s.relation}
        free = [r for r in RELATIONS if r.kind == entity.kind and r.key not in stated]
        if free:
            relation = rng.choice(free)
            _insert(rng, sentences, entity, rng.choice(_DENIALS).replace("{t}", relation.topic))
            paragraph.denied.append((entity.name, relation.name))
    if rng.random() < style.colour:
        _insert(rng, sentences, rng.choice(entities), rng.choice(_COLOUR))
    _assemble(rng, paragraph, sentences, style)
    return paragraph


def question(rng: random.Random, entity: Entity, relation: Relation, style: Style) -> str:
    """Ask for a relation of an entity."""
    wording = _wording(rng, relation.questions, style)
    return wording.replace("{s}", with_article(entity.kind, entity.name))


def gold_answers(context: str, fact: Fact) -> list[tuple[str, int]]:
    """Return the spans, with their starts, that readers would mark for a fact; the usual first."""
    start, end = fact.start, fact.start + len(fact.text)
    spans = [(start, end)]
    kind = fact.relation.answer
    before = context[:start].rsplit(" ", 2)
    previous = before[-2] if len(before) > 1 else ""
    if kind == "person":
        spans.append((context.rindex(" ", start, end) + 1, end))
    elif kind in ARTICLE or previous.lower() in _HEDGES:
        spans.append((start - len(previous) - 1, end))
    if kind not in CLOSED and fact.text[0].isdigit() and " " in fact.text:
        spans.append((start, context.index(" ", start)))
    return [(context[a:b], a) for a, b in spans]
