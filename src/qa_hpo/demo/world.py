"""The synthetic world: entities and every fact about them, stated or not.

An entity knows the value of each of its relations, also of those that no paragraph states. That is
what makes an unanswerable question provably unanswerable: its true answer is known, and checked
not to stand in the paragraph.
"""

import random
from dataclasses import dataclass, field

from qa_hpo.demo.lore_places import PLACES
from qa_hpo.demo.lore_society import SOCIETY
from qa_hpo.demo.names import ARTICLE, CLOSED, Names
from qa_hpo.demo.relations import Relation

__all__ = ["RELATIONS", "Entity", "World", "with_article"]

RELATIONS: tuple[Relation, ...] = SOCIETY + PLACES


@dataclass(frozen=True)
class Entity:
    """Something that the corpus speaks of.

    Attributes:
        kind: Such as ``"river"``.
        name: Such as ``"River Velanmond"``.
        pronoun: ``"she"``, ``"he"`` or ``"it"``.
        values: Relation key to true value.
    """

    kind: str
    name: str
    pronoun: str
    values: dict[str, str] = field(hash=False)


def with_article(kind: str, name: str) -> str:
    """Return a name as it stands within a sentence."""
    return f"the {name}" if kind in ARTICLE else name


class World:
    """Makes entities with all their facts.

    Args:
        rng: The source of chance.
        pretraining: Whether this world is for the pretraining text.
    """

    def __init__(self, rng: random.Random, *, pretraining: bool = False) -> None:
        self._rng = rng
        self._names = Names(rng, pretraining=pretraining)

    def entity(self, kind: str) -> Entity:
        """Make a new entity of a kind."""
        name, pronoun = self._names.entity(kind)
        era = self._rng.randint(1650, 1850)
        values: dict[str, str] = {}
        for relation in RELATIONS:
            if relation.kind == kind:
                values[relation.key] = self.value(relation, era=era)
        return Entity(kind, name, pronoun, values)

    def value(self, relation: Relation, *, era: int | None = None) -> str:
        """Draw a value that a relation may have.

        Args:
            relation: The relation.
            era: The year about which the entity came into being; any when omitted.
        """
        rng = self._rng
        if relation.answer == "year":
            start = rng.randint(1650, 1850) if era is None else era
            return str(start + rng.randint(*relation.offset))
        if relation.answer in CLOSED:
            return rng.choice(CLOSED[relation.answer])
        if relation.answer in ("person", "city", "company", "river", "mountain"):
            return self._names.name(relation.answer)
        low, high = relation.values
        return f"{rng.randint(low, high):,} {relation.answer}"
