"""What a configuration says about retention methods: where they apply, and what they need."""

from collections.abc import Iterable, Mapping, Sequence

from qa_hpo.parameters import RANKED, STRENGTHS, Dimension, Retention, Scalar
from qa_hpo.sections import Data, Recipe, Start
from qa_hpo.validation import PlacedError, nearest

__all__ = [
    "METHOD",
    "NEEDS_OLD_DATA",
    "check_need",
    "check_strengths",
    "implied_condition",
    "old_training",
    "searched_methods",
]

METHOD = "retention.method"

NEEDS_OLD_DATA = ("ewc", "mask", "replay", "distill")
"""The methods that look at the old task's training questions."""


def searched_methods(search: Mapping[str, Dimension], fixed: Retention) -> tuple[str, ...]:
    """Return the methods that a trial of a study may have.

    Args:
        search: What is searched.
        fixed: What a trial has where the search does not say.
    """
    dimension = search.get(METHOD)
    if dimension is None:
        return (fixed.method,)
    own = tuple(str(value) for value in dimension.values())
    return own if dimension.when is None else tuple(dict.fromkeys([*own, fixed.method]))


def implied_condition(
    name: str, search: Mapping[str, Dimension], fixed: Retention
) -> dict[str, Scalar | list[Scalar]] | None:
    """Return where a strength or a rank applies: where the method has one.

    Args:
        name: The dimension: ``retention.strength``, ``retention.strength.ewc``, …
        search: What is searched.
        fixed: What a trial has where the search does not say.

    Raises:
        PlacedError: No trial would have it.
    """
    _, _, key = name.partition(".")
    key, _, only = key.partition(".")
    having: Sequence[str] = RANKED if key == "rank" else tuple(STRENGTHS)
    where = f"search.{name}"
    if only and only not in having:
        raise PlacedError(where, f"no method of that name has a {key}; {nearest(only, having)}")
    methods = searched_methods(search, fixed)
    meant = [method for method in methods if method in having and only in ("", method)]
    if not meant:
        raise PlacedError(
            where, f"no trial has a method with it; search retention.method: {', '.join(having)}"
        )
    if METHOD not in search:
        return None
    condition: list[Scalar] = [*meant]
    return {METHOD: condition}


def check_strengths(name: str, dimension: Dimension) -> None:
    """Check that a strength without a method in its name is one of each method it is for.

    Raises:
        PlacedError: Several methods share a range which means something else for each of them, or
            one of them cannot take a value.
    """
    methods = (dimension.when or {}).get(METHOD, [])
    for method in methods if isinstance(methods, list) else [methods]:
        for value in dimension.values():
            try:
                Retention.model_validate({"method": method, "strength": value})
            except ValueError:
                raise PlacedError(
                    f"search.{name}",
                    f"{value} is no strength of {method}, which is a share; give each method its "
                    f"own: search.{name}.{method}",
                ) from None


def old_training(
    data: Data, starts: Mapping[str, Start], lineage: Iterable[str]
) -> tuple[str, int | None] | None:
    """Return the training questions of what a start has learnt before, and their limit.

    Args:
        data: Names them, or else they are those of the nearest recipe with others than ``train``.
        starts: The starts.
        lineage: The start and those that it is built from.

    Returns:
        None where none are known.
    """
    if data.old_task is not None:
        return data.old_task, data.old_task_limit
    for name in lineage:
        start = starts[name]
        if isinstance(start, Recipe) and start.train != data.train:
            return start.train, start.train_limit
    return None


def check_need(where: str, method: str, start: str, known: bool, recipe: bool) -> None:
    """Check that a method has what it needs of a start.

    Args:
        where: The place that names the method.
        method: The method.
        start: The start's name.
        known: Whether the old task's training questions are known.
        recipe: Whether the start is built by a recipe.

    Raises:
        PlacedError: It has not.
    """
    if method in NEEDS_OLD_DATA and not known:
        raise PlacedError(
            where,
            f"{method!r} needs the training questions of what start {start!r} has learnt before; "
            f'give data.old_task, or another start: when = {{ start = "…" }}',
        )
    if method == "si" and not recipe:
        raise PlacedError(
            where,
            f"'si' needs a start that a recipe builds, which {start!r} is not; choose another "
            'start: when = { start = "…" }',
        )
