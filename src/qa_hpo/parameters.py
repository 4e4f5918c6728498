"""The parameters of one fine-tuning run, and the dimensions along which a study searches them."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from qa_hpo.validation import PlacedError, Section, reason

__all__ = [
    "METHODS",
    "PARAMETER_NAMES",
    "RANKED",
    "STRENGTHS",
    "Dimension",
    "Hyperparameters",
    "Parameters",
    "Retention",
    "Scalar",
    "Scheduler",
    "check_conditions",
    "checked",
    "flattened",
    "is_whole",
    "parameter_of",
]

Scheduler = Literal["linear", "cosine", "constant"]
Scalar = float | int | str
Method = Literal[
    "none", "l2sp", "ewc", "si", "replay", "distill", "freeze", "mask", "lora", "adalora"
]

METHODS: tuple[str, ...] = get_args(Method)
STRENGTHS = {
    "l2sp": 0.01,
    "ewc": 1000.0,
    "si": 1.0,
    "replay": 0.1,
    "distill": 0.1,
    "freeze": 0.5,
    "mask": 0.5,
}
"""The methods that have a strength, and what it is where nothing is said."""
RANKED = ("lora", "adalora")
"""The methods that have a rank."""
_SHARES = ("replay", "distill", "freeze", "mask")
_RANK = 8


class Retention(Section):
    """What keeps the old task while the new one is learnt.

    The strength of ``l2sp``, ``ewc`` and ``si`` is the coefficient of their penalty; of ``replay``
    and ``distill``, the share of the old task's questions that come again; of ``freeze``, the
    share of the layers that do not learn, the lowest first; of ``mask``, the share of the weights.
    """

    method: Method = "none"
    """What is done to keep what the start has learnt before."""
    strength: Annotated[float, Field(ge=0)] | None = None
    """How strongly, which means something else with each method; the method's own default where it
    is left out."""
    rank: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Of the adapters of ``lora`` and ``adalora``; 8 where it is left out."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        given = {"method": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            return given
        method = given.get("method", "none")
        if method not in METHODS:
            return given
        # A point of the space has one form only: no strength where it has no meaning.
        strength, rank = given.get("strength"), given.get("rank")
        return {
            **given,
            "strength": STRENGTHS.get(method)
            if strength is None or method not in STRENGTHS
            else strength,
            "rank": (_RANK if rank is None else rank) if method in RANKED else None,
        }

    @model_validator(mode="after")
    def _share(self) -> Self:
        if self.method in _SHARES and self.strength is not None and self.strength > 1:
            raise ValueError(f"the strength of {self.method} is a share, 0 to 1")
        if self.method in ("replay", "distill") and self.strength == 0:
            raise ValueError(f"the strength of {self.method} is a share above 0")
        return self


class Hyperparameters(Section):
    """What a fine-tuning run is told, but for the start. The defaults are the SQuAD recipe's."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-5
    """Peak learning rate of AdamW."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    """Passes over the training data; the learning rate's schedule spans them all."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay of AdamW."""
    doc_stride: Annotated[int, Field(ge=0, lt=2**31)] = 128
    """Tokens that neighbouring training windows share."""
    batch_size: Annotated[int, Field(ge=1, lt=2**31)] = 16
    """Windows per optimizer step."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps during which the learning rate rises."""
    scheduler: Scheduler = "linear"
    """How the learning rate falls after the warmup."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """L2 norm to which gradients are clipped."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of hidden states and attention; the start's own where it is left out."""
    retention: Retention = Retention()
    """What keeps what the start has learnt before."""


class Parameters(Hyperparameters):
    """One point of the search space, complete."""

    start: str = "base"
    """A name from the study file's ``[starts]``."""

    def flat(self) -> dict[str, Any]:
        """Return each parameter by its name, ``retention.method`` among them.

        ``retention.strength`` and ``retention.rank`` are there where the method has them.
        """
        values: dict[str, Any] = {}
        for name, value in self.model_dump().items():
            if name == "retention":
                values |= {f"{name}.{key}": v for key, v in value.items() if v is not None}
            else:
                values[name] = value
        return values

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Return the parameters that have these values; the others have their defaults."""
        plain = {name: value for name, value in values.items() if "." not in name}
        retention = {name.partition(".")[2]: value for name, value in values.items() if "." in name}
        return cls.model_validate({**plain, "retention": retention})


_RETENTION = tuple(f"retention.{name}" for name in Retention.model_fields)
PARAMETER_NAMES: tuple[str, ...] = (
    *(name for name in Parameters.model_fields if name != "retention"),
    *_RETENTION,
)


def parameter_of(dimension: str) -> str:
    """Return the parameter that a dimension sets.

    It has the same name, but for ``retention.strength.ewc``, say, which is the strength where the
    method is ``ewc``.
    """
    return ".".join(dimension.split(".")[:2])


def is_whole(name: str) -> bool:
    """Return whether a dimension takes whole numbers."""
    return name == "retention.rank" or (
        name in Parameters.model_fields and Parameters.model_fields[name].annotation is int
    )


def checked(name: str, value: Scalar) -> Any:
    """Return ``value`` in the type of the parameter that dimension ``name`` sets.

    Raises:
        ValueError: It is of the wrong type, or impossible for that parameter.
    """
    try:
        if name not in Parameters.model_fields:
            return _checked_retention(name, value)
        return getattr(Parameters.model_validate({name: value}), name)
    except ValidationError as error:
        raise ValueError(f"{reason(error.errors()[0])}, got {value!r}") from None


def _checked_retention(name: str, value: Scalar) -> Any:
    _, key, *method = name.split(".")
    # A method that takes whatever the key can be, where none is named.
    some = {"method": value, "strength": "l2sp", "rank": "lora"}[key]
    given = {"method": method[0] if method else some, key: value}
    return getattr(Retention.model_validate(given), key)


def flattened(given: Any, within: str = "") -> Any:
    """Return a table of parameters with ``retention.method`` for ``retention = { method = … }``.

    Args:
        given: The table, as it was written; anything else is returned as it is.
        within: The dotted name of the table itself.
    """
    if not isinstance(given, Mapping):
        return given
    flat: dict[str, Any] = {}
    for name, value in given.items():
        place = f"{within}{name}"
        inner = isinstance(value, Mapping) and (
            place == "retention" or (place == "retention.strength" and set(value) <= set(METHODS))
        )
        flat |= flattened(value, f"{place}.") if inner else {place: value}
    return flat


class Dimension(Section):
    """One searched parameter: a range, choices, or one value; with ``when``, a conditional one."""

    low: float | int | None = None
    """The least value of a range."""
    high: float | int | None = None
    """The greatest value of a range, itself included."""
    log: bool = False
    """Whether a range is searched by the value's logarithm."""
    step: float | int | None = None
    """Distance between the values of a range; any value, or any whole one, where it is left out."""
    choices: list[Scalar] | None = None
    """The values to choose from, in place of a range."""
    value: Scalar | None = None
    """The one value, in place of a range."""
    when: dict[str, Scalar | list[Scalar]] | None = None
    """Where the parameter is searched: the value, or a list of values, that each parameter named
    here must have. Elsewhere it is as ``[training]`` says."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        if isinstance(given, (str, int, float)) and not isinstance(given, bool):
            return {"value": given}
        if isinstance(given, dict) and "when" in given:
            return {**given, "when": flattened(given["when"])}
        return {"choices": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        ranged = self.low is not None or self.high is not None
        if sum([ranged, self.choices is not None, self.value is not None]) != 1:
            raise ValueError("give low and high, or choices, or value")
        if not ranged and (self.log or self.step is not None):
            raise ValueError("log and step go with low and high")
        if ranged:
            self._check_range()
        elif self.choices is not None and len(self.choices) == 0:
            raise ValueError("choices is empty")
        elif self.choices is not None and len(set(self.choices)) < len(self.choices):
            raise ValueError("choices has the same value twice")
        return self

    def _check_range(self) -> None:
        if self.low is None or self.high is None:
            raise ValueError(f"{'high' if self.high is None else 'low'} is missing")
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low above 0, got {self.low}")
        if self.log and self.step is not None:
            raise ValueError("a log range has no step")
        if self.step is not None and not 0 < self.step < 2**31:
            raise ValueError(f"step must be above 0 and below 2**31, got {self.step}")

    def values(self) -> list[Scalar]:
        """Return the values that the file names: the ends, the choices or the fixed value."""
        if self.choices is not None:
            return list(self.choices)
        return [v for v in (self.low, self.high, self.value) if v is not None]

    def contains(self, value: Scalar) -> bool:
        """Return whether ``value``, in the parameter's type, is a point of this dimension."""
        if self.low is None or self.high is None or isinstance(value, str):
            return value in self.values()
        if not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        nearest = self.low + round((value - self.low) / self.step) * self.step
        return math.isclose(value, nearest, rel_tol=1e-9, abs_tol=1e-9 * min(1.0, self.step))

    def coerced(self, name: str) -> "Dimension":
        """Return this dimension with its values in the type of parameter ``name``.

        Raises:
            ValueError: A value is impossible for the parameter, or it takes no range.
        """
        numeric = name not in {"start", "scheduler", "retention.method"}
        if not numeric and self.low is not None:
            raise ValueError("takes choices or value, not a range")
        if isinstance(self.step, float) and is_whole(name) and not self.step.is_integer():
            raise ValueError(f"step must be a whole number, got {self.step}")
        update: dict[str, Any] = {}
        for field in ("low", "high", "value"):
            if (given := getattr(self, field)) is not None:
                update[field] = checked(name, given)
        if self.choices is not None:
            update["choices"] = [checked(name, choice) for choice in self.choices]
        return self.model_copy(update=update)


def check_conditions(search: Mapping[str, Dimension], defaults: Parameters) -> None:
    """Check that each condition of a dimension can be met by the other one.

    Args:
        search: What is searched.
        defaults: What a parameter is where it is not searched.

    Raises:
        PlacedError: A condition names a value that the other parameter never has.
    """
    elsewhere = defaults.flat()
    for name, dimension in search.items():
        for other, values in (dimension.when or {}).items():
            if (searched := search.get(other)) is None:
                continue
            place = f"search.{name}.when.{other}"
            if values == []:
                raise PlacedError(place, "is empty; give the value that it must have, or several")
            for value in values if isinstance(values, list) else [values]:
                try:
                    known = searched.contains(typed := checked(other, value))
                except ValueError as error:
                    raise PlacedError(place, str(error)) from None
                # Where its own condition does not hold, the other one has its default.
                if not known and not (searched.when and typed == elsewhere.get(other)):
                    raise PlacedError(place, f"{value!r} is not in search.{other}")
