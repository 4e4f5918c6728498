"""The model card of an exported run, with the metadata that the hub reads."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from qa_hpo.config import RunConfig
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.paths import CONFIG_NAME
from qa_hpo.squad.readers import is_hub_id

__all__ = ["model_card"]

_USE = """## Use

```python
from qa_hpo import QuestionAnswerer

answerer = QuestionAnswerer.from_pretrained("path/to/this/folder")
answer = answerer.answer("Who ...?", "The context ...")
print(answer.text)  # None where the context does not hold the answer
```

It is an ordinary transformers checkpoint too. With transformers alone, for a context that fits into
one window:

```python
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder, threshold = "path/to/this/folder", {threshold!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()


def answer(question, context):
    pair = ({pair})
    inputs = tokenizer(*pair, return_tensors="pt", return_offsets_mapping=True)
    characters = inputs.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        outputs = model(**inputs)
    start, end = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
    null = inputs["input_ids"][0].tolist().index(tokenizer.cls_token_id)
    tokens = [i for i, part in enumerate(inputs.sequence_ids(0)) if part == {part}]
    spans = [(start[i] + end[j], i, j) for i in tokens for j in tokens if 0 <= j - i < {longest}]
    score, first, last = max(spans)
    if start[null] + end[null] - score > threshold:
        return None
    return context[characters[first][0] : characters[last][1]].strip()


print(answer("Who ...?", "The context ..."))
```
"""


_BY_CHARACTERS = """
Answers were scored by characters, as in CMRC 2018 (Cui et al. 2019): each Chinese or Japanese
character is a token, and F1 is over the longest run of tokens that two answers share.
"""


def model_card(
    config: RunConfig,
    records: Sequence[EpochRecord],
    best: EpochRecord,
    origin: str,
    facts: Mapping[str, Any],
) -> str:
    """Return a model card in Markdown.

    Args:
        config: The run's configuration.
        records: Its epoch records.
        best: The record of the exported epoch.
        origin: Where the run comes from, in words.
        facts: What a study knows besides; all may be missing, or None. ``best_f1_interval``, low
            and high; ``seeds``, ``seeds_f1``, ``seeds_f1_sd``; ``probability_best``;
            ``baseline``, as ``Compared.as_dict`` has it; ``test``, as ``held_out_scores`` has it;
            ``context_first``, whether the tokenizer takes the context before the question;
            ``rule``, by which the trial was chosen; ``max_forgetting``, in points of F1.
    """
    return "\n".join(
        [
            f"---\n{_metadata(config, best, facts.get('test')).to_yaml()}\n---\n",
            f"# {config.run.name}\n",
            _summary(config, best, origin, facts.get("rule")),
            _sureness(facts),
            _old_task(config, best, facts.get("max_forgetting")),
            _threshold(config, best),
            _use(config, best, context_first=bool(facts.get("context_first"))),
            _configuration(config),
            _epochs(records, best),
        ]
    )


def _metadata(
    config: RunConfig, best: EpochRecord, test: Mapping[str, Any] | None
) -> ModelCardData:
    names = {"best_f1": "f1", "best_exact": "exact_match"}
    results = [
        EvalResult(
            task_type="question-answering",
            **{"dataset_split": "validation", **_dataset(config.data.validation)},
            metric_type=kind,
            metric_name=f"{kind} at its best threshold",
            metric_value=round(best.metrics[name], 4),
        )
        for name, kind in names.items()
    ]
    if test:
        results += [
            EvalResult(
                task_type="question-answering",
                **{"dataset_split": "test", **_dataset(test["data"])},
                metric_type=kind,
                metric_name=f"{kind} at the threshold tuned on the validation questions",
                metric_value=round(test[name], 4),
            )
            for name, kind in (("f1", "f1"), ("exact", "exact_match"))
        ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="question-answering",
        tags=["question-answering", "squad", "qa_hpo"],
        model_name=config.run.name,
        eval_results=results,
    )


def _dataset(source: str) -> dict[str, Any]:
    """Return what the hub is told of a corpus: its id there, else its file's name alone."""
    path = Path(source).expanduser()
    if is_hub_id(source) and not path.exists():
        name, _, config = source.partition(":")
        found = {"dataset_type": name, "dataset_name": name, "dataset_config": config or None}
        return {**found, "dataset_split": "validation"}  # the one that is measured on, always
    letters = unicodedata.normalize("NFKD", re.sub(r"\.(jsonl?|parquet)(\.gz)?$", "", path.name))
    plain = re.sub(r"[^a-z0-9._-]+", "-", letters.encode("ascii", "ignore").decode().lower())
    return {"dataset_type": plain.strip("-._") or "corpus", "dataset_name": path.name or source}


def _summary(config: RunConfig, best: EpochRecord, origin: str, rule: str | None) -> str:
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
    if rule is not None:
        text += f"\nOf its study's trials it was chosen by the rule `{rule}`:\n{_meaning(rule)}.\n"
    return text


def _meaning(rule: str) -> str:
    name, _, most = rule.partition("<=")
    return {
        "best_f1": "the winner of the leaderboard, which goes by the F1 on the new task",
        "old_task_f1": "the one with the highest F1 on the old task",
        "forgetting": f"the best of those that forget at most {most} points of F1 on the old task",
    }[name]


def _sureness(facts: Mapping[str, Any]) -> str:
    """Return how sure the score is, as far as it is known."""
    lines = []
    if interval := facts.get("best_f1_interval"):
        lines.append(
            f"For other articles of the kind, the 95% interval of its F1 is {interval[0]:.2f} to "
            f"{interval[1]:.2f}\n(bootstrap by article, the threshold tuned anew each time)."
        )
    if facts.get("seeds_f1") is not None:
        lines.append(
            f"Over {facts['seeds']} seeds of the same configuration, best F1 is "
            f"{facts['seeds_f1']:.2f} on average\n(standard deviation {facts['seeds_f1_sd']:.2f})."
        )
    if facts.get("probability_best") is not None:
        lines.append(
            f"It is the best of its study's trials with probability "
            f"{facts['probability_best']:.2f}."
        )
    if baseline := facts.get("baseline"):
        low, high = baseline["interval"]
        lines.append(
            f"Its F1 is {baseline['difference']:+.2f} beside that of the study's baseline (trial "
            f"{baseline['second']['number']}),\n95% interval {low:+.2f} to {high:+.2f}."
        )
    if test := facts.get("test"):
        interval = test["f1_interval"]
        sure = f" (95% interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        others = (
            ""
            if test["trials"] == 1
            else (f" {test['trials']} trials of the study have been measured on them.")
        )
        lines.append(
            f"On {test['total']} test questions (`{test['data']}`), which had no part in the "
            f"search, it has\nF1 **{test['f1']:.2f}**{sure} and exact match {test['exact']:.2f}, "
            f"with the same threshold.{others}"
        )
    return "\n".join(["## How sure that is\n", *lines, ""]) if lines else ""


def _old_task(config: RunConfig, best: EpochRecord, most: float | None) -> str:
    """Return what became of the task that the start had learnt before, if that was measured."""
    metrics = best.metrics
    if config.evaluation.old_task is None or metrics.get("old_task_f1") is None:
        return ""
    text = (
        "## What is forgotten\n\n"
        f"On the old task (`{config.evaluation.old_task}`) it has F1 "
        f"{metrics['old_task_f1']:.2f} with its threshold, and\n"
        f"{metrics['old_task_f1_no_null']:.2f} with the null answer disabled."
    )
    if metrics.get("old_task_drop") is not None:
        text += (
            f" Its start had\n{metrics['old_task_f1'] + metrics['old_task_drop']:.2f} and "
            f"{metrics['old_task_f1_no_null'] + metrics['old_task_drop_no_null']:.2f}."
        )
        if most is not None:
            kept = "forgets more" if metrics["old_task_drop"] > most else "keeps to that"
            text += (
                f"\nTrials of its study were to forget at most {most:g} points of F1 with their\n"
                f"threshold; it {kept}."
            )
    return f"{text}\n"


def _use(config: RunConfig, best: EpochRecord, *, context_first: bool) -> str:
    return (
        _USE.replace("{threshold!r}", repr(best.metrics["best_f1_thresh"]))
        .replace("{pair}", "context, question" if context_first else "question, context")
        .replace("{part}", "0" if context_first else "1")
        .replace("{longest}", str(config.evaluation.max_answer_length))
    )


def _threshold(config: RunConfig, best: EpochRecord) -> str:
    return (
        "## The threshold\n\n"
        'The null margin of a question is the lowest score of "no answer" over the question\'s\n'
        'windows, minus the score of the best span, in logits. The answer is "" where the margin\n'
        f"is above **{best.metrics['best_f1_thresh']:g}**.\n"
        + (_BY_CHARACTERS if config.evaluation.tokens == "characters" else "")
    )


def _configuration(config: RunConfig) -> str:
    rows = "\n".join(
        f"| {name} | {'the start’s own' if value is None else value} |"
        for name, value in config.parameters.flat().items()
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
