"""The model card of an exported run, with the metadata that the hub reads."""

from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from qa_hpo.config import RunConfig
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.paths import CONFIG_NAME

__all__ = ["model_card"]

_USE = """## Use

```python
from qa_hpo.finetune.predictor import QuestionAnswerer

answerer = QuestionAnswerer.from_pretrained("path/to/this/folder")
answer = answerer.answer("Who ...?", "The context ...")
print(answer.text)  # None where the context does not hold the answer
```

It is an ordinary transformers checkpoint too
(`AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")`), which knows nothing of the
threshold.
"""


def model_card(
    config: RunConfig, records: Sequence[EpochRecord], best: EpochRecord, origin: str
) -> str:
    """Return a model card in Markdown.

    Args:
        config: The run's configuration.
        records: Its epoch records.
        best: The record of the exported epoch.
        origin: Where the run comes from, in words.
    """
    return "\n".join(
        [
            f"---\n{_metadata(config, best).to_yaml()}\n---\n",
            f"# {config.run.name}\n",
            _summary(config, best, origin),
            _threshold(best),
            _USE,
            _configuration(config),
            _epochs(records, best),
        ]
    )


def _metadata(config: RunConfig, best: EpochRecord) -> ModelCardData:
    names = {"best_f1": "f1", "best_exact": "exact_match"}
    results = [
        EvalResult(
            task_type="question-answering",
            dataset_type="squad_v2",
            dataset_name=config.data.validation,
            dataset_split="validation",
            metric_type=kind,
            metric_name=f"{kind} at its best threshold",
            metric_value=round(best.metrics[name], 4),
        )
        for name, kind in names.items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="question-answering",
        tags=["question-answering", "squad", "qa_hpo"],
        model_name=config.run.name,
        eval_results=results,
    )


def _summary(config: RunConfig, best: EpochRecord, origin: str) -> str:
    metrics = best.metrics
    text = (
        "An extractive question-answering model: it answers a question with a part of the\n"
        f"context, or says that the context does not answer it. It is {origin}.\n\n"
        f"On {metrics['total']:.0f} validation questions (`{config.data.validation}`) it reaches\n"
        f"F1 **{metrics['best_f1']:.2f}** with its tuned no-answer threshold, and "
        f"{metrics['f1']:.2f} with the threshold 0.\n"
    )
    if metrics.get("crossfit_f1") is not None:
        text += (
            "With the threshold fitted on one half of the articles and scored on the other it is\n"
            f"{metrics['crossfit_f1']:.2f}: the better guess for articles that had no part in it.\n"
        )
    return text


def _threshold(best: EpochRecord) -> str:
    return (
        "## The threshold\n\n"
        'The null margin of a question is the lowest score of "no answer" over the question\'s\n'
        'windows, minus the score of the best span, in logits. The answer is "" where the margin\n'
        f"is above **{best.metrics['best_f1_thresh']:g}**.\n"
    )


def _configuration(config: RunConfig) -> str:
    rows = "\n".join(
        f"| {name} | {'the start’s own' if value is None else value} |"
        for name, value in config.parameters.model_dump().items()
    )
    return (
        "## Configuration\n\n"
        f"Trained on `{config.data.train}`. `{CONFIG_NAME}` holds all of it, and\n"
        f"`qa-hpo train {CONFIG_NAME} OUT` runs it again.\n\n"
        f"| parameter | value |\n|---|---|\n{rows}\n"
    )


def _epochs(records: Sequence[EpochRecord], best: EpochRecord) -> str:
    rows = []
    for record in records:
        metrics = record.metrics
        mark = " (exported)" if record.epoch == best.epoch else ""
        rows.append(
            f"| {record.epoch}{mark} | {_loss(record.train_loss)} | {_loss(record.val_loss)} "
            f"| {metrics['f1']:.2f} | {metrics['best_f1']:.2f} | {metrics['best_f1_thresh']:g} |"
        )
    head = "| epoch | training loss | validation loss | F1 at 0 | best F1 | threshold |"
    return "\n".join(["## Epochs\n", head, "|---|---|---|---|---|---|", *rows, ""])


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
