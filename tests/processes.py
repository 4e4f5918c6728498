"""Real processes that start at once: forked from a server that has imported torch already.

What a process runs, and whatever it is given, must be importable and picklable.
"""

import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["dies_in", "finished", "start", "train"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "qa_hpo.finetune.predictor",
        "qa_hpo.workers.worker",
        # What a worker imports on the way.
        "alembic.command",
        "qa_hpo.results.publishing",
        "transformers.models.bert.modeling_bert",
    ]
)


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = _context.Process(target=_begin, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _begin(target: Callable[..., None], *arguments: Any) -> None:
    gc.freeze()  # as a worker does with what it has imported
    target(*arguments)


def finished(*processes: BaseProcess, code: int = 0, seconds: float = 120) -> None:
    """Wait for the end of processes; all must end with ``code``."""
    for process in processes:
        process.join(seconds)
    assert [process.exitcode for process in processes] == [code] * len(processes)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in(owner: Any, name: str, call: int, *, after: bool = False) -> None:
    """Replace a function: its call number ``call``, from 1, ends this process by SIGKILL.

    Args:
        owner: The module or class that has it.
        name: Its name.
        call: The number of the call.
        after: Let the call do its work first.
    """
    original = getattr(owner, name)
    calls = 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            die()
        result = original(*arguments, **options)
        if calls == call:
            die()
        return result

    setattr(owner, name, counting)


def train(
    folder: Path, run: Path, told: Path, death: tuple[Any, ...], sections: dict[str, Any]
) -> None:
    """Fine-tune ``tiny.run_config(folder, **sections)`` in ``run``, and list epochs in ``told``.

    Args:
        folder: The tiny corpora.
        run: The run's folder.
        told: Gets a line of JSON for each epoch.
        death: Module, class or "", function, call and whether after it: where to die, if anywhere.
        sections: Of the configuration.
    """
    from qa_hpo.finetune.run import Inputs, fine_tune
    from qa_hpo.paths import CachePaths
    from tiny import run_config

    if death:
        module, owner, name, call, after = death
        place = __import__(module, fromlist=["_"])
        dies_in(getattr(place, owner) if owner else place, name, call, after=after)

    def tell(record: Any) -> None:
        with told.open("a") as file:
            file.write(json.dumps(record.as_dict()) + "\n")

    inputs = Inputs(CachePaths(folder / "cache"))
    fine_tune(run_config(folder, **sections), run, inputs=inputs, on_epoch=tell)
