"""What a resume state holds beside what transformers puts into it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from qa_hpo.finetune.records import EpochRecord
from qa_hpo.paths import read_json

__all__ = [
    "PASSES",
    "RECORDS",
    "RETENTION",
    "read_device_batch",
    "read_records",
    "read_retention",
]

RECORDS = "epochs.json"
PASSES = "passes.json"
RETENTION = "retention.safetensors"


def read_records(resume_state: Path) -> list[EpochRecord]:
    """Return the records of the epochs that ``resume_state`` goes on from."""
    return [EpochRecord.from_dict(flat) for flat in read_json(resume_state / RECORDS)]


def read_device_batch(resume_state: Path) -> int:
    """Return how many windows at once the run of ``resume_state`` had come down to."""
    return int(read_json(resume_state / PASSES)["device_batch"])


def read_retention(resume_state: Path) -> dict[str, torch.Tensor]:
    """Return what the retention method of ``resume_state``'s run had to keep."""
    path = resume_state / RETENTION
    return load_file(path) if path.is_file() else {}
