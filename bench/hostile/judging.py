"""Run a command on hostile input, and judge how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import signal
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench.hostile.mutations import SECRET
from qa_hpo import cli

__all__ = ["SECONDS", "Ended", "Fault", "judge", "listing", "run_here"]

SECONDS = 10.0
"""After which a command counts as hanging."""
MARKER = "code-was-run"
"""The file that code in a model folder would write."""
# Of the package's own log.
_WARNING = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING \S")
_MOST_LINES = 25
_LONGEST_LINE = 1500
# Whole when they are there, and of use to the next command: windows, and the file beside a database
# of studies on which processes lock it.
_MAY_COME = ("cache", "told.db.lock")
# A database of studies is in WAL mode once it has been opened.
_MAY_CHANGE = ("told.db",)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; None if it hung or something came out that is no exit.
        out: What it printed.
        err: What it printed for errors.
        escaped: What came out of it, where that is no exit.
        hung: Whether it took too long.
    """

    code: int | None
    out: str
    err: str
    escaped: str = ""
    hung: bool = False


@dataclass(frozen=True)
class Fault:
    """What was wrong with how a command ended.

    Attributes:
        sort: ``traceback``, ``hang``, ``leftover`` or ``message``.
        words: What was seen.
    """

    sort: str
    words: str


class _HangError(BaseException):
    """Raised in a command that takes too long; no Exception, so that nothing explains it."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise in the main thread after so many seconds, and again every second."""

    def ring(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _HangError

    handler = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)  # a test runner's own
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _captured(descriptor: int, name: str, errors: str) -> Iterator[Callable[[], str]]:
    """Send what is written to a descriptor, by whatever language, to a file."""
    old_stream = getattr(sys, name)
    old_stream.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(descriptor)
        os.dup2(file.fileno(), descriptor)
        # As the interpreter opens it where the locale is a usual one.
        stream = open(descriptor, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)

        def text() -> str:
            stream.flush()
            file.seek(0)
            return file.read().decode("utf-8", errors="surrogateescape")

        try:
            yield text
        finally:
            setattr(sys, name, old_stream)
            with contextlib.suppress(OSError, ValueError):
                stream.close()
            os.dup2(kept, descriptor)
            os.close(kept)


@contextlib.contextmanager
def _as_in_a_process(folder: Path, env: Mapping[str, str], argv: Sequence[str]) -> Iterator[None]:
    """Give the command its own folder, environment, arguments, warnings and log."""
    environ, arguments, cwd = dict(os.environ), sys.argv, Path.cwd()
    handlers, level = logging.root.handlers[:], logging.root.level
    for name in ("QA_HPO_STORAGE", "QA_HPO_DEBUG"):
        os.environ.pop(name, None)
    os.environ.update({"QA_HPO_CACHE": "cache"} | dict(env))
    sys.argv = ["qa-hpo", *argv]
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        os.chdir(cwd)
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environ)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def run_here(argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> Ended:
    """Run the command line in this process's main thread, in a folder."""
    code: Any = None
    escaped, hung = "", False
    with (
        _as_in_a_process(folder, env or {}, argv),
        _captured(1, "stdout", "strict") as out,
        _captured(2, "stderr", "backslashreplace") as err,
    ):
        try:
            with _limited(SECONDS):
                cli.main()
        except SystemExit as ended:
            code = 0 if ended.code is None else ended.code
        except _HangError:
            hung = True
        except BaseException as error:  # noqa: BLE001  (a panic of a library in Rust is no Exception)
            escaped = f"{type(error).__name__}: {error}"
        said = out(), err()
    return Ended(code if isinstance(code, int) else None, *said, escaped=escaped, hung=hung)


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with a hash of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha1").hexdigest()
        else:
            found[name] = "folder"
    return found


def judge(ended: Ended, before: Mapping[str, str], after: Mapping[str, str]) -> list[Fault]:
    """What is wrong with how a command ended.

    Args:
        ended: How it ended.
        before: The listing of its folder before it ran.
        after: That after it.
    """
    faults = []
    if ended.hung:
        return [Fault("hang", f"more than {SECONDS:g} s")]
    if ended.escaped or "Traceback" in ended.err or "(--debug tells more)" in ended.err:
        faults.append(Fault("traceback", ended.escaped or ended.err.strip()[-300:]))
    elif ended.code not in {0, 1, 2}:
        faults.append(Fault("traceback", f"exit code {ended.code}"))
    faults += [Fault("message", words) for words in _wrong_words(ended)]
    faults += [Fault("leftover", words) for words in _left(ended.code, before, after)]
    if MARKER in " ".join(after):
        faults.append(Fault("traceback", "code of a model folder was run"))
    return faults


def _wrong_words(ended: Ended) -> Iterator[str]:
    lines = [line for line in ended.err.split("\n") if not _WARNING.match(line)]
    if ended.code == 0 and lines != [""]:
        yield f"said on success: {ended.err[:300]!r}"
    if ended.code != 0:
        if lines[-1] or not lines[0]:
            yield "no whole line"
        strange = [line for line in lines[:-1] if not line.startswith("error: ")]
        if strange:
            yield f"no error line: {strange[0][:300]!r}"
        if len(lines) > _MOST_LINES:
            yield f"{len(lines) - 1} lines"
        yield from (f"{len(line)} characters" for line in lines if len(line) > _LONGEST_LINE)
    for name, text in (("stdout", ended.out), ("stderr", ended.err)):
        bad = sorted({f"U+{ord(char):04X}" for char in text if _commands_a_terminal(char)})
        if bad:
            yield f"control characters in {name}: {' '.join(bad)}"
        if SECRET in text:
            yield f"a secret in {name}"


def _commands_a_terminal(char: str) -> bool:
    category = unicodedata.category(char)
    return char != "\n" and (
        category in {"Cc", "Cs", "Zl", "Zp"} or char in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
    )


def _left(code: int | None, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name, content in after.items():
        parts = name.split("/")
        temporary = any(part.startswith(".") for part in parts) or name.endswith((".part", ".tmp"))
        if name not in before:
            if temporary and name not in {"cache/.gitignore"}:
                yield f"temporary {name}"
            elif code != 0 and parts[0] not in _MAY_COME:
                yield f"new {name}"
        elif content != before[name] and code != 0 and name not in _MAY_CHANGE:
            yield f"changed {name}"
    yield from (f"gone {name}" for name in before if name not in after)
