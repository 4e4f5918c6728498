"""The reference of the study file, from the models that validate it.

Keys, types, limits and defaults are those of the models. What a key means is the docstring below
its field, which griffe reads from the source, as it does for the Python reference.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import griffe
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qa_hpo.config import StudyFile
from qa_hpo.parameters import STRENGTHS, Dimension, Hyperparameters, Parameters, Retention
from qa_hpo.sections import Recipe, Run

_ORDER = (
    *("study", "data", "starts", "search", "training", "pruning", "evaluation", "constraints"),
    *("budget", "artifacts", "baseline"),
)
_PLAIN = {bool: "true or false", float: "number", int: "whole number", str: "text"}
_LIMITS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}


def study_sections() -> str:
    """Return Markdown about each section of a study file, in the order of the examples."""
    fields = StudyFile.model_fields
    missing = set(fields) - set(_ORDER)
    assert not missing, f"sections without a place on the page: {missing}"
    return "\n\n".join(_section(name) for name in _ORDER)


def run_sections() -> str:
    """Return Markdown about the section that only the configuration of one run has."""
    parts = ["## `[run]` { #run }", _described(Run), _table(Run)]
    return "\n\n".join(parts)


def _section(name: str) -> str:
    annotation = StudyFile.model_fields[name].annotation
    brackets = "[[baseline]]" if name == "baseline" else f"[{name}]"
    parts = [f"## `{brackets}` {{ #{name} }}"]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        parts += [_described(annotation), _table(annotation)]
    else:
        parts.append(_meaning(StudyFile, name))
    if name == "starts":
        parts += ["### `[starts.NAME]` { #recipe }", _described(Recipe), _table(Recipe)]
    if name == "search":
        parts += ["### `[search.PARAMETER]` { #dimension }", _described(Dimension)]
        parts += [_table(Dimension), "### Parameters { #parameters }", _parameters()]
    if name == "training":
        strengths = ", ".join(f"`{method}` {value:g}" for method, value in STRENGTHS.items())
        parts += ["### `[training.retention]` { #retention }", _described(Retention)]
        parts += [_table(Retention), f"Default strengths: {strengths}."]
    return "\n\n".join(parts)


def _described(model: type[BaseModel]) -> str:
    return _markdown(model.__doc__ or "")


def _table(model: type[BaseModel]) -> str:
    return _rows(
        (field.alias or name, _type(field), _default(model, name, field), _meaning(model, name))
        for name, field in model.model_fields.items()
    )


def _parameters() -> str:
    """Return a table of what can be searched; retention has its parts there."""
    rows = []
    for owner, within in ((Parameters, ""), (Retention, "retention.")):
        for name, field in owner.model_fields.items():
            if name == "retention":
                continue
            default = "the first start" if name == "start" else _default(owner, name, field)
            rows.append((f"{within}{name}", _type(field), default, _meaning(owner, name)))
    return _rows(sorted(rows, key=lambda row: row[0] != "start"))


def _rows(rows: Iterable[tuple[str, str, str, str]]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, *cells in rows:
        lines.append(f"| `{key}` | {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def _type(field: FieldInfo) -> str:
    return _named(field.annotation, field.metadata)


def _named(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return what a person calls a type, with its limits."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(inner[0], [part for each in inner[1:] for part in _constraints(each)])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in {list, tuple}:
        return f"list of {_named(inner[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    if inner:  # a union; None is what a key is that is left out
        some = dict.fromkeys(_named(each) for each in inner if each is not type(None))
        return " or ".join(some if "number" not in some else some.keys() - {"whole number"})
    parts = list(metadata)
    limits = [
        f"{word} {getattr(part, name)}"
        for name, word in _LIMITS.items()
        for part in parts
        if getattr(part, name, None) is not None
    ]
    return " ".join([_PLAIN[annotation], *limits])


def _constraints(part: Any) -> list[Any]:
    return part.metadata if isinstance(part, FieldInfo) else [part]


def _default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    if field.default is None:
        own = model is Recipe and name in Hyperparameters.model_fields
        return "as in `[training]`" if own else "–"
    return f"`{json.dumps(field.default)}`"


def _meaning(model: type[BaseModel], name: str) -> str:
    """Return what a field means: the docstring below it.

    Raises:
        LookupError: There is none.
    """
    for owner in model.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            place = f"{owner.__module__}.{owner.__qualname__}.{name}".partition(".")[2]
            if (docstring := _package()[place].docstring) is None:
                raise LookupError(f"{place} has no docstring below it")
            return _markdown(docstring.value).replace("\n", " ")
    raise LookupError(f"{model.__qualname__} has no field {name}")


@cache
def _package() -> griffe.Object | griffe.Alias:
    return griffe.load("qa_hpo", search_paths=sys.path)


def _markdown(docstring: str) -> str:
    """Return a docstring as Markdown: code is between single backquotes there."""
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(docstring))
