"""The search space: the study file's ``[search]`` as Optuna's distributions, and back."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from qa_hpo.config import StudyFile
from qa_hpo.errors import StudyFileError
from qa_hpo.parameters import (
    Dimension,
    Parameters,
    Scalar,
    checked,
    is_whole,
    parameter_of,
)

__all__ = ["SearchSpace"]


class SearchSpace:
    """What a study searches.

    A parameter is *searched* when the file gives it a range or choices, *fixed* when it gives
    one value, and has the study's default otherwise. A conditional parameter (``when``) counts
    only where its condition holds, that is where every parameter named has the value, or one of
    the values, given; elsewhere it has the default. ``retention.strength.ewc``, say, sets
    ``retention.strength`` where the method is ``ewc``.

    Args:
        study: The validated study file.

    Attributes:
        distributions: The searched parameters in the file's order, conditional ones last.
    """

    def __init__(self, study: StudyFile) -> None:
        self._defaults = study.defaults
        self._dimensions = dict(
            sorted(study.search.items(), key=lambda item: _depth(study.search, item[0]))
        )
        self.distributions: dict[str, BaseDistribution] = {
            name: _distribution(name, dimension)
            for name, dimension in self._dimensions.items()
            if dimension.value is None
        }

    def suggest(self, trial: optuna.Trial) -> Parameters:
        """Return complete parameters, of which ``trial`` chooses the searched ones."""
        return self.complete(lambda name, distribution: _suggest(trial, name, distribution))

    def complete(self, choose: Callable[[str, BaseDistribution], Any]) -> Parameters:
        """Return complete parameters.

        Args:
            choose: Called with each searched parameter that applies; returns its value.
        """
        values = self._defaults.flat()
        for name, dimension in self._dimensions.items():
            if not _holds(dimension, values):
                continue
            if dimension.value is None:
                _set(values, name, choose(name, self.distributions[name]))
            else:
                _set(values, name, dimension.value)
        return Parameters.from_flat(values)

    def parameters_of(self, params: Mapping[str, Any]) -> Parameters:
        """Return the complete parameters of a stored trial.

        Args:
            params: The trial's ``params``: the searched ones that applied to it.
        """
        values = self._defaults.flat()
        for name, dimension in self._dimensions.items():
            if not _holds(dimension, values):
                continue
            if dimension.value is not None:
                _set(values, name, dimension.value)
            elif name in params:
                _set(values, name, params[name])
        return Parameters.from_flat(values)

    def baseline(self, entry: Mapping[str, Scalar]) -> dict[str, Any]:
        """Return a ``[[baseline]]`` entry as the parameters that a queued trial needs.

        What the entry leaves out has the study's default.

        Args:
            entry: The entry; its ``name`` is not a parameter.

        Returns:
            A value, in the distribution's own type, for each searched parameter that applies.

        Raises:
            StudyFileError: The entry must give a parameter, or gives one that does not apply.
        """
        label = f"baseline {entry['name']!r}" if "name" in entry else "baseline"
        given = {name: checked(name, value) for name, value in entry.items() if name != "name"}
        values = self._defaults.flat()
        queued: dict[str, Any] = {}
        applied: set[str] = set()
        for dimension_name, dimension in self._dimensions.items():
            name = parameter_of(dimension_name)
            if not _holds(dimension, values):
                continue
            applied.add(name)
            if dimension.value is not None:
                _set(values, name, dimension.value)
                continue
            default = _default(name, values)
            if name in given:
                default = given[name]
            elif default is None:
                raise StudyFileError(f"{label}: give {name}; there is no default")
            if not dimension.contains(default):
                what = "" if name in given else "the default "
                give = "" if name in given else f"give {name}; "
                raise StudyFileError(
                    f"{label}: {give}{what}{default!r} is not in search.{dimension_name}"
                )
            _set(values, name, default)
            distribution = self.distributions[dimension_name]
            queued[dimension_name] = distribution.to_external_repr(
                distribution.to_internal_repr(default)
            )
        for name, value in given.items():
            if name not in applied and value != values.get(name):
                raise StudyFileError(f"{label}: {name} applies only when {self._condition(name)}")
        return queued

    def _condition(self, name: str) -> str:
        """Return when parameter ``name`` is searched, in words."""
        return " or ".join(
            _condition_text(dimension)
            for other, dimension in self._dimensions.items()
            if parameter_of(other) == name
        )


def _set(values: dict[str, Any], dimension: str, value: Any) -> None:
    """Set a parameter; with another method goes the strength or rank of the default one."""
    if dimension == "retention.method" and value != values[dimension]:
        values.pop("retention.strength", None)
        values.pop("retention.rank", None)
    values[parameter_of(dimension)] = value


def _default(name: str, values: Mapping[str, Any]) -> Any:
    """Return what parameter ``name`` is where a baseline does not say it."""
    if name in {"retention.strength", "retention.rank"}:
        # The method's own, if the study has another method's.
        return Parameters.from_flat(values).flat().get(name)
    return values[name]


def _depth(search: Mapping[str, Dimension], name: str) -> int:
    """Return how many conditions stand before a parameter, one behind the other."""
    when = search[name].when or {}
    return 1 + max(_depth(search, other) for other in when) if when else 0


def _distribution(name: str, dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(tuple(dimension.choices))
    low, high, step = dimension.low, dimension.high, dimension.step
    if low is None or high is None:
        raise TypeError(f"search.{name} is neither a range nor choices")
    if step is not None:
        # The last point of the grid. Optuna would move the end itself, with a warning, by the
        # same decimal arithmetic.
        whole, lowest = Decimal(str(step)), Decimal(str(low))
        high = float((Decimal(str(high)) - lowest) // whole * whole + lowest)
    if is_whole(name):
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=dimension.log, step=step)


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
        case _:
            raise TypeError(f"search.{name}: no way to suggest from {distribution}")


def _conditions(dimension: Dimension) -> list[tuple[str, list[Scalar]]]:
    return [
        (other, allowed if isinstance(allowed, list) else [allowed])
        for other, allowed in (dimension.when or {}).items()
    ]


def _holds(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    return all(values.get(other) in allowed for other, allowed in _conditions(dimension))


def _condition_text(dimension: Dimension) -> str:
    return " and ".join(
        f"{other} is {' or '.join(repr(value) for value in allowed)}"
        for other, allowed in _conditions(dimension)
    )
