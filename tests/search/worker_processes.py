"""Starts the processes of ``cheap_worker.py``."""

import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("cheap_worker.py")


def started(url: str, action: str, budget: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(WORKER), url, action, budget],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*workers: "subprocess.Popen[str]", code: int = 0) -> list[str]:
    """What the workers printed, once all have ended with ``code``."""
    answers = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [code] * len(workers), answers
    return [output for output, _ in answers]
