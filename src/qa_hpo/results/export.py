"""A finished run as a folder to take home: checkpoint, configuration, metrics and model card."""

import json
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

__all__ = ["Exported", "write_export"]


@dataclass(frozen=True)
class Exported:
    """A run that is exported.

    Attributes:
        config: The run's configuration, which reproduces it.
        checkpoint: Folder of the best epoch's weights and tokenizer.
        records: The epoch records.
        best: The best of them.
        origin: Where the run comes from, in words: ``trial 7 of study demo (PRUNED, ...)``.
        facts: What else goes into the metrics file, such as the trial's number.
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
        force: Replace a folder that holds something else.

    Returns:
        False if ``out`` holds this very export already, and nothing was written.

    Raises:
        InputError: ``out`` exists, holds something else, and ``force`` is False.
    """
    metrics = _metrics(export)
    if _holds(out, metrics) and not force:
        return False
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out}: exists and holds something else; choose another folder, or --force"
        )
    with new_folder(out, replace=True) as folder:
        shutil.copytree(export.checkpoint, folder, dirs_exist_ok=True)
        write_text(folder / CONFIG_NAME, _configuration(export))
        write_json(folder / METRICS_NAME, metrics)
        write_text(folder / "README.md", _model_card(export))
    return True


def _holds(out: Path, metrics: dict[str, Any]) -> bool:
    try:
        return bool(read_json(out / METRICS_NAME) == json.loads(json.dumps(metrics)))
    except (OSError, ValueError):
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


def _model_card(export: Exported) -> str:
    best, config = export.best, export.config
    metrics = best.metrics
    threshold = metrics["best_f1_thresh"]
    parameters = "\n".join(
        f"| {name} | {'the start’s own' if value is None else value} |"
        for name, value in config.parameters.model_dump().items()
    )
    epochs = "\n".join(_epoch_row(record, best) for record in export.records)
    crossfit = (
        f" With the threshold fitted on one half of the articles and scored on the other it is "
        f"{metrics['crossfit_f1']:.2f}: the better guess for questions that nobody has seen."
        if metrics.get("crossfit_f1") is not None
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: question-answering
tags:
- question-answering
- squad
- qa_hpo
model-index:
- name: {json.dumps(config.run.name)}
  results:
  - task:
      type: question-answering
    dataset:
      name: {json.dumps(config.data.validation)}
      type: squad_v2
      split: validation
    metrics:
    - type: f1
      value: {metrics["best_f1"]:.4f}
      name: F1 with the tuned threshold
    - type: exact_match
      value: {metrics["best_exact"]:.4f}
      name: Exact match with the tuned threshold
---

# {config.run.name}

An extractive question-answering model: it answers a question with a part of the context, or says
that the context does not answer it. It is {export.origin}.

On {metrics["total"]:.0f} validation questions (`{config.data.validation}`) it reaches F1
**{metrics["best_f1"]:.2f}** with its tuned no-answer threshold, and {metrics["f1"]:.2f} with the
threshold 0.{crossfit}

## The threshold

The null margin of a question is the lowest score of "no answer" over the question's windows, minus
the score of the best span, in logits. The answer is "" where the margin is above **{threshold:g}**.

## Use

```python
from qa_hpo.finetune.predictor import QuestionAnswerer

answerer = QuestionAnswerer.from_pretrained("path/to/this/folder")
answer = answerer.answer("Who ...?", "The context ...")
print(answer.text)  # None where the context does not hold the answer
```

It is an ordinary transformers checkpoint too
(`AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")`), which knows nothing of the
threshold.

## Configuration

Start `{config.parameters.start}`, trained on `{config.data.train}`. `{CONFIG_NAME}` holds all of
it: `qa-hpo train {CONFIG_NAME} OUT` runs it again.

| parameter | value |
|---|---|
{parameters}

## Epochs

| epoch | training loss | validation loss | F1 at 0 | best F1 | threshold |
|---|---|---|---|---|---|
{epochs}
"""


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _epoch_row(record: EpochRecord, best: EpochRecord) -> str:
    metrics = record.metrics
    mark = " (exported)" if record.epoch == best.epoch else ""
    return (
        f"| {record.epoch}{mark} | {_loss(record.train_loss)} | {_loss(record.val_loss)} "
        f"| {metrics['f1']:.2f} | {metrics['best_f1']:.2f} | {metrics['best_f1_thresh']:g} |"
    )
