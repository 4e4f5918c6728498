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
    return file.model_dump_json(by_alias=True, exclude={"study": {"storage"}})


def check_unchanged(stored: StudyFile, given: StudyFile, name: str) -> None:
    """Check that a study is continued with the file it was created with.

    The storage, the budget and the artifacts may differ.

    Raises:
        StorageError: Anything else differs; the keys are named with both values.
    """
    old, new = (dict(_flat(json.loads(as_json(file)))) for file in (stored, given))
    changes = [
        f"{key}: {_shown(old, key)} in the study, {_shown(new, key)} in the file"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key.partition(".")[0] not in _MAY_CHANGE
    ]
    if changes:
        more = len(changes) - _DIFFERENCES_SHOWN
        listed = "; ".join(changes[:_DIFFERENCES_SHOWN]) + (
            f"; and {more} more" if more > 0 else ""
        )
        raise StorageError(
            f"study {name!r} exists and differs: {listed}. Choose another study.name"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; null is the same as a key that is not there."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "baseline":
            for index, entry in enumerate(value):
                yield from _flat(entry, f"{prefix}{key}[{index}].")
        elif value is not None:
            yield f"{prefix}{key}", value


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "nothing"
