"""A stand-in for the Hugging Face Hub on this host, for the clients' real code.

It speaks what huggingface_hub, datasets and transformers ask when they read: information on a
repository, listings of its files, and the files, small ones as the hub has them in git and large
ones by way of another host. It knows tokens and their rights, renamed repositories and commits,
fails on demand, and keeps a log.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer

from hub_answers import Handler
from hub_repositories import Asked, Repository

__all__ = ["Asked", "Hub", "Repository"]


@dataclass
class _Fault:
    pattern: re.Pattern[str]
    times: int
    status: int
    bytes_sent: int | None


class Hub:
    """The hub; use it as a context manager. ``url`` is what HF_ENDPOINT is set to."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.renamed: dict[tuple[str, str], str] = {}
        self.tokens: dict[str, set[str]] = {}
        self.log: list[Asked] = []
        self.faults: list[_Fault] = []
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Large files come from another host, to which no client may send its token.
        self.files_url = f"http://localhost:{self.port}"

    def __enter__(self) -> "Hub":
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(
        self,
        kind: str,
        name: str,
        files: Mapping[str, bytes],
        *,
        once: str | None = None,
        private: bool = False,
        gated: bool = False,
    ) -> Repository:
        """Add a repository with one commit.

        Args:
            kind: "model" or "dataset".
            name: Its id.
            files: Path to content.
            once: An id that it had before, which the hub redirects.
            private: Whether only tokens with its id among their rights see it.
            gated: Whether only those get its files.
        """
        repository = Repository(kind, name, private, gated)
        repository.commit(files)
        self.repositories[kind, name] = repository
        if once is not None:
            self.renamed[kind, once] = name
        return repository

    def fail(
        self, pattern: str, *, times: int = 1, status: int = 503, after: int | None = None
    ) -> None:
        """Fail requests whose "METHOD path" matches ``pattern``.

        Args:
            pattern: A regular expression.
            times: How many of them.
            status: The status they get; 0 drops the connection without an answer.
            after: Drop the connection after so many bytes of the content instead.
        """
        with self.lock:
            self.faults.append(_Fault(re.compile(pattern), times, status, after))

    @contextmanager
    def watched(self) -> Iterator[list[Asked]]:
        """Give a list that holds, after the block, what was asked within it."""
        seen: list[Asked] = []
        with self.lock:
            start = len(self.log)
        yield seen
        time.sleep(0.05)  # a request is logged when it has been answered
        with self.lock:
            seen.extend(self.log[start:])

    def fetched(self) -> Counter[str]:
        """Return how often each file's content was sent to its end, by repository and path."""
        found: Counter[str] = Counter()
        with self.lock:
            for asked in self.log:
                match = re.search(r"/(?:resolve-cache|files)/(.*)", asked.path)
                if asked.method == "GET" and asked.status in {200, 206} and match:
                    kind, rest = match[1].split("/", 1)
                    owner, name, _, path = rest.split("/", 3)
                    found[f"{kind}/{owner}/{name}/{path}"] += 1
        return found

    def fault(self, line: str) -> _Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.pattern.search(line):
                    fault.times -= 1
                    return fault
        return None
