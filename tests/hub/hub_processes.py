"""The command line in processes of its own, with its own cache, against a hub."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from processes import start

__all__ = ["Ended", "Place", "Running"]

# Read when these modules are imported, which the processes' server has done.
_READ_ONCE = ("huggingface_hub.constants", "datasets.config")
_OURS = ("HF_", "QA_HPO_", "TRANSFORMERS_", "HUGGING")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; there must be no other."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")


@dataclass
class Running:
    process: BaseProcess
    out: Path

    def end(self, seconds: float = 120) -> Ended:
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"has not ended within {seconds} s"
        return Ended(code, (self.out / "out").read_text(), (self.out / "err").read_text())


@dataclass
class Place:
    """A folder to work in, with a cache of its own.

    Attributes:
        folder: Where commands run.
        url: The hub.
        environment: What else they are given.
    """

    folder: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "huggingface"

    def variables(self, **more: str) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            **self.environment,
            **more,
        }

    def begin(self, *arguments: str | Path, **environment: str) -> Running:
        """Start a command in a process that has imported its libraries already."""
        self.calls += 1
        out = self.folder / f"call-{self.calls}"
        out.mkdir(parents=True)
        process = start(
            _command, [*map(str, arguments)], self.variables(**environment), self.folder, out
        )
        return Running(process, out)

    def create(self, file: Path) -> None:
        """Create a study as ``run`` does, and run no worker."""
        self.calls += 1
        out = self.folder / f"call-{self.calls}"
        out.mkdir(parents=True)
        ended = Running(start(_create, file, self.variables(), self.folder, out), out).end()
        assert ended.code == 0, ended.err

    def run(self, *arguments: str | Path, **environment: str) -> Ended:
        return self.begin(*arguments, **environment).end()

    def run_anew(self, *arguments: str | Path, **environment: str) -> Ended:
        """Run a command as a shell does: a new interpreter, which imports everything."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
        ended = subprocess.run(
            [sys.executable, "-m", "qa_hpo", *map(str, arguments)],
            cwd=self.folder,
            env={**kept, **self.variables(**environment)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)


def _command(arguments: list[str], environment: dict[str, str], folder: Path, out: Path) -> None:
    _settle(environment, folder, out)
    sys.argv = ["qa-hpo", *arguments]
    from qa_hpo import cli

    cli.main()


def _create(file: Path, environment: dict[str, str], folder: Path, out: Path) -> None:
    _settle(environment, folder, out)
    from qa_hpo.config import load_study_file, storage_url
    from qa_hpo.running import create_or_continue

    study = load_study_file(file)
    create_or_continue(study, storage_url(study.study, None)).storage.close()


def _settle(environment: dict[str, str], folder: Path, out: Path) -> None:
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        del os.environ[name]
    os.environ.update(environment)
    for name, number in (("out", 1), ("err", 2)):
        descriptor = os.open(out / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
    for name in _READ_ONCE:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    from huggingface_hub import logging

    logging.set_verbosity_error()  # as the command line does by way of the environment
