"""The parameters of one fine-tuning run, and the dimensions along which a study searches them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from qa_hpo.validation import Section, reason

__all__ = [
    "PARAMETER_NAMES",
    "Dimension",
    "Hyperparameters",
    "Parameters",
    "Scalar",
    "Scheduler",
    "checked",
]

Scheduler = Literal["linear", "cosine", "constant"]
Scalar = float | int | str


class Hyperparameters(Section):
    """What a fine-tuning run is told, but for the start. The defaults are the SQuAD recipe's."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-5
    """Peak learning rate of AdamW."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    """Passes over the training data; the learning rate's schedule spans them all."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay of AdamW."""
    doc_stride: Annotated[int, Field(ge=0)] = 128
    """Tokens that neighbouring training windows share."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Windows per optimizer step."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps during which the learning rate rises."""
    scheduler: Scheduler = "linear"
    """How the learning rate falls after the warmup."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """L2 norm to which gradients are clipped."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of hidden states and attention; the start's own where it is left out."""


class Parameters(Hyperparameters):
    """One point of the search space, complete."""

    start: str = "base"
    """A name from the study file's ``[starts]``."""


PARAMETER_NAMES: tuple[str, ...] = tuple(Parameters.model_fields)


def _is_int(name: str) -> bool:
    return Parameters.model_fields[name].annotation is int


def checked(name: str, value: Scalar) -> Any:
    """Return ``value`` in the type of parameter ``name``.

    Raises:
        ValueError: It is of the wrong type, or impossible for that parameter.
    """
    try:
        return getattr(Parameters.model_validate({name: value}), name)
    except ValidationError as error:
        raise ValueError(f"{reason(error.errors()[0])}, got {value!r}") from None


class Dimension(Section):
    """One searched parameter: a range, choices, or one value; with ``when``, a conditional one."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: list[Scalar] | None = None
    value: Scalar | None = None
    when: dict[str, Scalar | list[Scalar]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        if isinstance(given, (str, int, float)) and not isinstance(given, bool):
            return {"value": given}
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
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, got {self.step}")

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
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8

    def coerced(self, name: str) -> "Dimension":
        """Return this dimension with its values in the type of parameter ``name``.

        Raises:
            ValueError: A value is impossible for the parameter, or it takes no range.
        """
        numeric = name not in {"start", "scheduler"}
        if not numeric and self.low is not None:
            raise ValueError("takes choices or value, not a range")
        if isinstance(self.step, float) and _is_int(name) and not self.step.is_integer():
            raise ValueError(f"step must be a whole number, got {self.step}")
        update: dict[str, Any] = {}
        for field in ("low", "high", "value"):
            if (given := getattr(self, field)) is not None:
                update[field] = checked(name, given)
        if self.choices is not None:
            update["choices"] = [checked(name, choice) for choice in self.choices]
        return self.model_copy(update=update)
