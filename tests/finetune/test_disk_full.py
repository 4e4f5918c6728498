"""Runs on a disk that fills up."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from wholeness import check_whole

from qa_hpo.errors import DiskFullError
from qa_hpo.finetune.disk import probe, telling_of_a_full_disk
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.records import EpochRecord, FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.starts import Starts
from qa_hpo.finetune.trainer import QuestionAnsweringTrainer
from qa_hpo.paths import CachePaths, RunPaths
from tiny import run_config

KIB = 1024
SECTIONS: dict[str, Any] = {"parameters": {"epochs": 2}, "data": {"train_limit": 64}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    folder = tmp_path / "a small disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs a small disk, and may not mount one (mount -t tmpfs, as root)")
    try:
        yield folder
    finally:
        # Lazily: what a failed test still holds open must not keep the mount.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leaving: int) -> Path:
    """Write a file that leaves so many bytes free, and return it."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - leaving))
    return filler


def measured(tuned: FineTuned) -> list[dict[str, Any]]:
    flat = [record.as_dict() for record in tuned.records]
    return [{k: value for k, value in record.items() if "seconds" not in k} for record in flat]


def test_a_disk_that_is_full_after_the_first_epoch(
    tiny: Path, inputs: Inputs, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tiny, **SECTIONS)
    whole = fine_tune(config, tmp_path / "whole", inputs=inputs)
    stages: list[str] = []
    for name in ("_save_best", "save_model", "_save_optimizer_and_scheduler", "_save_rng_state"):
        own = getattr(QuestionAnsweringTrainer, name)

        def spying(self: Any, *given: Any, _own: Any = own, _name: str = name, **more: Any) -> Any:
            stages.append(_name)
            return _own(self, *given, **more)

        monkeypatch.setattr(QuestionAnsweringTrainer, name, spying)
    run, failed = disk / "run", set()
    kept = {"answers", "checkpoint", "checkpoint/epoch-0001", "resume", "resume/epoch-0001"}
    # Among others as much as takes the weights, and not the tokenizer after them.
    assert whole.checkpoint is not None
    weights = (whole.checkpoint / "model.safetensors").stat().st_size
    for leaving in [0, weights + 12 * KIB, *range(20 * KIB, 4096 * KIB, 60 * KIB)]:

        def on_epoch(record: EpochRecord, leaving: int = leaving) -> None:
            if record.epoch == 1:
                fill(disk, leaving=leaving)

        try:
            fine_tune(config, run, inputs=inputs, on_epoch=on_epoch)
            break
        except DiskFullError as error:
            assert str(error) == f"{run}: no space left on the device"  # noqa: PT017
        failed.add(stages[-1])
        check_whole(RunPaths(run))
        # The new best epoch's checkpoint may be there, whole; what was begun is not.
        folders = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_dir()}
        assert kept <= folders <= kept | {"checkpoint/epoch-0002"}
        (disk / "filler").unlink()
        tuned = fine_tune(config, run, inputs=inputs)
        assert measured(tuned) == measured(whole)
        shutil.rmtree(run)
    else:
        pytest.fail("it never fitted")
    assert failed >= {"_save_best", "save_model", "_save_optimizer_and_scheduler"}


def test_a_disk_without_room_for_anything(tiny: Path, inputs: Inputs, disk: Path) -> None:
    fill(disk, leaving=0)
    with pytest.raises(DiskFullError, match="run: no space left on the device"):
        fine_tune(run_config(tiny, **SECTIONS), disk / "run", inputs=inputs)
    assert not (disk / "run").exists() or list((disk / "run").iterdir()) == []


def test_a_start_that_no_longer_fits(tiny: Path, disk: Path) -> None:
    recipe = {"from": "base", "train": str(tiny / "train.json"), "train_limit": 16, "epochs": 1}
    config = run_config(tiny, starts={"v1": {**recipe, "doc_stride": 8}})
    inputs = Inputs(CachePaths(disk / "cache"))
    some = Starts(config, config.runtime, inputs)
    with pytest.raises(DiskFullError, match="building: no space left on the device"):
        some.checkpoint("v1", lambda name: fill(disk, leaving=100 * KIB) and None)
    assert not some.built("v1")
    (disk / "filler").unlink()
    assert Path(some.checkpoint("v1")).is_dir()


def test_torch_writing_to_a_full_disk(disk: Path) -> None:
    fill(disk, leaving=64 * KIB)
    with (
        pytest.raises(DiskFullError, match=f"^{disk}: no space left on the device$"),
        telling_of_a_full_disk(disk),
        probe(disk),
    ):
        torch.save(torch.zeros(100_000), str(disk / "large.pt"))
    assert {path.name for path in disk.iterdir()} <= {"large.pt", "filler"}


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no /dev/full here")
def test_a_write_that_finds_no_space() -> None:
    full = Path("/dev/full")
    with pytest.raises(DiskFullError), telling_of_a_full_disk(full):
        full.write_text("anything")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("I/O error: Permission denied (os error 13)"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
        # What tokenizers raises.
        (Exception("No space left on device (os error 28)"), True),
        (RuntimeError("No space left on device"), False),
    ],
)
def test_what_is_a_full_disk(tmp_path: Path, error: Exception, full: bool) -> None:
    with (
        pytest.raises(DiskFullError if full else type(error)),
        telling_of_a_full_disk(tmp_path),
        probe(tmp_path),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []
