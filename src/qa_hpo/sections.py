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
    "Study",
    "StudyEvaluation",
    "Training",
    "check_forgetting",
]

Name = Annotated[str, Field(min_length=1, max_length=150, pattern=r"^[\w][\w .+-]*$")]

EvaluationsPerEpoch = Annotated[int, Field(ge=1, le=100)]
"""How often an epoch's validation loss is measured: at its end, and so many times less one on the
way."""


class Study(Section):
    """What the study is called, where it is kept, and what it maximises.

    ``objectives`` are scores of a trial's best epoch, in percent, both of the same checkpoint:
    ``best_f1``, and perhaps ``old_task_f1``, its F1 on ``evaluation.old_task``. With both, the
    search looks for the trials of which none other is better in both.

    ``learn_from`` names other studies of the same storage: their finished trials are what the
    sampler knows already when this study begins. They are not run again and count for no budget.
    """

    name: Name
    storage: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    objectives: tuple[Literal["best_f1", "old_task_f1"], ...] = ("best_f1",)
    learn_from: tuple[Name, ...] = ()

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
    """The corpora: a hub id or a path each. Lengths are in tokens, limits in questions.

    A hub id as ``train`` gives its split "train", and as ``validation`` or ``test`` its split
    "validation". ``test``, where there is one, has no part in the search: the checkpoint that is
    exported is measured on it. It must hold other questions than the rest, about other contexts
    than ``validation``. ``old_task`` are the training questions of what starts have learnt before,
    which retention methods look at; where it is left out, those of a start's own recipe.
    """

    train: str
    validation: str
    test: str | None = None
    max_length: Annotated[int, Field(ge=16, le=8192)] = 384
    train_limit: Annotated[int, Field(ge=1)] | None = None
    validation_limit: Annotated[int, Field(ge=1)] | None = None
    old_task: str | None = None
    old_task_limit: Annotated[int, Field(ge=1)] | None = None


class Recipe(Section):
    """A start that is built: ``from_`` (``from`` in the file) trained on ``train``.

    What is left out is taken from the study file's ``[training]``.
    """

    from_: Annotated[str, Field(alias="from", min_length=1)]
    train: str
    train_limit: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    doc_stride: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    scheduler: Scheduler | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    path_integral: bool = False
    """Whether the importance of each weight is collected on the way, as ``si`` needs it; set where
    that method is searched."""

    def parameters(self, defaults: Parameters) -> Parameters:
        """Return the recipe's parameters, with ``defaults`` where it says nothing."""
        own = self.model_dump(include=set(Hyperparameters.model_fields), exclude_none=True)
        # What is kept of an old task is a matter of the trials.
        return defaults.model_copy(update={"start": self.from_, "retention": Retention(), **own})


class Run(Section):
    """One run's name and seed, and after which epoch to stop although the schedule goes on.

    ``evaluations_per_epoch`` is as in ``[pruning]``: what an epoch measures at its end does not
    depend on it.
    """

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    stop_after_epochs: Annotated[int, Field(ge=1)] | None = None
    evaluations_per_epoch: EvaluationsPerEpoch = 1


class Runtime(Section):
    """How a run uses the hardware; none of it is searched."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    compile: bool = False
    eval_batch_size: Annotated[int, Field(ge=1)] = 64
    cpu_threads: Annotated[int, Field(ge=1)] | None = None


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

    ``across`` compares a trial with others. With "promote" it waits after ``first_rung`` epochs,
    after ``reduction_factor`` times as many and so on, and goes on where it is among the best
    1 / ``reduction_factor`` of those that have come as far. The others compare losses, and end
    what is worse. Optuna takes no reports in a study
    with two objectives, so that it is "none" there where the file does not say; a trial that
    overfits ends early all the same, and ``control_fraction`` keeps its share from that.

    With ``evaluations_per_epoch`` above 1 the validation loss is also measured within an epoch,
    at equal distances, and a trial that overfits or diverges ends there. ``patience`` is in epochs
    all the same: it is met by so many times the evaluations in a row.
    """

    patience: Annotated[int, Field(ge=1)] = 1
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    evaluations_per_epoch: EvaluationsPerEpoch = 1
    across: Literal["median", "hyperband", "promote", "none"] = "median"
    startup_trials: Annotated[int, Field(ge=0)] = 5
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    first_rung: Annotated[int, Field(ge=1)] = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    control_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0

    def beside(self, objectives: Sequence[str]) -> "Pruning":
        """Return what holds in a study with these objectives.

        Raises:
            PlacedError: The file asks for what Optuna cannot do with several.
        """
        if len(objectives) == 1 or self.across == "none":
            return self
        if "across" in self.model_fields_set:
            raise PlacedError(
                "pruning.across",
                f"{self.across!r} needs one objective, and study.objectives has "
                f"{len(objectives)}; valid: 'none'",
            )
        return self.model_copy(update={"across": "none"})


class Constraints(Section):
    """What a trial must keep to, or it ranks behind all that do.

    ``max_forgetting``: how far the F1 on ``evaluation.old_task`` may be below the start's, in
    points. A start that has not learnt that task has nothing to forget.
    """

    max_forgetting: Annotated[float, Field(ge=0)] | None = None


class Evaluation(Section):
    """How validation questions are answered, and answers scored. Lengths are in tokens.

    ``tokens`` are what an answer is compared with the gold ones by: ``words`` as SQuAD has them, or
    ``characters`` for text in which no spaces part the words, as CMRC 2018 has them (see
    :mod:`qa_hpo.squad.answer_tokens`).
    """

    n_best: Annotated[int, Field(ge=1)] = 20
    max_answer_length: Annotated[int, Field(ge=1)] = 30
    doc_stride: Annotated[int, Field(ge=0)] = 128
    tokens: Literal["words", "characters"] = "words"
    old_task: str | None = None
    """A corpus of a task that starts have learnt before; how much of it is forgotten is measured
    with every checkpoint."""
    old_task_limit: Annotated[int, Field(ge=1)] | None = None


class StudyEvaluation(Evaluation):
    """How a study's trials are evaluated: each of them, and the best ones beside each other.

    With ``seeds`` above 1, the ``finalists`` best configurations are run that often, each with
    another seed, before the winner is named; the budget's last trials are theirs.
    """

    seeds: Annotated[int, Field(ge=1)] = 1
    finalists: Annotated[int, Field(ge=1)] = 3


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

    trials: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.trials is None and self.epochs is None and self.hours is None:
            raise ValueError("give trials, epochs or hours")
        return self


class Artifacts(Section):
    """Where checkpoints are kept, and how many trials' stay."""

    folder: Annotated[str, Field(min_length=1)] = "storage/artifacts"
    """A folder that all workers see, or ``s3://BUCKET/PREFIX``."""
    keep: Annotated[int, Field(ge=1)] = 5

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
