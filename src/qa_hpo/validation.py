"""What the pydantic models share: a strict base, and errors in one line each."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["PlacedError", "Section", "explain", "nearest", "reason"]


_MEMBERS = {"<recipe>", "<checkpoint>", "float", "int", "str"}


class Section(BaseModel):
    """Base of every section of a configuration: no unknown keys, no NaN, no changes later."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )


class PlacedError(ValueError):
    """A mistake whose place is not where pydantic noticed it."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that names what ``name`` may have been meant to be.

    Args:
        name: What was written.
        valid: What could have been written.

    Returns:
        ``did you mean 'x'?`` where one is close, else the valid names.
    """
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def reason(error: Any) -> str:
    """Return why one entry of ``ValidationError.errors()`` was refused, without its place."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause)
    message = str(error["msg"])
    return message[0].lower() + message[1:]


def _is_member(part: int | str) -> bool:
    return part in _MEMBERS or str(part).startswith("list[")


def explain(failure: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line for each mistake: the key's path, what is wrong, what would be valid.

    Args:
        failure: What pydantic raised for ``model``.
        model: The model that was validated.
    """
    lines: dict[tuple[int | str, ...], str] = {}
    misspelt: set[tuple[tuple[int | str, ...], int | str]] = set()
    for error in failure.errors():
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, PlacedError):
            lines[str(cause),] = str(cause)
            continue
        # A union adds the tried member to the place, once for each: the user never wrote it.
        place = tuple(part for part in error["loc"] if not _is_member(part))
        parent, name = place[:-1], str(place[-1]) if place else ""
        why = reason(error)
        if error["type"] == "extra_forbidden":
            hint = nearest(name, _keys(model, parent))
            misspelt.update((parent, key) for key in _keys(model, parent) if repr(key) in hint)
            why = f"unknown key; {hint}"
        elif error["type"] == "missing":
            why = "missing"
        elif not isinstance(cause, ValueError) and not isinstance(error["input"], dict):
            why += f", got {error['input']!r}"
        lines.setdefault(place, f"{_path(place)}: {why}" if place else why)
    # A key that is missing because it is misspelt is one mistake, not two.
    missing = {
        (place[:-1], place[-1]) for place in lines if place and lines[place].endswith(": missing")
    }
    return [
        line
        for place, line in lines.items()
        if not place or (place[:-1], place[-1]) not in missing & misspelt
    ]


def _path(place: Sequence[int | str]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".")


def _keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the keys that are valid at ``place``, found by walking the models' fields."""
    for part in place:
        field = next((f for name, f in model.model_fields.items() if part in {name, f.alias}), None)
        inner = _models(field.annotation if field else None) if field else []
        if inner:
            model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models(inner)]
