"""What a bug report needs to know of an installation: versions, devices, extras, settings.

Nothing of it is secret, and nobody is named: passwords and users of databases are left out, and
the home folder is ``~``.
"""

import getpass
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from qa_hpo import __version__
from qa_hpo.config import DEFAULT_STORAGE

__all__ = ["about", "as_lines"]

_PACKAGES = (
    *("torch", "transformers", "optuna", "datasets", "peft", "accelerate", "SQLAlchemy"),
    *("optuna-dashboard", "evaluate", "tokenizers", "safetensors", "numpy", "pydantic", "typer"),
)
# Each extra, and the package that it is for.
_EXTRAS = {"postgres": "psycopg", "ray": "ray", "slurm": "submitit", "s3": "boto3"}
_VARIABLES = (
    *("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("QA_HPO_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
)
_HIDDEN = "***"


def about() -> dict[str, Any]:
    """Return the facts, as ``qa-hpo version --json`` prints them.

    Of all packages only torch is imported: it alone knows which devices it can use. ``None`` is
    what is not installed or not set.
    """
    variable = os.environ.get("QA_HPO_STORAGE")
    return {
        "qa_hpo": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "extras": {extra: _version(package) for extra, package in _EXTRAS.items()},
        "devices": _devices(),
        "storage": {
            "url": _shown(variable or DEFAULT_STORAGE),
            "from": "QA_HPO_STORAGE" if variable else "default",
        },
        "environment": {
            name: None if name not in os.environ else _nameless(os.environ[name])
            for name in _VARIABLES
        },
    }


def as_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return facts as lines for people: ``KEY: VALUE``, or a key with indented lines below."""
    lines = []
    for key, value in facts.items():
        if not isinstance(value, Mapping):
            lines.append(f"{key}: {_words(value)}")
            continue
        width = max(map(len, value))
        lines.append(f"{key}:")
        lines += [f"  {name:<{width}}  {_words(inner)}" for name, inner in value.items()]
    return lines


def _words(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(_words, value)) or "none" if isinstance(value, list) else str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    cores = os.cpu_count()
    try:
        import torch  # noqa: PLC0415  (it takes more than a second)
    except Exception as error:  # noqa: BLE001  (an installation that is broken is worth a report)
        return {"cores": cores, "torch": _nameless(f"cannot be imported: {error}".splitlines()[0])}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cores": cores,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    }


def _shown(url: str) -> str:
    """Return a storage's URL without whoever logs in, and without options."""
    try:
        parsed = make_url(url)
        # A password with an @ that should have been %40 reaches into what is taken for the host.
        host = parsed.host and parsed.host.rpartition("@")[2]
        safe = URL.create(parsed.drivername, host=host, port=parsed.port, database=parsed.database)
        text = _nameless(safe.render_as_string())
    except (ArgumentError, ValueError):
        return "not the URL of a storage"
    logs_in = parsed.username is not None or parsed.password is not None
    return text.replace("://", f"://{_HIDDEN}@", 1) if logs_in else text


def _nameless(text: str) -> str:
    """Return ``text`` with ``~`` for the home folder, and without the user's name in paths."""
    home = str(Path.home())
    if home != os.sep:
        text = text.replace(home, "~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return text
    return "/".join(_HIDDEN if part == user else part for part in text.split("/"))
