"""URLs of storages: what they mean, and how they are shown."""

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from qa_hpo.errors import StorageError
from qa_hpo.legible import mask

__all__ = ["parse_storage_url", "shown_url"]

_FORMS = "sqlite:///FOLDER/NAME.db or postgresql://USER@HOST/NAME"


def parse_storage_url(url: str) -> URL:
    """Return ``url`` in full: with its driver, and with an absolute path.

    Raises:
        StorageError: It is no URL, or not one of a database that workers can share.
    """
    try:
        parsed = make_url(re.sub(r"^postgres(?:ql)?://", "postgresql+psycopg://", url))
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        shown = _without_password(url)
        raise StorageError(f"{mask(shown)!r} is not the URL of a storage; give {_FORMS}") from None
    if "@" in (parsed.host or ""):
        # Not shown: a part of the password.
        raise StorageError(f"{mask(url)}: write an @ in the password as %40")
    shown = shown_url(parsed)
    if parsed.drivername == "postgresql+psycopg":
        try:
            import psycopg  # noqa: F401, PLC0415  (an extra)
        except ImportError:
            plain = shown_url(parsed.set(drivername="postgresql"))  # as it was given
            raise StorageError(
                f"{plain}: the PostgreSQL driver is missing; pip install 'qa_hpo[postgres]'"
            ) from None
        return parsed
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise StorageError(f"{shown}: {backend} is not supported; give {_FORMS}")
    if not parsed.database or parsed.database == ":memory:":
        raise StorageError(f"{shown}: workers cannot share a database in memory; give {_FORMS}")
    if parsed.database.startswith("file:") or parsed.query:
        raise StorageError(f"{shown}: options are not supported; give {_FORMS}")
    return parsed.set(drivername="sqlite", database=str(Path(parsed.database).absolute()))


def shown_url(url: URL) -> str:
    """Return a URL for people: SQLAlchemy knows where its password is, whatever is in it."""
    if url.get_backend_name() == "sqlite" and url.database and not url.query:
        return f"sqlite:///{url.database}"  # as people write it, without %20
    return mask(url.render_as_string(hide_password=True))


def _without_password(text: str) -> str:
    """Return what is no URL without what stands before its last @: it may be a password."""
    scheme, found, rest = text.partition("://") if "://" in text else ("", "", text)
    hidden, at, visible = rest.rpartition("@")
    user = f"{hidden.partition(':')[0]}:" if found and ":" in hidden else ""
    return f"{scheme}{found}{user}***@{visible}" if at else text
