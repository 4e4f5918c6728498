"""Optuna's dashboard on a study, served to this host's browsers, in which nothing can be changed.

The dashboard has no login, and can delete studies with their checkpoints. What a browser sends it
may come from any site that the browser shows: only what our own pages ask for is let through.
"""

import contextlib
import ipaddress
import logging
import signal
import socket
import socketserver
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import sqlalchemy
from optuna.artifacts.exceptions import ArtifactNotFound
from sqlalchemy import event

from qa_hpo.errors import InputError
from qa_hpo.legible import mask
from qa_hpo.search.artifacts import open_store
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.retrying import RetryingRDBStorage, first_line
from qa_hpo.search.storage import StudyStorage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["serve"]

_READING = ("GET", "HEAD")
# A browser that waits for longer shows an error, and asks again by itself.
_PATIENCE_S = 5.0
# Of a refused request, so much is read: whoever still sends does not hear an answer.
_DRAINED_BYTES = 2**20

_logger = logging.getLogger(__name__)


def serve(
    joined: JoinedStudy, host: str, port: int, *, writable: bool, tell: Callable[[str], None]
) -> None:
    """Serve the dashboard of a study until SIGINT (Ctrl-C) or SIGTERM.

    Args:
        joined: The study; its page is the one that is told of.
        host: The address to listen on. Any but this host's own is warned of.
        port: The port; 0 stands for any that is free.
        writable: Whether pages may change and delete what is stored.
        tell: Prints a line: where the study's page is.

    Raises:
        InputError: Nobody can listen there.
    """
    store = open_store(joined.file.artifacts.folder).artifacts
    with contextlib.closing(_listen(host, port)) as server:
        address, bound = server.server_address[0], server.server_port
        local = ipaddress.ip_address(str(address)).is_loopback
        if not local:
            # Of the whole database: the dashboard shows what there is beside this study.
            may = "read and delete" if writable else "read"
            _logger.warning("no login: who reaches %s port %d may %s all studies", host, bound, may)
        with _reader(joined.storage) as reader:
            writer = None
            if writable:
                joined.storage.rdb.patience_s = _PATIENCE_S
                writer = _dashboard(joined.storage.rdb, store)
            server.set_app(_Guard(_dashboard(reader, store), writer, local=local))
            ways = "writable" if writable else "read-only"
            shown = f"http://{_shown(host)}:{bound}/dashboard/studies/{joined.key}"
            with contextlib.suppress(KeyboardInterrupt), _ended_by_sigterm():
                tell(f"study {joined.file.study.name!r}: {shown} ({ways}; Ctrl-C ends it)")
                server.serve_forever()


def _shown(host: str) -> str:
    """Return what to call an address in a URL."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "localhost"
        if address.version == 6:
            return f"[{host}]"
    return host


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does; the first process of a container ignores it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _reader(storage: StudyStorage) -> Iterator[RetryingRDBStorage]:
    """Open a study's database so that no page can change it or keeps its workers waiting.

    The workers' transactions on SQLite take the write lock, those that only read too.
    """
    settings = dict(storage.rdb.engine_kwargs)
    if storage.rdb.engine.name == "postgresql":
        settings["execution_options"] = {"postgresql_readonly": True}
    reader = RetryingRDBStorage(
        storage.url,
        engine_kwargs=settings,
        skip_compatibility_check=True,
        skip_table_creation=True,
    )
    reader.patience_s = _PATIENCE_S
    if reader.engine.name == "sqlite":
        _only_read(reader.engine)
    try:
        yield reader
    finally:
        reader.remove_session()
        reader.engine.dispose()


def _only_read(engine: sqlalchemy.Engine) -> None:
    """Make every SQLite transaction read one state of the database, beside those that write."""

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # leaves BEGIN to SQLAlchemy
        connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _began(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    engine.dispose()  # connections made before the listeners


def _dashboard(rdb: RetryingRDBStorage, artifacts: Any) -> "WSGIApplication":
    """Return Optuna's dashboard, which raises what it cannot answer."""
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard  # noqa: PLC0415  (slow)

    # Its views of JSON log what they fail with, with a traceback of theirs.
    for handler in logging.getLogger().handlers:
        handler.addFilter(_in_one_line)
    application = cast("Any", optuna_dashboard).wsgi(rdb, artifact_store=artifacts)
    application.catchall = False
    return cast("WSGIApplication", application)


def _in_one_line(record: logging.LogRecord) -> bool:
    if record.name.startswith("optuna_dashboard") and not _logger.isEnabledFor(logging.DEBUG):
        record.msg, record.args = mask(record.getMessage().partition("\n")[0]), ()
        record.exc_info = None
    return True


@dataclass(frozen=True)
class _Refusal:
    """Why a request is not let through."""

    status: str
    words: str
    headers: tuple[tuple[str, str], ...] = ()


class _Guard:
    """Lets through to the dashboard what its own pages ask for.

    Args:
        reader: The dashboard that answers what only reads.
        writer: The one that answers the rest, if that is allowed.
        local: Whether only this host reaches the server.
    """

    def __init__(
        self, reader: "WSGIApplication", writer: "WSGIApplication | None", *, local: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.local = local

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        refusal = self._refusal(environ)
        if refusal is not None:
            length = str(environ.get("CONTENT_LENGTH") or "0")
            if length.isdecimal():
                environ["wsgi.input"].read(min(int(length), _DRAINED_BYTES))
            return _say(refusal, start_response)
        # The dashboard's static files fail without.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")
        application = self.reader if environ["REQUEST_METHOD"] in _READING else self.writer
        assert application is not None
        try:
            return application(environ, self._hardened(start_response))
        except (ArtifactNotFound, KeyError):  # the latter of a study or a trial
            return _say(_Refusal("404 Not Found", "it is not there"), start_response)
        except Exception as error:  # noqa: BLE001  (one request fails, whatever it is)
            _logger.warning("%r: %s", environ["PATH_INFO"], mask(first_line(error)))
            return _say(_Refusal("500 Internal Server Error", "see the log"), start_response)

    def _refusal(self, environ: "WSGIEnvironment") -> _Refusal | None:
        host = environ.get("HTTP_HOST", "")
        if self.local and not _is_local(host):
            # A site whose name is made to stand for this host could read everything.
            return _Refusal("403 Forbidden", "the dashboard answers to localhost and 127.0.0.1")
        if self.writer is None:
            if environ["REQUEST_METHOD"] not in _READING:
                words = "the dashboard is read-only; qa-hpo dashboard --writable lets it write"
                allow = (("Allow", ", ".join(_READING)),)
                return _Refusal("405 Method Not Allowed", words, allow)
        elif "HTTP_ORIGIN" in environ and not _is_of(environ["HTTP_ORIGIN"], host):
            return _Refusal("403 Forbidden", "another site may not ask for this")
        return None

    def _hardened(self, start_response: "StartResponse") -> "StartResponse":
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            # Other sites' pages need no artifacts.
            kept = [
                (name, value)
                for name, value in headers
                if name.lower() != "access-control-allow-origin"
            ]
            kept.append(("X-Content-Type-Options", "nosniff"))
            if self.writer is not None:
                # No other site's page lies over these buttons.
                kept.append(("X-Frame-Options", "SAMEORIGIN"))
            if all(name.lower() != "content-security-policy" for name, _ in kept):
                # The dashboard's pages have one. An artifact may be a page too, and anybody's.
                kept.append(("Content-Security-Policy", "sandbox"))
            return start_response(status, kept, exc_info)

        return start


def _say(refusal: _Refusal, start_response: "StartResponse") -> list[bytes]:
    body = f"{refusal.words}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        *refusal.headers,
    ]
    start_response(refusal.status, headers)
    return [body]


def _is_local(host: str) -> bool:
    """Return whether a Host header names this host as only this host itself does."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_of(origin: str, host: str) -> bool:
    """Return whether an Origin header is of the site that a Host header names."""
    return origin.partition("://")[2].lower() == host.lower()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A server with a thread per request, none of which keeps it from ending."""

    daemon_threads = True
    allow_reuse_port = False  # a port that is taken is taken

    def __init__(self, family: socket.AddressFamily, address: Any) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def close(self) -> None:
        """Stop listening."""
        self.server_close()

    def server_bind(self) -> None:
        """Bind the socket, without asking name servers what this host is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error in one line; a browser that went away is none."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            _logger.warning("%s", mask(first_line(error)))


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log no requests: a page that is open asks every few seconds."""


def _listen(host: str, port: int) -> _Server:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return _Server(family, address)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"{host} port {port}: nobody can listen there: {why}; choose with --host and --port"
        ) from None
