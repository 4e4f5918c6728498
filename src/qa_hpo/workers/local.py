"""Workers on this host: one process each, which share its GPUs or its cores."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from qa_hpo.paths import StudyPaths

__all__ = ["LocalWorkers", "Worker", "gpus"]

# How long workers may take to hand their trials back before they are killed.
_GRACE_SECONDS = 20.0
_TAIL_BYTES = 4000


@dataclass(frozen=True)
class Worker:
    """A worker process, and the log that it writes."""

    label: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 5) -> str:
        """Return the last lines of the log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])


def gpus() -> list[str]:
    """Return the names, as ``CUDA_VISIBLE_DEVICES`` has them, of the GPUs that may be used.

    Asked of the driver's own tool: torch would take seconds, and memory on each GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name not in {"", "-1"}]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = subprocess.run(
        [tool, "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        return []
    # Without a device it may say so in words, and call that a success.
    return [line for line in asked.stdout.split("\n") if line.strip().isdecimal()]


class LocalWorkers:
    """Starts workers of a study on this host and looks after them.

    Args:
        study: The study's name.
        url: Its storage.
        paths: Where the workers' logs go.
        count: How many workers.
    """

    def __init__(self, study: str, url: str, paths: StudyPaths, count: int) -> None:
        self.workers = []
        devices = gpus()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // count)
        try:
            for index in range(1, count + 1):
                device = devices[(index - 1) % len(devices)] if devices else None
                self.workers.append(_start(study, url, paths, index, device, threads))
        except BaseException:
            self.stop()
            raise

    def alive(self) -> list[Worker]:
        """Return the workers that still work."""
        return [worker for worker in self.workers if worker.process.poll() is None]

    def failed(self) -> list[Worker]:
        """Return the workers that ended with an error."""
        return [worker for worker in self.workers if worker.process.poll() not in {None, 0}]

    def stop(self) -> None:
        """Tell the workers to hand their trials back and end; kill those that do not."""
        for worker in self.alive():
            worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _start(
    study: str, url: str, paths: StudyPaths, index: int, device: str | None, threads: int
) -> Worker:
    environment = dict(os.environ)
    # The storage's URL may hold a password, which arguments would show to everyone on this host.
    environment["QA_HPO_STORAGE"] = url
    command = [sys.executable, "-m", "qa_hpo", "worker", "--study", study]
    label = f"worker-{index}"
    command += ["--label", label]
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    else:
        environment["OMP_NUM_THREADS"] = str(threads)
        command += ["--cpu-threads", str(threads)]
    log = paths.worker_log(index)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches this process alone, which then tells its workers to end in good order.
            start_new_session=True,
        )
    return Worker(label, process, log)
