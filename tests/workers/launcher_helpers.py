"""What tests of launchers share: something that runs in place of a worker, and how to look at it.

Python itself is real, and so are the processes: a ``sitecustomize`` on PYTHONPATH takes over where
``python -m qa_hpo worker`` is started, and nowhere else.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_hpo.workers.launcher import Death, Launcher

__all__ = ["SECRET", "STUDY", "URL", "StandIns", "deaths", "gone", "until", "write_stand_in"]

STUDY = "a study, it's ünusual"
SECRET = "s3cr3t-of-the-database"
URL = f"postgresql://me:{SECRET}@nowhere.invalid/studies"

# The folder's variable begins with QA_HPO_, so that launchers hand it on to other hosts.
_STAND_IN = """
import sys
if sys.orig_argv[1:4] == ["-m", "qa_hpo", "worker"]:
    import json, os, signal, time
    from pathlib import Path
    folder = Path(os.environ["QA_HPO_STAND_IN"])
    how = (folder / "how").read_text()
    me = folder / f"worker-{os.getpid()}.json"
    def end(*_):
        (folder / f"told-{os.getpid()}").touch()
        os._exit(143)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "stubborn" else end)
    print("a line of mine", flush=True)
    print("the last line of mine", file=sys.stderr, flush=True)
    me.with_suffix(".new").write_text(json.dumps({
        "pid": os.getpid(),
        "at": time.monotonic(),
        "arguments": sys.orig_argv[4:],
        "command": Path("/proc/self/cmdline").read_text(),
        "environment": dict(os.environ),
    }))
    me.with_suffix(".new").rename(me)
    if how.isdecimal():
        os._exit(int(how))
    while True:
        time.sleep(1)
"""


def write_stand_in(folder: Path) -> Path:
    """Write the package path on which Python finds the stand-in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_STAND_IN)
    return folder


class StandIns:
    """What the processes in place of workers do, and what they were given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.do("work")

    def do(self, how: str) -> None:
        """Let those that start from now on work until they are told to end, be stubborn, or end
        with an exit code."""
        (self.folder / "how").write_text(how)

    def given(self) -> list[dict[str, Any]]:
        """What each that has started was given, in the order of their starts."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("worker-*.json")]
        return sorted(found, key=lambda one: one["at"])

    def wait_for(self, count: int, launcher: Launcher | None = None) -> list[dict[str, Any]]:
        """Wait until so many have started in all."""

        def enough() -> bool:
            if launcher is not None:
                assert (found := launcher.poll()) == [], found
            return len(self.given()) >= count

        until(enough)
        return self.given()

    def told(self, pid: int) -> bool:
        """Whether a process was told to end by SIGTERM."""
        return (self.folder / f"told-{pid}").exists()

    def kill(self) -> None:
        for one in self.given():
            if not gone(one["pid"]):
                os.kill(one["pid"], signal.SIGKILL)


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until ``true`` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return found


def deaths(launcher: Launcher, count: int) -> list[Death]:
    """Wait for so many deaths."""
    found: list[Death] = []
    until(lambda: found.extend(launcher.poll()) or len(found) >= count)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
