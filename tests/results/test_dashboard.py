"""The dashboard over HTTP: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError

from cli_helpers import run_cli
from dashboard_process import FILES, DashboardProcess, write_study
from qa_hpo.results.dashboard import _reader
from qa_hpo.search.storage import open_storage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench/ is not installed
from bench.postgres import OwnPostgres

WRITES = [
    ("POST", "/api/studies", {"study_name": "new", "directions": ["minimize"]}),
    ("POST", "/api/studies/1/rename", {"study_name": "another"}),
    ("PUT", "/api/studies/1/note", {"version": 1, "body": "a note"}),
    ("DELETE", "/api/studies/1", {"remove_associated_artifacts": True}),
    ("DELETE", "/api/studies/1", None),
    ("PATCH", "/api/studies/1", {}),
    ("OPTIONS", "/api/studies/1", None),
    ("get", "/api/studies/1", None),
    ("POST", "/incompatible-rdb-schema", None),
]


class Study:
    """A study in a database, with artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "it's a study.db"
        self.url = f"sqlite:///{self.database}"
        self.artifacts = dict(
            zip(FILES, write_study(self.url, folder / "artifacts"), strict=True),
        )

    def names(self) -> list[str]:
        with closing(sqlite3.connect(self.database)) as database:
            return [name for (name,) in database.execute("SELECT study_name FROM studies")]

    def files(self) -> set[bytes]:
        return {path.read_bytes() for path in (self.folder / "artifacts").iterdir()}

    def dashboard(self, *options: str) -> DashboardProcess:
        return DashboardProcess(self.url, self.folder / "log", *options)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that no test changes."""
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def dashboard(study: Study) -> Iterator[DashboardProcess]:
    with study.dashboard() as dashboard:
        yield dashboard
        assert study.names() == ["demo"]
        # Not a word in all these tests.
        assert dashboard.end(signal.SIGINT) == (0, "", "")


def test_it_tells_where_the_studys_page_is(dashboard: DashboardProcess):
    page = f"http://127.0.0.1:{dashboard.port}/dashboard/studies/1"
    assert dashboard.line == f"study 'demo': {page} (read-only; Ctrl-C ends it)\n"


def test_its_pages_and_what_they_ask_for(dashboard: DashboardProcess):
    assert dashboard.ask("/").headers["Location"] == dashboard.url("/dashboard")
    page = dashboard.ask("/dashboard/studies/1")
    assert b"/static/bundle.js" in page.body
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    # With and without: the dashboard looks for the header.
    for headers in ({}, {"Accept_Encoding": "gzip"}):
        script = dashboard.ask("/static/bundle.js", **headers)
        assert script.headers["Content-Type"].partition(";")[0] == "text/javascript"
        assert dashboard.ask("/favicon.ico", **headers).status == 200
    [summary] = dashboard.ask("/api/studies").json()["study_summaries"]
    assert (summary["study_id"], summary["study_name"]) == (1, "demo")
    detail = dashboard.ask("/api/studies/1").json()
    assert [trial["values"] for trial in detail["trials"]] == [[50.0], [51.0], [52.0]]
    assert len(dashboard.ask("/api/studies/1/param_importances").json()["param_importances"]) == 1
    assert dashboard.ask("/csv/1").body.count(b"COMPLETE") == 3
    assert dashboard.ask("/api/studies/2").status == 404
    assert dashboard.ask("/artifacts/1/99/abc").status == 404
    head = dashboard.ask("/api/studies/1", "HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_it_changes_nothing(
    dashboard: DashboardProcess, study: Study, method: str, path: str, body: object
):
    answer = dashboard.ask(path, method, body)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.body.decode() == (
        "the dashboard is read-only; qa-hpo dashboard --writable lets it write\n"
    )
    assert study.names() == ["demo"]
    assert study.files() == {content for _, content in FILES.values()}


def test_large_requests_hear_the_answer_too(dashboard: DashboardProcess):
    assert dashboard.ask("/api/artifacts/1", "POST", {"file": "x" * 1_000_000}).status == 405


def test_artifacts_are_no_pages_of_the_dashboard(dashboard: DashboardProcess, study: Study):
    for name, path in study.artifacts.items():
        for form in (path, f"{path}/", f"//{path.lstrip('/')}"):
            answer = dashboard.ask(form, Origin="http://evil.example")
            assert (answer.headers["Content-Type"], answer.body) == FILES[name]
            assert answer.headers["Content-Security-Policy"] == "sandbox"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1:80", 200),
        ("127.9.9.9", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("localhost, evil.example", 403),
        ("192.168.0.1:8080", 403),
        ("0.0.0.0:8080", 403),
        ("[bad", 403),
        ("", 403),
    ],
)
def test_names_that_other_sites_may_have_are_refused(
    dashboard: DashboardProcess, host: str, status: int
):
    answer = dashboard.ask("/api/studies", Host=host)
    assert answer.status == status
    if status == 403:
        assert answer.body == b"the dashboard answers to localhost and 127.0.0.1\n"


def test_workers_that_write_do_not_wait_for_it_nor_it_for_them(
    dashboard: DashboardProcess, study: Study
):
    with closing(sqlite3.connect(study.database, isolation_level=None)) as worker:
        worker.execute("BEGIN IMMEDIATE")
        worker.execute("UPDATE studies SET study_name = 'busy'")
        [summary] = dashboard.ask("/api/studies").json()["study_summaries"]
        assert summary["study_name"] == "demo"
        assert dashboard.ask("/api/studies/1").status == 200
        worker.execute("ROLLBACK")


def test_a_taken_port_is_one_line(dashboard: DashboardProcess, study: Study):
    ended = run_cli("dashboard", "demo", "--storage", study.url, "--port", str(dashboard.port))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: 127.0.0.1 port {dashboard.port}: nobody can listen there: Address already in use; "
        "choose with --host and --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "no..name"], "no..name port 0: nobody can listen there"),
        (["--host", "192.0.2.1"], "192.0.2.1 port 0: nobody can listen there"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/db"], "me:***@127.0.0.1"),
        (["--storage", "sqlite:///none.db"], "no study there yet"),
    ],
)
def test_other_mistakes_are_one_line(study: Study, arguments: list[str], words: str):
    ended = run_cli("dashboard", "demo", "--storage", study.url, "--port", "0", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1
    assert "secret" not in ended.err


def test_two_at_once_and_the_end_of_one(dashboard: DashboardProcess, study: Study, tmp_path: Path):
    with DashboardProcess(study.url, tmp_path / "log") as second:
        assert second.port != dashboard.port
        answers = [each.ask("/api/studies/1").json() for each in (dashboard, second)]
        assert answers[0]["trials"] == answers[1]["trials"]
        assert second.end(signal.SIGTERM) == (0, "", "")
    assert dashboard.ask("/api/studies").status == 200


def test_other_addresses_are_warned_of(study: Study, tmp_path: Path):
    with DashboardProcess(study.url, tmp_path / "log", "--host", "0.0.0.0") as dashboard:
        assert dashboard.page == f"http://localhost:{dashboard.port}/dashboard/studies/1"
        # Whatever it is called by those who reach it.
        assert dashboard.ask("/api/studies", Host="a-host.example:8080").status == 200
        assert dashboard.ask("/api/studies/1", "DELETE").status == 405
        code, _, err = dashboard.end(signal.SIGINT)
    assert code == 0
    assert len(err.splitlines()) == 1
    assert f"no login: who reaches 0.0.0.0 port {dashboard.port} may read all studies" in err


def test_writable_lets_its_own_pages_write(tmp_path: Path):
    study = Study(tmp_path)
    with study.dashboard("--writable") as dashboard:
        assert "(writable; Ctrl-C ends it)" in dashboard.line
        assert dashboard.ask("/dashboard").headers["X-Frame-Options"] == "SAMEORIGIN"
        own = f"http://127.0.0.1:{dashboard.port}"
        note = {"version": 1, "body": "kept"}
        for origin in ("http://evil.example", "http://localhost:3000", f"{own}0", "null"):
            for method, path, body in (
                ("PUT", "/api/studies/1/note", note),
                ("DELETE", "/api/studies/1", None),
                ("GET", "/api/studies", None),
            ):
                answer = dashboard.ask(path, method, body, Origin=origin)
                assert answer.status == 403
                assert answer.body == b"another site may not ask for this\n"
        assert dashboard.ask("/api/studies/1", "DELETE", Host="evil.example").status == 403
        assert study.names() == ["demo"]
        assert dashboard.ask("/api/studies/1/note", "PUT", note, Origin=own).status == 204
        assert dashboard.ask("/api/studies/1").json()["note"]["body"] == "kept"
        # Bytes that are gone, although something points to them.
        (tmp_path / "artifacts" / study.artifacts["page.html"].rpartition("/")[2]).unlink()
        answer = dashboard.ask(study.artifacts["page.html"])
        assert (answer.status, answer.body) == (404, b"it is not there\n")
        removing = {"remove_associated_artifacts": True}
        assert dashboard.ask("/api/studies/1", "DELETE", removing, Origin=own).status == 204
        assert dashboard.ask("/api/studies").json() == {"study_summaries": []}
        assert (study.names(), study.files()) == ([], set())
        assert dashboard.ask("/api/studies/1").status == 404
        assert dashboard.ask(study.artifacts["dot.svg"]).status == 404
        assert dashboard.end(signal.SIGINT) == (0, "", "")


def test_what_reads_cannot_write(study: Study):
    storage = open_storage(study.url, create=False)
    with _reader(storage) as reader, pytest.raises(StorageInternalError) as raised:
        reader.set_study_user_attr(1, "changed", True)
    assert "readonly" in str(raised.value.__cause__)
    assert "changed" not in storage.rdb.get_study_user_attrs(1)
    storage.close()


@pytest.mark.slow
def test_on_postgresql(tmp_path: Path):
    server = OwnPostgres()
    try:
        url = server.url("dashboard")
        write_study(url, tmp_path / "artifacts")
        storage = open_storage(url, create=False)
        with _reader(storage) as reader, pytest.raises(StorageInternalError) as raised:
            reader.set_study_user_attr(1, "changed", True)
        assert "read-only transaction" in str(raised.value.__cause__)
        storage.close()
        with DashboardProcess(url, tmp_path / "log", "--writable") as dashboard:
            assert len(dashboard.ask("/api/studies/1").json()["trials"]) == 3
            server.stop()
            assert dashboard.ask("/api/studies/1").status == 500
            server.start()
            assert len(dashboard.ask("/api/studies/1").json()["trials"]) == 3
            assert dashboard.ask("/api/studies/1", "DELETE").status == 204
            assert dashboard.ask("/api/studies").json() == {"study_summaries": []}
            code, _, err = dashboard.end(signal.SIGINT)
        assert code == 0
        assert all("the database" in line for line in err.splitlines()), err
        assert "has not answered for" in err
    finally:
        server.close()
