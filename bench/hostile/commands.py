"""Hostile storages, parameters and places to write to."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from bench.hostile.inputs import Hostile, good_files, link, put
from bench.hostile.mutations import CONTROLS, SECRET, as_json, change_bytes, change_tree
from bench.hostile.valid import Valid, corpus, predictions

__all__ = ["changed_parameters", "changed_storages", "named_parameters", "named_storages"]

_READERS: list[Sequence[str]] = [
    ("status", "told"),
    ("leaderboard", "told"),
    ("leaderboard", "told", "--json"),
    ("compare", "told", "0", "1"),
    ("report", "told", "--out", "report.md"),
    ("export", "told", "out"),
]
_ATTRIBUTES = (
    "study_user_attributes", "trial_user_attributes", "trial_system_attributes",
    "study_system_attributes",
)  # fmt: skip


def named_storages(valid: Valid) -> Iterator[Hostile]:
    """Storages that somebody thought of."""
    for url in _urls():
        for argv in (("status", "told"), ("check-run", "study.toml")):
            yield _at_url(valid, url, argv)
    for name, spoil in _databases(valid).items():
        for argv in _READERS[:2]:
            ours = name.startswith(("a study of", "without"))
            yield _opened(valid, name, spoil, argv, "told.db" if ours else "foreign.sqlite")


def changed_storages(valid: Valid, seed: int) -> Iterator[Hostile]:
    """Endless changes to a good database."""
    content = valid.database.read_bytes()
    number = 0
    while True:
        rng = random.Random(f"{seed}/storage/{number}")
        argv = rng.choice(_READERS)
        if number % 3:
            spoil, name = _changed_value(rng)
        else:
            name, damaged = change_bytes(content, rng)
            spoil = _writes(damaged)
        yield _opened(valid, f"{number}: {name}", spoil, argv, "told.db")
        number += 1


def _writes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _urls() -> list[str]:
    return [
        "", " ", "x", "sqlite", "sqlite:", "sqlite://", "sqlite:///", "sqlite:///.", "sqlite:////",
        "sqlite:///:memory:", "sqlite:///file:x?mode=memory", "sqlite:///a.db?mode=ro",
        "sqlite:///none.db", "sqlite:///none/none.db", "sqlite:///study.toml",
        "sqlite:////dev/null", "sqlite:////proc/self/mem", "sqlite:///" + "x" * 5000,
        "sqlite:///a\x00b", "sqlite:///a\x1b[31m\nb", "sqlite:///../../../../../../none",
        "sqlite+aiosqlite:///a.db", f"mysql://me:{SECRET}@host/db", f"x://me:{SECRET}@host/db",
        f"postgresql://me:{SECRET}@[::1/db", f"postgresql://me:{SECRET}@host:port/db",
        f"postgresql://me:{SECRET}@host:99999999999/db", f"postgres ql://me:{SECRET}@h/db",
        f"postgresql+none://me:{SECRET}@127.0.0.1:1/db", f"me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db", f"postgres://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db?sslmode=never",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db?no_such_option=1",
        f"postgresql://me:{SECRET}%ZZ@127.0.0.1:1/db", f"postgresql://:{SECRET}@127.0.0.1:1",
        f"postgresql://me:a@{SECRET}@127.0.0.1:1/db", f"redis://:{SECRET}@127.0.0.1:1",
        f"http://me:{SECRET}@127.0.0.1:1/", "journal:///x.log",
        f"postgresql://me:{SECRET}\n@127.0.0.1:1/db", f"postgresql://m\x1be:{SECRET}@127.0.0.1:1/d",
        f"mysql://me@server:{SECRET}@h/db", f"postgresql://me:a {SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET * 100}@127.0.0.1:1/db", f"postgres ql://me:a {SECRET}@h/db",
        "told", "sqlite:///told.db#x", "sqlite:///%00", "file:///etc/passwd",
    ]  # fmt: skip


def _at_url(valid: Valid, url: str, argv: Sequence[str]) -> Hostile:
    if argv[0] == "check-run":
        # Should it pass, it stops at the workers, of which there cannot be as many.
        argv = ("run", "study.toml", "--workers", "10000", "--workers-per-device", "1")

    def make(folder: Path) -> None:
        good_files(folder, valid)

    shown = url.replace(SECRET, "SECRET")[:60]
    name = f"{argv[0]} at {shown!r} of {len(url)}"
    return Hostile(name, "storage", make, (*argv, "--storage", url))


def _databases(valid: Valid) -> dict[str, Callable[[Path], None]]:
    def other(path: Path) -> None:
        _execute(path, "CREATE TABLE customers (name TEXT)")

    def same_names(path: Path) -> None:
        _execute(path, "CREATE TABLE studies (name TEXT)", "CREATE TABLE trials (x TEXT)")

    def strange_names(path: Path) -> None:
        _execute(path, f'CREATE TABLE "{CONTROLS.replace(chr(0), "")}" (name TEXT)')

    def version(number: str) -> Callable[[Path], None]:
        def spoil(path: Path) -> None:
            shutil.copyfile(valid.database, path)
            _execute(path, f"UPDATE alembic_version SET version_num = '{number}'")

        return spoil

    def without(table: str) -> Callable[[Path], None]:
        def spoil(path: Path) -> None:
            shutil.copyfile(valid.database, path)
            _execute(path, f"DROP TABLE {table}")

        return spoil

    def plain_study(path: Path) -> None:
        shutil.copyfile(valid.database, path)
        _execute(path, "DELETE FROM study_user_attributes")

    content = valid.database.read_bytes()
    tables = ("studies", "trials", "study_directions", "trial_values", "alembic_version")
    return {
        "another application's": other,
        "another application's, with our names": same_names,
        "tables with strange names": strange_names,
        "an older schema": version("v2.6.0.a"),
        "an unknown schema": version("v9.0.0"),
        "a schema of controls": version("a\x1b[31m\nb"),
        "a study of another program": plain_study,
        "a folder": lambda path: path.mkdir(),
        "text": _writes(b"no database" * 1000),
        "empty": _writes(b""),
        "cut": _writes(content[:5000]),
        "its first page only": _writes(content[:4096]),
        "zeros": _writes(bytes(100_000)),
        "a mark and zeros": _writes(content[:16] + bytes(100_000)),
        "a link to itself": lambda path: path.symlink_to(path.name),
        **{f"without {table}": without(table) for table in tables},
    }


def _execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def _opened(
    valid: Valid, name: str, spoil: Callable[[Path], None], argv: Sequence[str], file: str
) -> Hostile:
    def make(folder: Path) -> None:
        shutil.copyfile(valid.database, folder / file)
        if argv[0] in {"compare", "export", "report"}:
            link(folder, valid.artifacts)
        if not name[0].isdigit():
            (folder / file).unlink()
        spoil(folder / file)

    command = (*argv, "--storage", f"sqlite:///{file}")
    return Hostile(f"{' '.join(argv)}, {name}", "storage", make, command)


def _changed_value(rng: random.Random) -> tuple[Callable[[Path], None], str]:
    """A change to one attribute of the study or of a trial, or to another value in a table."""
    table = rng.choice(_ATTRIBUTES)
    pick, state = rng.random(), rng.getstate()

    def spoil(path: Path) -> None:
        inner = random.Random()
        inner.setstate(state)
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute(f"SELECT rowid, value_json FROM {table}").fetchall()
            if not rows:
                return
            row, value = rows[int(pick * len(rows))]
            change = change_tree(json.loads(value), inner)
            text = as_json(change.tree).encode("utf-8", "replace").decode()
            connection.execute(f"UPDATE {table} SET value_json = ? WHERE rowid = ?", (text, row))
            connection.commit()

    return spoil, f"{table} {pick:.3f}"


# ---------------------------------------------------------------------------- parameters


def named_parameters(valid: Valid) -> Iterator[Hostile]:
    """Parameters and places to write to that somebody thought of."""
    for argv in _arguments():
        yield Hostile(f"{argv}"[:200], "command", _all_files(valid), argv)


def changed_parameters(valid: Valid, seed: int) -> Iterator[Hostile]:
    """Endless commands of which one argument is strange."""
    number = 0
    while True:
        rng = random.Random(f"{seed}/command/{number}")
        argv = list(rng.choice(_COMMANDS))
        at = rng.randrange(1, len(argv))
        argv[at] = rng.choice(_STRANGE)
        yield Hostile(f"{number}: {argv}"[:200], "command", _all_files(valid), argv)
        number += 1


_TOLD = ("--storage", "sqlite:///told.db")
_COMMANDS: list[Sequence[str]] = [
    ("check", "study.toml"),
    ("status", "told", *_TOLD),
    ("leaderboard", "told", *_TOLD),
    ("compare", "told", "0", "1", *_TOLD),
    ("export", "told", "a file", "--trial", "0", *_TOLD),
    ("export", "told", "a file", "--prefer", "best_f1", *_TOLD),
    ("report", "told", "--out", "a file", "--format", "md", *_TOLD),
    ("evaluate", "export", "data.json"),
    ("score", "data.json", "predictions.json", "--null-scores", "nulls.json"),
    ("answer", "export", "--context", "context.txt", "--question", "Which town?"),
    ("train", "export/qa_hpo.toml", "a file"),
    ("init", "a file"),
    ("run", "study.toml", "--workers", "0", "--trials", "1"),
    ("worker", "--study", "none", "--storage", "sqlite:///told.db", "--wait", "0"),
]
_STRANGE = [
    "", " ", "-1", "0", "1", "1.5", "nan", "inf", "1e999", "9" * 30, "9" * 5000, "x" * 10_000,
    CONTROLS.replace("\x00", ""), "\udce9", "--", "-", "--x", "-x", "--json", "--help", "--trial",
    "a file", "a folder", "a file/below", "locked/below", ".", "..", "/", "/dev/null", "/dev/full",
    "none", "none/none", "~", "~none", "study.toml", "told.db", "[red]x[/]", "{}", "%s", "*",
    "told\n", "\u202etold", "\U0001f600", "forgetting<=nan", "forgetting<=-1",
    "forgetting<=" + "9" * 400,
]  # fmt: skip


def _arguments() -> list[Sequence[str]]:
    run = ("run", "study.toml")
    return [
        (*run, "--trials", "-1"), (*run, "--trials", "x"), (*run, "--workers", "0"),
        (*run, "--trials", "9" * 30, "--workers", "10001"), (*run, "--workers", "\u0663"),
        (*run, "--workers-per-device", "0"), (*run, "--launcher", "x\x1b[0m"), ("none",), ("--x",),
        (*run, "--launcher", "slurm"), (*run, "--slurm", "a=b"), ("run",), ("status",),
        ("status", "none", *_TOLD), ("status", "../told", *_TOLD), ("leaderboard", "", *_TOLD),
        ("compare", "told", "0", "99", *_TOLD), ("compare", "told", "-1", "0", *_TOLD),
        ("compare", "told", "0", "9" * 30, *_TOLD), ("compare", "told", "0", "0", *_TOLD),
        ("export", "told", "a folder", *_TOLD), ("export", "told", "a file", *_TOLD),
        ("export", "told", "a file/below", *_TOLD), ("export", "told", "locked/out", *_TOLD),
        ("export", "told", "half", *_TOLD), ("export", "told", "half", "--force", *_TOLD),
        ("export", "told", "a folder", "--force", *_TOLD), ("export", "told", "", *_TOLD),
        ("export", "told", "x" * 300, *_TOLD), ("export", "told", "out", "--trial", "7", *_TOLD),
        ("export", "told", "/", *_TOLD), ("export", "told", "out", "--prefer", "x", *_TOLD),
        ("report", "told", "--out", "a folder", *_TOLD), ("report", "told", "--out", "x", *_TOLD),
        ("report", "told", "--out", "locked/x.md", *_TOLD),
        ("report", "told", "--out", "x" * 300 + ".md", *_TOLD),
        ("report", "told", "--out", "a file/x.md", *_TOLD),
        ("report", "told", "--format", "pdf", *_TOLD), ("init", "a file"), ("init", "a file/x"),
        ("init", "locked/x"), ("init", "a folder", "--force"), ("init", "x" * 300), ("init", ""),
        ("demo", "a file"), ("demo", "a file/x"), ("demo", "locked/x"),
        ("train", "export/qa_hpo.toml", "a file"), ("train", "export/qa_hpo.toml", "a folder"),
        ("train", "export/qa_hpo.toml", "a file/x"), ("train", "export/qa_hpo.toml", "locked/x"),
        ("score", "data.json", "/dev/zero"), ("score", "/dev/zero", "predictions.json"),
        ("run", "study.toml", "--workers", "9" * 5000),
        ("answer", "export", "--context", "/dev/zero", "--question", "x"),
        ("evaluate", "none", "data.json"), ("evaluate", "./none", "data.json"),
        ("evaluate", "a file", "data.json"), ("evaluate", "export", "a file"),
        ("evaluate", "x" * 5000, "data.json"), ("evaluate", "a\x1b[31m\nb c", "data.json"),
        ("answer", "export", "--context", "a folder", "--question", "x"),
        ("answer", "export", "--context", "context.txt", "--question", ""),
        ("answer", "export", "--context", "context.txt", "--question", "which " * 50_000),
        ("answer", "export", "--context", "context.txt", "--question", "a\udce9"),
        ("answer", "export", "--context", "controls.txt", "--question", "Which town?"),
        ("answer", "export", "--context", "told.db", "--question", "Which town?"),
        ("dashboard", "told", "--port", "70000", *_TOLD),
        ("dashboard", "told", "--host", "256.256.256.256", "--port", "0", *_TOLD),
        ("dashboard", "told", "--host", "a\x1b[31m", "--port", "0", *_TOLD),
        ("worker", "--study", "none", "--storage", "sqlite:///none.db"),
        ("worker", "--study", "told", "--cpu-threads", "0", *_TOLD),
        ("worker", "--study", "none", "--wait", "nan", *_TOLD),
    ]  # fmt: skip


def _all_files(valid: Valid) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        good_files(folder, valid)
        texts, nulls = predictions()
        put(folder, "data.json", corpus())
        put(folder, "predictions.json", texts)
        put(folder, "nulls.json", nulls)
        put(folder, "a file", "a file")
        put(folder, "context.txt", "The town of Port0 lies beside Lake0.")
        put(folder, "controls.txt", f"The town {CONTROLS} Port0 {CONTROLS} lies.")
        (folder / "a folder").mkdir()
        put(folder / "a folder", "mine.txt", "mine")
        # What is left of an export: one of its two marks.
        (folder / "half").mkdir()
        put(folder / "half", "metrics.json", "{")
        # A superuser may write to any folder, and to none below a device.
        (folder / "locked").symlink_to("/dev/null")
        shutil.copyfile(valid.database, folder / "told.db")
        link(folder, valid.export)
        link(folder, valid.artifacts)

    return make
