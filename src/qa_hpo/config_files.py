"""Configurations as files: TOML in and out, with one line for each mistake."""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from pydantic import BaseModel, ValidationError

from qa_hpo.errors import StudyFileError
from qa_hpo.legible import legible
from qa_hpo.validation import explain

__all__ = ["mistakes", "read_toml", "to_toml", "validated"]

# A study of a hundred starts has some thousand bytes: what is much longer is something else. The
# parser's time grows with the square of a key's parts, which dots part: at most two seconds of it.
_MOST_BYTES = 1_000_000
_MOST_SQUARED_DOTS = 50_000_000

Config = TypeVar("Config", bound=BaseModel)


def to_toml(config: BaseModel) -> str:
    """Return ``config`` as TOML that reads back as the same configuration."""
    return tomlkit.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        StudyFileError: It is not there, or no TOML.
    """
    try:
        return _read(path)
    except StudyFileError as error:
        raise StudyFileError(legible(str(error))) from None  # its name may have line breaks


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise StudyFileError(
                f"{path}: is no study file: it has more than {_MOST_BYTES:,} bytes"
            )
        text = content.decode("utf-8-sig")
        if sum(line.count(".") ** 2 for line in text.splitlines()) > _MOST_SQUARED_DOTS:
            raise StudyFileError(f"{path}: is no study file: its keys have too many parts")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise StudyFileError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path}: is not UTF-8 text: {error.reason}") from None
    except RecursionError:
        raise StudyFileError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # a tomllib.TOMLDecodeError, or a number of thousands of digits
        raise StudyFileError(f"{path}: is not TOML: {error}") from None


def validated(model: type[Config], given: dict[str, Any], path: Path) -> Config:
    """Return ``given`` as a ``model``; ``path`` names it in errors.

    Raises:
        StudyFileError: One line for each mistake, with the key's path.
    """
    try:
        # By way of JSON, whose arrays are good tuples in strict mode too.
        return model.model_validate_json(json.dumps(given, default=str))
    except RecursionError:
        raise StudyFileError(f"{path}: is nested too deeply") from None
    except ValidationError as error:
        raise StudyFileError(mistakes(error, model, str(path))) from None


def mistakes(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Return one line for each mistake, each of which begins with ``source``."""
    return "\n".join(legible(f"{source}: {line}") for line in explain(error, model))
