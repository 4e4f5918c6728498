"""The sections of a study file and of a run's, each with its defaults."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qa_hpo.parameters import Hyperparameters, Parameters, Retention, Scheduler
from qa_hpo.validation import PlacedError, Section

__all__ = [
    "Artifacts",
    "Budget",
    "Constraints",
    "Data",
    "Evaluation",
    "EvaluationsPerEpoch",
    "Name",
    "Pruning",
    "Recipe",
    "Run",
    "Runtime",
    "Start",
    "StartName",
    "Study",
    "StudyEvaluation",
    "Training",
    "check_forgetting",
]

StartName = Annotated[str, Field(min_length=1, max_length=150, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, Field(min_length=1, max_length=150, pattern=r"^[\w][\w .+-]*$")]

EvaluationsPerEpoch = Annotated[int, Field(ge=1, le=100)]
"""How often an epoch's validation loss is measured: at its end, and so many times less one on the
way."""


class Study(Section):
    """What the study is called, where it is kept, and what it maximises."""

    name: Name
    """What the study is called in its storage, by ``qa-hpo`` and in the dashboard."""
    storage: str | None = None
    """URL of the database, ``sqlite:///FILE`` or ``postgresql://…``; ``QA_HPO_STORAGE`` and
    ``--storage`` override it. A file in ``storage/`` where it is left out."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """With a trial's number, it decides the initial weights of its head, the order of its data, and
    what the sampler draws."""
    objectives: tuple[Literal["best_f1", "old_task_f1"], ...] = ("best_f1",)
    """Scores of a trial's best epoch, in percent, of the same checkpoint: ``best_f1``, and perhaps
    ``old_task_f1``, its F1 on ``evaluation.old_task``. With both, the search looks for the trials
    of which none other is better in both."""
    learn_from: tuple[Name, ...] = ()
    """Other studies of the same storage, whose finished trials the sampler knows when this one
    begins. They are not run again and count for no budget."""

    @field_validator("objectives")
    @classmethod
    def _best_f1_is_one(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if "best_f1" not in objectives or len(set(objectives)) < len(objectives):
            raise ValueError(
                f"must be ['best_f1'] or ['best_f1', 'old_task_f1'], got {list(objectives)}"
            )
        return objectives

    @field_validator("learn_from")
    @classmethod
    def _others(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"names a study twice: {list(names)}")
        if info.data.get("name") in names:
            raise ValueError(f"a study cannot learn from itself: {info.data['name']!r}")
        return names


class Data(Section):
    """The corpora: a hub id or a path each. Lengths are in tokens, limits in questions."""

    train: str
    """What trials train on. A hub id gives its split "train"."""
    validation: str
    """What trials are judged by. A hub id gives its split "validation"."""
    test: str | None = None
    """A corpus with no part in the search, on which only the exported checkpoint is measured. It
    must hold other questions than the rest, about other contexts than ``validation``. A hub id
    gives its split "validation"."""
    max_length: Annotated[int, Field(ge=16, le=8192)] = 384
    """Tokens of a window, question and special tokens included; longer contexts give several."""
    train_limit: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """For a quick look: train on a random subset of so many questions."""
    validation_limit: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """For a quick look: validate on a random subset of so many questions."""
    old_task: str | None = None
    """Training questions of what starts have learnt before, which retention methods look at; those
    of a start's own recipe where it is left out."""
    old_task_limit: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """At most so many of them, a random subset."""


class Recipe(Section):
    """A start that is built: ``from`` (``from_`` in Python) trained on ``train``.

    What is left out is taken from the study file's ``[training]``.
    """

    from_: Annotated[str, Field(alias="from", min_length=1)]
    """The start that it is built from, a checkpoint or another recipe."""
    train: str
    """The corpus that it is trained on, as in ``[data]``."""
    train_limit: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Train on a random subset of so many questions."""
    epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Passes over the training data."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of AdamW."""
    doc_stride: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Tokens that neighbouring windows share."""
    batch_size: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Windows per optimizer step."""
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps during which the learning rate rises."""
    scheduler: Scheduler | None = None
    """How the learning rate falls after the warmup."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """L2 norm to which gradients are clipped."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of hidden states and attention; the checkpoint's own where nothing is said."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the initial weights of the head and the order of the data."""
    path_integral: bool = False
    """Whether the importance of each weight is collected on the way, as ``si`` needs it; set where
    that method is searched."""

    def parameters(self, defaults: Parameters) -> Parameters:
        """Return the recipe's parameters, with ``defaults`` where it says nothing."""
        own = self.model_dump(include=set(Hyperparameters.model_fields), exclude_none=True)
        # What is kept of an old task is a matter of the trials.
        return defaults.model_copy(update={"start": self.from_, "retention": Retention(), **own})


class Run(Section):
    """One run: what it is called, and what of a trial is no parameter."""

    name: Name
    """What the run is called."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the initial weights of the head and the order of the data."""
    stop_after_epochs: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Stop after so many epochs, although the learning rate's schedule goes on."""
    evaluations_per_epoch: EvaluationsPerEpoch = 1
    """As in ``[pruning]``; what an epoch measures at its end does not depend on it."""


class Runtime(Section):
    """How a run uses the hardware; none of it is searched."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numbers that the model computes with; "auto" is bf16 where a GPU has it, and else fp32."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed; "auto" is flash attention where it is installed and GPU and model
    take it, and else what transformers chooses for the model."""
    compile: bool = False
    """Whether the model is compiled by torch.compile, whose first steps take a minute or more."""
    eval_batch_size: Annotated[int, Field(ge=1, lt=2**31)] = 64
    """Windows per forward pass of an evaluation."""
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads to compute with on a CPU; torch's own choice, or a worker's share of the cores, where
    it is left out."""


class Training(Runtime, Hyperparameters):
    """What is not searched: values for hyperparameters, and how the hardware is used."""

    def runtime(self) -> Runtime:
        """Return the part that is about the hardware."""
        return Runtime(**self.model_dump(include=set(Runtime.model_fields)))

    def parameters(self, start: str) -> Parameters:
        """Return the parameters of a run from ``start`` of which nothing is searched."""
        return Parameters(start=start, **self.model_dump(include=set(Hyperparameters.model_fields)))


class Pruning(Section):
    """When a trial ends early. Losses are validation losses, per window, in nats.

    Where the file does not say how trials are compared, they are promoted; in a study that
    searches ``epochs``, the median is what counts, since promoted trials follow one schedule.
    Optuna takes no reports in a study with two objectives, so that nothing is compared there; a
    trial that overfits ends early all the same, and ``control_fraction`` keeps its share from that.
    """

    patience: Annotated[int, Field(ge=1, lt=2**31)] = 1
    """For how many epochs in a row the loss must be above its best before a trial ends as
    overfitting."""
    min_delta: Annotated[float, Field(ge=0)] = 0.05
    """By how much it must be above its best in each of them, in nats."""
    evaluations_per_epoch: EvaluationsPerEpoch = 1
    """How often an epoch measures its loss, at equal distances, its end included. Where a look
    within an epoch shows that a trial overfits or diverges, it ends there. ``patience`` is in
    epochs all the same: it is met by so many times the evaluations in a row."""
    across: Literal["median", "hyperband", "promote", "none"] = "promote"
    """How a trial is compared with others: "median" ends what is worse than the median of trials
    with as many epochs, "hyperband" what Hyperband ends; "promote" ends nothing, but each trial
    waits at rungs and the better ones go on; "none" compares nothing."""
    startup_trials: Annotated[int, Field(ge=0, lt=2**31)] = 5
    """Trials with as many epochs that must have finished before "median" ends one."""
    warmup_epochs: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Epochs of a trial after which "median" ends nothing yet."""
    first_rung: Annotated[int, Field(ge=1, lt=2**31)] = 1
    """With "promote": epochs after which a trial waits for the first time."""
    reduction_factor: Annotated[int, Field(ge=2, lt=2**31)] = 6
    """With "promote": of so many trials that have come to a rung, one goes on, and the next rung
    is after so many times as many epochs."""
    control_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the trials that are never pruned; they show what pruning costs."""

    def beside(self, objectives: Sequence[str], *, one_horizon: bool) -> "Pruning":
        """Return what holds in a study: how trials are compared, where the file does not say.

        Args:
            objectives: The study's.
            one_horizon: Whether all its trials have equally many epochs.

        Raises:
            PlacedError: The file asks for what does not go with the rest of it.
        """
        several = len(objectives) > 1
        if "across" not in self.model_fields_set:
            across = "none" if several else self.across if one_horizon else "median"
            return self.model_copy(update={"across": across})
        if several and self.across != "none":
            raise PlacedError(
                "pruning.across",
                f"{self.across!r} needs one objective, and study.objectives has "
                f"{len(objectives)}; valid: 'none'",
            )
        if self.across == "promote" and not one_horizon:
            raise PlacedError(
                "pruning.across",
                "'promote' decides how many epochs a trial gets, of the same schedule for all; "
                "give search.epochs one value, the most",
            )
        return self


class Constraints(Section):
    """What a trial must keep to, or it ranks behind all that do."""

    max_forgetting: Annotated[float, Field(ge=0)] | None = None
    """How far the F1 on ``evaluation.old_task`` may be below the start's, in points. A start that
    has not learnt that task has nothing to forget."""


class Evaluation(Section):
    """How validation questions are answered, and answers scored. Lengths are in tokens."""

    n_best: Annotated[int, Field(ge=1, lt=2**31)] = 20
    """Of a window, so many of the best first and of the best last tokens are combined to spans."""
    max_answer_length: Annotated[int, Field(ge=1, lt=2**31)] = 30
    """The longest answer."""
    doc_stride: Annotated[int, Field(ge=0, lt=2**31)] = 128
    """Tokens that neighbouring windows share: one value for all trials, whatever they train with,
    so that their losses and scores compare."""
    tokens: Literal["words", "characters"] = "words"
    """What an answer is compared with the gold ones by: "words", as SQuAD has them, or
    "characters", as CMRC 2018 has them, for text in which no spaces part the words."""
    old_task: str | None = None
    """A corpus of a task that starts have learnt before; how much of it is forgotten is measured
    with every checkpoint."""
    old_task_limit: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """At most so many of its questions, a random subset."""


class StudyEvaluation(Evaluation):
    """How a study's trials are evaluated: each of them, and the best ones beside each other."""

    seeds: Annotated[int, Field(ge=1, lt=2**31)] = 1
    """How often each of the best configurations is run, each time with another seed, before the
    winner is named by the highest mean; the budget's last trials are theirs."""
    finalists: Annotated[int, Field(ge=1, lt=2**31)] = 3
    """How many configurations that are, where ``seeds`` is above 1."""


def check_forgetting(study: Study, constraints: Constraints, evaluation: Evaluation) -> None:
    """Check that what is forgotten is measured where something depends on it.

    Raises:
        PlacedError: It is not.
    """
    if evaluation.old_task is not None:
        return
    needed = "needs evaluation.old_task, the corpus on which it is measured"
    if "old_task_f1" in study.objectives:
        raise PlacedError("study.objectives", f"old_task_f1 {needed}")
    if constraints.max_forgetting is not None:
        raise PlacedError("constraints.max_forgetting", needed)


class Budget(Section):
    """What all workers together may spend: whichever runs out first."""

    trials: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Finished trials, complete or pruned."""
    epochs: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Epochs of all trials together."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of the clock since the first trial began."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.trials is None and self.epochs is None and self.hours is None:
            raise ValueError("give trials, epochs or hours")
        return self


class Artifacts(Section):
    """Where checkpoints are kept, and how many trials' stay."""

    folder: Annotated[str, Field(min_length=1)] = "storage/artifacts"
    """A folder that all workers see, or ``s3://BUCKET/PREFIX``."""
    keep: Annotated[int, Field(ge=1, lt=2**31)] = 5
    """How many trials' checkpoints stay, the best ones; the others' are collected."""

    @property
    def path(self) -> Path:
        """The folder; of a bucket, where this host keeps what is not shared, such as logs."""
        return Path("storage/artifacts" if "://" in self.folder else self.folder)

    @field_validator("folder")
    @classmethod
    def _is_place(cls, folder: str) -> str:
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", folder)
        if scheme and not re.fullmatch(r"s3://[^/?#@:]+(/[^?#]*)?", folder):
            raise ValueError(f"must be a folder or s3://BUCKET/PREFIX, not {folder!r}")
        return folder


def _start_form(given: Any) -> str:
    return "<recipe>" if isinstance(given, (dict, Recipe)) else "<checkpoint>"


Start = Annotated[
    Annotated[str, Field(min_length=1), Tag("<checkpoint>")] | Annotated[Recipe, Tag("<recipe>")],
    Discriminator(_start_form),
]
