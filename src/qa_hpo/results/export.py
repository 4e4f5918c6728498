"""A finished run as a folder to take home: checkpoint, configuration, metrics and model card."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_hpo import __version__
from qa_hpo.config import RunConfig, to_toml
from qa_hpo.errors import InputError
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.paths import CONFIG_NAME, METRICS_NAME, new_folder, read_json, write_json, write_text
from qa_hpo.results.model_card import model_card

__all__ = ["Exported", "check_place", "is_place_of", "taken", "write_export"]


@dataclass(frozen=True)
class Exported:
    """A run that is exported.

    Attributes:
        config: The run's configuration, which reproduces it.
        checkpoint: Folder of the best epoch's weights and tokenizer.
        records: The epoch records.
        best: The best of them.
        origin: Where the run comes from, in words: ``trial 7 of study demo (PRUNED, ...)``.
        facts: What else goes into the metrics file, such as the trial's number and how sure its
            score is; see :func:`~qa_hpo.results.model_card.model_card`.
    """

    config: RunConfig
    checkpoint: Path
    records: Sequence[EpochRecord]
    best: EpochRecord
    origin: str
    facts: dict[str, Any]


def write_export(export: Exported, out: Path, *, force: bool = False) -> bool:
    """Write the folder ``out``, whole or not at all.

    Args:
        export: What to write.
        out: The folder.
        force: Replace a folder that holds another export; nothing else is ever replaced.

    Returns:
        False if ``out`` holds this very export already, and nothing was written.

    Raises:
        InputError: ``out`` exists and is not an export, or is another one and ``force`` is False.
    """
    if check_place(out, force=force):
        if is_place_of(out, export) and _holds(out, export.checkpoint):
            return False
        raise taken(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None
    with new_folder(out, replace=True) as folder:
        shutil.copytree(export.checkpoint, folder, dirs_exist_ok=True)
        write_text(folder / CONFIG_NAME, _configuration(export))
        write_json(folder / METRICS_NAME, _metrics(export))
        write_text(
            folder / "README.md",
            model_card(
                export.config,
                export.records,
                export.best,
                export.origin,
                {**export.facts, "context_first": _pads_left(export.checkpoint)},
            ),
        )
    return True


def _pads_left(checkpoint: Path) -> bool:
    """Return whether a checkpoint's tokenizer pads on the left, and so takes the context first."""
    path = checkpoint / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("padding_side") == "left")


def check_place(out: Path, *, force: bool = False) -> bool:
    """Look whether an export can be written to the folder ``out``.

    Args:
        out: The folder.
        force: As for :func:`write_export`.

    Returns:
        Whether ``out`` holds an export that stays there: it is no place for any other.

    Raises:
        InputError: Nothing can be written there.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not _is_export(out):
                raise taken(out)
            if not force:
                return True
        above = next(parent for parent in out.absolute().parents if parent.exists())
    except OSError as error:
        raise InputError(f"{out}: cannot be read: {error.strerror}") from None
    if not above.is_dir():
        raise InputError(f"{out}: cannot be written: {above.name} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{out}: cannot be written: nothing may be written to {above}")
    return False


def taken(out: Path) -> InputError:
    """Return the error that the folder ``out`` holds something else."""
    remedy = "choose another folder" + (", or --force" if _is_export(out) else "")
    return InputError(f"{out}: exists and holds something else; {remedy}")


def is_place_of(out: Path, export: Exported) -> bool:
    """Return whether the export in the folder ``out`` says of itself what ``export`` would."""
    try:
        return bool(read_json(out / METRICS_NAME) == json.loads(json.dumps(_metrics(export))))
    except (OSError, ValueError):
        return False


def _is_export(out: Path) -> bool:
    return all((out / name).is_file() for name in (CONFIG_NAME, METRICS_NAME))


def _holds(out: Path, checkpoint: Path) -> bool:
    """Return whether the files of ``checkpoint`` are in the folder ``out``, each of its size."""
    try:
        return all(
            (out / file.name).stat().st_size == file.stat().st_size for file in checkpoint.iterdir()
        )
    except OSError:
        return False


def _metrics(export: Exported) -> dict[str, Any]:
    best = export.best
    return {
        **export.facts,
        "best_epoch": best.epoch,
        "threshold": best.metrics["best_f1_thresh"],
        "val_loss": best.val_loss,
        **best.metrics,
        "epochs": [record.as_dict() for record in export.records],
        "qa_hpo_version": __version__,
    }


def _configuration(export: Exported) -> str:
    return (
        f"# {export.origin}\n"
        "# 'qa-hpo train' runs this configuration again; on the same hardware, with the same\n"
        "# versions, it gives the same epoch records. Paths are relative to the folder in which\n"
        "# qa-hpo is run.\n\n" + to_toml(export.config)
    )
