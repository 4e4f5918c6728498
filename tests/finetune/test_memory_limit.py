"""A process that may have only a little more memory than it has."""

import ctypes
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import finished, start
from qa_hpo.config import RunConfig
from qa_hpo.errors import OutOfMemoryError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths
from tiny import run_config, write_base

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts on Linux only")

MIB = 1 << 20
# A batch of 64 windows takes about 250 MiB with a feed-forward layer this wide, one of 32 half of
# it; what oneDNN makes once for batches of other sizes, up to 20.
ROOM = 160 * MIB
WIDE = 4096


def config(tiny: Path, base: Path, batch_size: int, **data: Any) -> RunConfig:
    return run_config(
        tiny,
        starts={"base": str(base)},
        # One epoch of two steps, without dropout: it would be drawn for each pass.
        parameters={"epochs": 1, "batch_size": batch_size, "dropout": 0.0, "learning_rate": 1e-3},
        data={"train_limit": 100, "validation_limit": 40, **data},
        training={"cpu_threads": 1, "eval_batch_size": 64},
    )


def limit(room: int) -> None:
    """Let this process have so many bytes more than it has."""
    # Large tensors get pages of their own, so that what is freed can be had again.
    ctypes.CDLL(None).mallopt(-3, MIB)  # M_MMAP_THRESHOLD
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now * 1024 + room,) * 2)


def train(tiny: Path, base: Path, folder: Path) -> None:
    inputs = Inputs(CachePaths(folder / "cache"))
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("qa_hpo").addHandler(handler)
    # What only a first run loads and allocates.
    fine_tune(config(tiny, base, 2), folder / "warm", inputs=inputs)
    limit(ROOM)
    runs = []
    for name in ("first", "second"):
        tuned = fine_tune(config(tiny, base, 64), folder / name, inputs=inputs)
        (record,) = tuned.records
        losses = [record.train_loss, record.val_loss]
        runs.append([tuned.device_batch, losses, [line for line in told if "effective" in line]])
        told.clear()
    # Not even its parameters: each of the two layers of the real one has 32 MiB of them.
    try:
        fine_tune(config(tiny, folder / "vast", 64), folder / "third", inputs=inputs)
    except OutOfMemoryError as error:
        runs.append(str(error))
    (folder / "answer.json").write_text(json.dumps([runs, inputs.device_batches]))


def test_a_run_with_little_memory(tiny: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", intermediate_size=WIDE)
    write_base(tmp_path / "vast", intermediate_size=WIDE * 128, num_hidden_layers=2)
    finished(start(train, tiny, base, tmp_path))
    runs, remembered = json.loads((tmp_path / "answer.json").read_text())
    (size, losses, told), (again, same, nothing), vast = runs
    assert size < 64
    assert remembered == {str(base): size}
    assert len(told) == (64 // size).bit_length() - 1  # halved so many times
    assert told[0] == (
        f"{base}: out of memory with 64 windows per pass; 32 per pass from here on, and the "
        "effective batch stays 64"
    )
    assert (again, nothing) == (size, [])
    # The first run may have had its smaller batch in one pass, before the larger one.
    assert same == pytest.approx(losses, rel=1e-5)
    assert vast.startswith(f"{tmp_path / 'vast'}: no memory is left for the model")

    whole = fine_tune(
        config(tiny, base, 64), tmp_path / "whole", inputs=Inputs(CachePaths(tmp_path / "cache"))
    )
    assert whole.device_batch == 64
    (record,) = whole.records
    assert losses == pytest.approx([record.train_loss, record.val_loss], rel=1e-5)
    weights = [
        load_file(next((tmp_path / run / "checkpoint").iterdir()) / "model.safetensors")
        for run in ("whole", "first")
    ]
    for name, expected in weights[0].items():
        # The same logit more for every token changes no loss: this gradient is rounding, of which
        # AdamW makes a step all the same.
        if name != "qa_outputs.bias":
            torch.testing.assert_close(weights[1][name], expected, rtol=0, atol=2e-5)
