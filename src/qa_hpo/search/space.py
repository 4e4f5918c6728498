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
from qa_hpo.parameters import Dimension, Parameters, Scalar, checked

__all__ = ["SearchSpace"]


class SearchSpace:
    """What a study searches.

    A parameter is *searched* when the file gives it a range or choices, *fixed* when it gives
    one value, and has the study's default otherwise. A conditional parameter (``when``) counts
    only where its condition holds, that is where every parameter named has the value, or one of
    the values, given; elsewhere it has the default.

    Args:
        study: The validated study file.

    Attributes:
        distributions: The searched parameters in the file's order, conditional ones last.

    Raises:
        StudyFileError: A condition that can never hold.
    """

    def __init__(self, study: StudyFile) -> None:
        self._defaults = study.defaults
        self._dimensions = dict(
            sorted(study.search.items(), key=lambda item: item[1].when is not None)
        )
        for name, dimension in self._dimensions.items():
            for other, allowed in _conditions(dimension):
                _check_values(f"search.{name}.when.{other}", allowed, other, study.search[other])
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
        values = self._defaults.model_dump()
        for name, dimension in self._dimensions.items():
            if not _holds(dimension, values):
                continue
            if dimension.value is None:
                values[name] = choose(name, self.distributions[name])
            else:
                values[name] = dimension.value
        return Parameters(**values)

    def parameters_of(self, params: Mapping[str, Any]) -> Parameters:
        """Return the complete parameters of a stored trial.

        Args:
            params: The trial's ``params``: the searched ones that applied to it.
        """
        values = self._defaults.model_dump()
        for name, dimension in self._dimensions.items():
            if not _holds(dimension, values):
                continue
            if dimension.value is not None:
                values[name] = dimension.value
            elif name in params:
                values[name] = params[name]
        return Parameters(**values)

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
        values = self._defaults.model_dump()
        queued: dict[str, Any] = {}
        for name, dimension in self._dimensions.items():
            if not _holds(dimension, values):
                if given.get(name, values[name]) != values[name]:
                    raise StudyFileError(
                        f"{label}: {name} applies only when {_condition_text(dimension)}"
                    )
                continue
            if dimension.value is not None:
                values[name] = dimension.value
                continue
            if name in given:
                values[name] = given[name]
            elif values[name] is None or not dimension.contains(values[name]):
                default = (
                    "there is no default"
                    if values[name] is None
                    else (f"the default {values[name]!r} is not in search.{name}")
                )
                raise StudyFileError(f"{label}: give {name}; {default}")
            distribution = self.distributions[name]
            queued[name] = distribution.to_external_repr(
                distribution.to_internal_repr(values[name])
            )
        return queued


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
    if Parameters.model_fields[name].annotation is int:
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
    return all(values[other] in allowed for other, allowed in _conditions(dimension))


def _condition_text(dimension: Dimension) -> str:
    return " and ".join(
        f"{other} is {' or '.join(repr(value) for value in allowed)}"
        for other, allowed in _conditions(dimension)
    )


def _check_values(where: str, allowed: list[Scalar], name: str, dimension: Dimension) -> None:
    for value in allowed:
        try:
            known = dimension.contains(checked(name, value))
        except ValueError as error:
            raise StudyFileError(f"{where}: {error}") from None
        if not known:
            raise StudyFileError(f"{where}: {value!r} is not in search.{name}")
