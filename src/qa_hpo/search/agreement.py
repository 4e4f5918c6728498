"""Whether a study file and this host agree with the study that is stored."""

import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from qa_hpo.config import StudyFile
from qa_hpo.errors import StorageError

__all__ = ["as_json", "check_unchanged", "check_versions", "versions"]

_PACKAGES = ("qa_hpo", "optuna", "torch", "transformers", "datasets")
_MAJORS_MUST_AGREE = ("optuna", "torch", "transformers")
_MAY_CHANGE = frozenset({"budget", "artifacts"})
# What has no part in a trial: how the finals go, and what only an export looks at.
_KEYS_THAT_MAY_CHANGE = frozenset({"data.test", "evaluation.seeds", "evaluation.finalists"})
_DIFFERENCES_SHOWN = 4


def versions() -> dict[str, str]:
    """Return the versions of what decides a study's results, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def check_versions(name: str, expected: Mapping[str, str]) -> None:
    """Check that this host has the major versions that a study was created with.

    Args:
        name: The study's name.
        expected: The versions it was created with.

    Raises:
        StorageError: A package whose major version decides the results differs.
    """
    here = versions()
    for package in _MAJORS_MUST_AGREE:
        theirs = expected.get(package, "")
        if here[package].partition(".")[0] != theirs.partition(".")[0]:
            raise StorageError(
                f"study {name!r}: was created with {package} {theirs or '(none)'}, and here is "
                f"{package} {here[package] or '(none)'}; install that major version, or choose "
                "another study.name"
            )


def as_json(file: StudyFile) -> str:
    """Return ``file`` as a study stores it: without the URL, which may hold a password."""
    values = file.model_dump(mode="json", by_alias=True, exclude={"study": {"storage"}})
    # With spaces, at which a dashboard's page can break the line.
    return json.dumps(values, ensure_ascii=False)


def check_unchanged(stored: StudyFile, given: StudyFile, name: str) -> None:
    """Check that a study is continued with the file it was created with.

    The storage, the budget and the artifacts may differ, and what has no part in a trial.

    Raises:
        StorageError: Anything else differs; the keys are named with both values.
    """
    changes = [
        change
        for section, old, new in _sections(stored, given)
        if section not in _MAY_CHANGE
        for change in _changes(section, old, new)
    ]
    if changes:
        more = len(changes) - _DIFFERENCES_SHOWN
        listed = "; ".join(changes[:_DIFFERENCES_SHOWN])
        listed += f"; and {more} more" if more > 0 else ""
        raise StorageError(
            f"study {name!r} exists and differs: {listed}. Choose another study.name"
        )


def _sections(stored: StudyFile, given: StudyFile) -> Iterator[tuple[str, Any, Any]]:
    old, new = (json.loads(as_json(file)) for file in (stored, given))
    for section in new:
        yield section, old[section], new[section]


def _changes(path: str, old: Any, new: Any) -> Iterator[str]:
    """Yield a text for each place at or below ``path`` where ``old`` and ``new`` differ."""
    if old == new or path in _KEYS_THAT_MAY_CHANGE:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(f"{path}.{key}", old.get(key), new.get(key))
    else:
        yield f"{path}: {_shown(old)} in the study, {_shown(new)} in the file"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if inner is not None}
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
