"""A quick study of which the start, or the data, comes from the hub."""

import json
from pathlib import Path

from tiny import squad

__all__ = ["local_data", "study"]


def study(
    folder: Path,
    *,
    base: str = "bert-base-uncased",
    train: str = "train.json",
    validation: str = "validation.json",
    name: str = "study",
    extra: str = "",
) -> Path:
    """Write a study file of one-epoch trials, and the data that it names if they are local."""
    local_data(folder)
    path = folder / f"{name}.toml"
    path.write_text(
        f"""
[study]
name = "{name}"
[data]
train = "{train}"
validation = "{validation}"
max_length = 40
[starts]
base = "{base}"
[search.learning_rate]
low = 1e-3
high = 1e-2
[training]
epochs = 1
batch_size = 16
doc_stride = 8
[evaluation]
doc_stride = 8
[budget]
trials = 1
{extra}"""
    )
    return path


def local_data(folder: Path) -> None:
    for name, corpus in {"train": squad(20, seed=31), "validation": squad(10, seed=32)}.items():
        path = folder / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(corpus), encoding="utf-8")
