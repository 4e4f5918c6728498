"""What runs in a Slurm job: one worker, started again after a death, requeued on preemption.

The job and its launcher share no memory, only a folder: the job writes a journal there, a line of
JSON for each start and end of its worker.
"""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from qa_hpo.errors import WorkError
from qa_hpo.workers.launcher import (
    GRACE_S,
    Death,
    cores,
    end_worker,
    label_of,
    log_of,
    start_worker,
    tail,
    worker_command,
    worker_environment,
)
from qa_hpo.workers.restarts import Restarts

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

__all__ = ["Journal", "SlurmJob"]

_LOOK_S = 0.1
_TOLD_TO_END = {-signal.SIGTERM, 128 + signal.SIGTERM}
_WORD_S = 60.0
"""For how long a job whose worker was told to end waits for Slurm to say why: by the signal of a
preemption, or by the job's end. Else it was somebody else, and the worker is started again."""


class Journal:
    """The starts and ends of one worker, in all its processes, on whichever host.

    Args:
        path: The file; made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **facts: Any) -> None:
        """Append a line."""
        line = json.dumps({"event": event, **facts}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines that are whole."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:  # none yet, or not seen yet from this host
            return []
        return [json.loads(line) for line in text.split("\n")[:-1] if line]


@dataclass
class SlurmJob:
    """A worker as submitit runs it.

    The storage's URL is in the environment, which Slurm hands on, and in no file.

    Attributes:
        study: The study's name.
        name: The launcher's.
        index: Which of its workers, from 1.
        logs: The folder of the study's logs, seen by all hosts.
        folder: Where the journal is.
        shares_cores: Whether it computes on the cores that Slurm gives the job, without a GPU.
        grace_s: Seconds that the worker may take to hand its trial back.
        word_s: Seconds to wait for Slurm's word after the worker was told to end.
    """

    study: str
    name: str
    index: int
    logs: Path
    folder: Path
    shares_cores: bool
    grace_s: float = GRACE_S
    word_s: float = _WORD_S

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def journal(self) -> Journal:
        """The starts and ends of the worker."""
        return Journal(self.folder / f"{self.index}.jsonl")

    @property
    def log(self) -> Path:
        """Where the worker prints."""
        return log_of(self.logs, self.name, self.index)

    def __call__(self) -> None:
        """Run the worker, again after deaths that may pass, until its work is done.

        Raises:
            WorkError: It died, and is not started again.
        """
        signal.signal(signal.SIGTERM, self._forward)
        restarts = Restarts()
        while True:
            code = self._run(restarts)
            if code in _TOLD_TO_END:
                self.journal.write("stopped")
                time.sleep(self.word_s)
            delay = restarts.ended(code)
            text = "" if code == 0 else tail(self.log)
            self.journal.write("end", code=code, restarted=delay is not None, tail=text)
            if code == 0:
                return
            if delay is None:
                raise WorkError(f"worker {self.index} ended with code {code}; see {self.log}")
            time.sleep(delay)

    def checkpoint(self) -> "DelayedSubmission":
        """Let the worker hand its trial back, and return what the requeued job is to do."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415  (an extra)

        process = self._process
        if process is not None:
            self._forward(signal.SIGTERM, None)
            deadline = time.monotonic() + self.grace_s
            while _runs(process.pid) and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            if _runs(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        self.journal.write("requeued")
        # What Slurm does next is to end this process, and what it then runs: the command that asks
        # for the requeue. It must come to its end, or the job is taken for failed.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def _run(self, restarts: Restarts) -> int:
        threads = None
        if self.shares_cores:
            threads = int(os.environ.get("SLURM_CPUS_PER_TASK") or cores())
        # Counted by the journal: Slurm itself may requeue the job, with nobody to count.
        restart = sum(line["event"] == "start" for line in self.journal.lines())
        restarts.started()
        process = self._process = start_worker(
            worker_command(self.study, label_of(self.name, self.index, restart), threads),
            worker_environment(None, threads),
            self.log,
            tied=True,
        )
        try:
            self.journal.write("start", host=socket.gethostname(), pid=process.pid, restart=restart)
            while True:
                # Not one long wait: a handler that checkpoints interrupts it, and looks too.
                try:
                    return process.wait(_LOOK_S)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            end_worker(process, self.grace_s)
            self._process = None

    def _forward(self, _number: int, _frame: FrameType | None) -> None:
        """Tell the worker to end: Slurm may have told this process alone, or both."""
        process = self._process
        if process is not None and _runs(process.pid):
            os.kill(process.pid, signal.SIGTERM)


def _runs(pid: int) -> bool:
    """Return whether a child runs, without reaping it: who waits for it must learn its code."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def deaths_in(lines: list[dict[str, Any]], job: SlurmJob, *, over: bool) -> list[Death]:
    """Return the deaths that a journal tells of, in order.

    Args:
        lines: The journal.
        job: The job that wrote it.
        over: Whether the job has ended, so that a start without an end was a death nobody saw.
    """
    found: list[Death] = []
    start: dict[str, Any] | None = None

    def died(code: int | None, text: str, *, restarted: bool) -> None:
        begun = start or {"restart": 0, "host": "", "pid": None}
        label = label_of(job.name, job.index, begun["restart"])
        found.append(
            Death(label, begun["host"], begun["pid"], code, job.log, text, restarted=restarted)
        )

    stopped = False
    for line in lines:
        if line["event"] == "stopped":
            stopped = True
            continue
        if line["event"] == "start":
            if start is not None and not stopped:
                died(None, "", restarted=True)
            start = line
        elif line["event"] == "requeued":
            start = None
        else:
            if line["code"] != 0:
                died(line["code"], line["tail"], restarted=line["restarted"])
            start = None
        stopped = False
    if over and start is not None and not stopped:
        died(None, tail(job.log), restarted=False)
    return found
