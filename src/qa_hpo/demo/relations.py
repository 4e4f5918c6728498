"""What can be said and asked about an entity, and how a wording is drawn.

A wording is a string with slots and alternatives::

    "{s} was [founded|established|set up] by {a}"

``{s}`` is the subject, ``{a}`` the answer (exactly once in a statement), ``{d}`` another value of
the answer's type, which is wrong. ``[x|y|z]`` is one of its alternatives. Lists of wordings and of
alternatives are ordered from plain to unusual, and are drawn with Zipf's weights: a few wordings
are frequent, many are rare, as in a language. The pretraining text keeps to the plain half, so that
fine-tuning still has wordings to learn.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Relation", "draw", "expand"]

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Relation:
    """One property of the entities of one kind.

    Attributes:
        kind: The kind of entity that has it, such as ``"company"``.
        key: Its name, unique within the kind.
        answer: The type of its value: a kind, a closed list, ``"year"``, ``"date"`` or a unit.
        topic: A noun phrase for it, as in "the founder of ...".
        statements: Wordings that state it: no capital at the start, no full stop.
        questions: Wordings that ask for it.
        v1_only: Whether only the SQuAD 1.1-format corpus asks about it.
        pretrained: Whether the pretraining text speaks of it.
        offset: For years: the first and last year that are possible, from the entity's own era.
        values: For quantities: the smallest and the largest.
    """

    kind: str
    key: str
    answer: str
    topic: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    v1_only: bool = False
    pretrained: bool = True
    offset: tuple[int, int] = (0, 60)
    values: tuple[int, int] = (12, 980)

    @property
    def name(self) -> str:
        """The name that is unique among all relations, such as ``"company.founder"``."""
        return f"{self.kind}.{self.key}"


def draw(
    rng: random.Random, options: Sequence[str], *, plain: bool = False, tail: float = 1.0
) -> str:
    """Draw one option, the earlier the likelier.

    Args:
        rng: The source of chance.
        options: From plain to unusual.
        plain: Keep to the first half.
        tail: Zipf's exponent: the larger, the rarer is what comes late.
    """
    if plain:
        options = options[: (len(options) + 1) // 2]
    weights = accumulate((rank + 1.5) ** -tail for rank in range(len(options)))
    return rng.choices(options, cum_weights=list(weights))[0]


def expand(rng: random.Random, wording: str, *, plain: bool = False, tail: float = 1.0) -> str:
    """Replace every ``[x|y|z]`` of a wording with one of its alternatives."""
    return _ALTERNATIVES.sub(lambda m: draw(rng, m[1].split("|"), plain=plain, tail=tail), wording)
