"""A study to show, and the dashboard as people start it: a process that is asked over HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).with_name("search")))
from search_helpers import asked, created, opened, run

from qa_hpo.search.artifacts import artifact_id, metadata, open_store
from qa_hpo.search.joined import JoinedStudy

__all__ = ["Answer", "DashboardProcess", "add_artifact", "write_study"]

# A shell that starts tests in the background has them ignore SIGINT, which is inherited.
_COMMAND = (
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from qa_hpo.cli import main\n"
    "main()\n"
)


def write_study(url: str, folder: Path, trials: int = 3) -> list[str]:
    """Create the study ``demo`` with finished trials, the first of which has FILES.

    Returns:
        The paths of the first trial's artifacts, as the dashboard serves them.
    """
    with opened(url) as storage:
        joined = created(storage, artifacts={"folder": str(folder)})
        paths = []
        for number in range(trials):
            trial = asked(joined).trial
            if number == 0:
                for name, (mimetype, content) in FILES.items():
                    key = add_artifact(joined, trial._trial_id, name, mimetype, content)
                    paths.append(f"/artifacts/{joined.key}/{trial._trial_id}/{key}")
            run(joined, trial, epochs=2, best_f1=50.0 + number)
    return paths


def add_artifact(
    joined: JoinedStudy, trial_id: int, name: str, mimetype: str, content: bytes
) -> str:
    """Give a running trial a file, and return its key."""
    key = artifact_id(joined.uid, joined.storage.rdb.get_trial(trial_id).number, 1)
    open_store(joined.file.artifacts.folder).put_bytes(key, content)
    joined.storage.rdb.set_trial_system_attr(trial_id, *metadata(key, name, mimetype))
    return key


FILES = {
    "checkpoint.tar": ("application/x-tar", bytes(range(256)) * 40),
    "errors.csv": ("text/csv", b"question,answer\nWhich town?,Port7\n"),
    "page.html": (
        "text/html",
        b"<title>calm</title><p>A page.</p><script>document.title = 'run'</script>",
    ),
    "dot.svg": (
        "image/svg+xml",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="7" height="5"><rect width="7" '
        b'height="5"/></svg>',
    ),
}


@dataclass(frozen=True)
class Answer:
    """What the dashboard answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class DashboardProcess:
    """``qa-hpo dashboard demo``. Use it as a context manager.

    Attributes:
        line: What it printed.
        page: The URL of the study's page.
        port: Where it listens.
    """

    def __init__(self, url: str, log: Path, *options: str) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _COMMAND, "dashboard", "demo"),
                    *("--storage", url, "--port", "0", *options),
                ],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.page = next((word for word in self.line.split() if "://" in word), "")
        if not self.page:
            self.__exit__()
            raise AssertionError(f"it did not start: {self.line}{log.read_text()}")
        self.port = urlsplit(self.page).port

    def __enter__(self) -> DashboardProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """Send a request; headers are given with _ for -."""
        content = None if body is None else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} if content else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=content, headers=named)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """End it by a signal; return its exit code, what it still printed, and its errors."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out, self.log.read_text()
