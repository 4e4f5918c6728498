"""The study file and the configuration of one run: TOML in and out, defaults, clear errors.

Paths, like SQLite storage URLs, are relative to the folder in which ``qa-hpo`` is run.
"""

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qa_hpo.config_files import mistakes, read_toml, to_toml, validated
from qa_hpo.errors import StudyFileError
from qa_hpo.parameters import (
    PARAMETER_NAMES,
    Dimension,
    Parameters,
    Retention,
    Scalar,
    check_conditions,
    checked,
    flattened,
    parameter_of,
)
from qa_hpo.retaining import (
    METHOD,
    check_need,
    check_strengths,
    implied_condition,
    old_training,
    searched_methods,
)
from qa_hpo.sections import (
    Artifacts,
    Budget,
    Constraints,
    Data,
    Evaluation,
    Pruning,
    Recipe,
    Run,
    Runtime,
    Start,
    StartName,
    Study,
    StudyEvaluation,
    Training,
    check_forgetting,
)
from qa_hpo.validation import PlacedError, Section, nearest

__all__ = [
    "DEFAULT_STORAGE",
    "Artifacts",
    "Budget",
    "Constraints",
    "Data",
    "Dimension",
    "Evaluation",
    "Parameters",
    "Pruning",
    "Recipe",
    "Run",
    "RunConfig",
    "Runtime",
    "Start",
    "Study",
    "StudyEvaluation",
    "StudyFile",
    "Training",
    "load_run_config",
    "load_study_file",
    "parse_study",
    "storage_url",
    "to_toml",
]

_LONGEST_LINEAGE = 100

DEFAULT_STORAGE = "sqlite:///storage/qa_hpo.db"


class _Job(Section):
    """What a study and a single run have in common."""

    data: Data
    starts: Annotated[dict[StartName, Start], Field(min_length=1)]
    """From which checkpoints fine-tuning may start, by name: a hub id, a folder, or a recipe."""
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _starts_lead_to_checkpoints(self) -> Self:
        for name in self.starts:
            self.lineage(name)
        return self

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.evaluation.doc_stride >= self.data.max_length:
            raise PlacedError(
                "evaluation.doc_stride",
                f"{self.evaluation.doc_stride} must be below data.max_length "
                f"({self.data.max_length})",
            )
        return self

    def lineage(self, name: str) -> list[str]:
        """Return ``name`` and the starts it is built from, the checkpoint last.

        Raises:
            PlacedError: A recipe names a start that does not exist, or itself, or there are too
                many between a start and its checkpoint.
        """
        chain = [name]
        seen = {name}
        while isinstance(start := self.starts[chain[-1]], Recipe):
            where = f"starts.{chain[-1]}.from"
            if start.from_ not in self.starts:
                hint = nearest(start.from_, self.starts)
                raise PlacedError(where, f"no start is called {start.from_!r}; {hint}")
            if start.from_ in seen:
                raise PlacedError(where, f"goes round: {' from '.join([*chain, start.from_])}")
            if len(chain) == _LONGEST_LINEAGE:
                raise PlacedError(
                    f"starts.{name}.from", f"more than {_LONGEST_LINEAGE} starts from a checkpoint"
                )
            chain.append(start.from_)
            seen.add(start.from_)
        return chain

    def old_training(self, start: str) -> tuple[str, int | None] | None:
        """Return the training questions of what ``start`` has learnt before, and their limit."""
        return old_training(self.data, self.starts, self.lineage(start))

    def _check_retention(self, where: str, methods: Iterable[str], starts: Iterable[str]) -> None:
        """Check that each start has what each method needs; what ``si`` needs is collected."""
        for method, start in itertools.product(methods, starts):
            known = self.old_training(start) is not None
            recipe = self.starts[start]
            check_need(where, method, start, known, isinstance(recipe, Recipe))
            if method == "si" and isinstance(recipe, Recipe):
                self.starts[start] = recipe.model_copy(update={"path_integral": True})


class StudyFile(_Job):
    """A whole study: what is searched, on which data, from which starts, for how long."""

    study: Study
    evaluation: StudyEvaluation = StudyEvaluation()
    search: Annotated[dict[str, Dimension], BeforeValidator(flattened), Field(default_factory=dict)]
    """What is searched, by the parameter's name."""
    training: Training = Training()
    pruning: Annotated[Pruning, Field(validate_default=True)] = Pruning()
    constraints: Constraints = Constraints()
    budget: Budget
    artifacts: Artifacts = Artifacts()
    baseline: Annotated[
        tuple[Annotated[dict[str, Scalar], BeforeValidator(flattened)], ...], Field()
    ] = ()
    """Configurations that are tried first, in their order: values of searched parameters, and
    perhaps a ``name``. The winner is compared with the first one."""

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read and validate a study file.

        Raises:
            StudyFileError: One line for each mistake, with the key's path.
        """
        return validated(cls, read_toml(Path(path)), Path(path))

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> Self:
        """Validate a study given as its file's sections: ``{"study": {"name": …}, …}``.

        Raises:
            StudyFileError: One line for each mistake, with the key's path.
        """
        return validated(cls, dict(sections), Path("study"))

    def with_trials(self, trials: int | None) -> Self:
        """Return the study with another budget of trials; the same if None."""
        if trials is None:
            return self
        budget = {**self.budget.model_dump(mode="json"), "trials": trials}
        given = {**self.model_dump(mode="json", by_alias=True), "budget": budget}
        return validated(type(self), given, Path("--trials"))

    @field_validator("search")
    @classmethod
    def _typed(cls, search: dict[str, Dimension]) -> dict[str, Dimension]:
        typed = {}
        for name, dimension in search.items():
            where = f"search.{name}"
            if parameter_of(name) not in PARAMETER_NAMES:
                raise PlacedError(where, f"unknown parameter; {nearest(name, PARAMETER_NAMES)}")
            try:
                typed[name] = dimension.coerced(name)
            except ValueError as error:
                raise PlacedError(where, str(error)) from None
        return typed

    @field_validator("pruning")
    @classmethod
    def _goes_with_the_study(cls, pruning: Pruning, info: ValidationInfo) -> Pruning:
        study, search = info.data.get("study"), info.data.get("search")
        if study is None or search is None:  # there is a mistake in them, which is told
            return pruning
        epochs = search.get("epochs")
        one_horizon = epochs is None or (len(set(epochs.values())) == 1 and not epochs.when)
        return pruning.beside(study.objectives, one_horizon=one_horizon)

    @model_validator(mode="after")
    def _forgetting_is_measured(self) -> Self:
        check_forgetting(self.study, self.constraints, self.evaluation)
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        self._check_start_dimension()
        check_conditions(self.search, self.defaults)
        self._complete_retention()
        for name, dimension in self.search.items():
            for other in dimension.when or {}:
                self._check_condition(f"search.{name}.when.{other}", name, other)
        for index, entry in enumerate(self.baseline):
            self._check_baseline(f"baseline[{index}]", entry)
        return self

    @model_validator(mode="after")
    def _finalists_fit(self) -> Self:
        seeds, finalists = self.evaluation.seeds, self.evaluation.finalists
        if seeds == 1:
            return self
        if self.budget.trials is None:
            raise PlacedError(
                "evaluation.seeds", "needs budget.trials, of which the finalists' runs are a part"
            )
        if self.budget.trials < finalists * seeds:
            raise PlacedError(
                "evaluation.seeds",
                f"{finalists} finalists with {seeds} seeds each are {finalists * seeds} runs, and "
                f"budget.trials is {self.budget.trials}",
            )
        return self

    def _check_start_dimension(self) -> None:
        dimension = self.search.get("start")
        if dimension is None and len(self.starts) > 1:
            raise PlacedError(
                "search.start", "missing, and there are several starts to choose from"
            )
        for start in dimension.values() if dimension else []:
            if start not in self.starts:
                hint = nearest(str(start), self.starts)
                raise PlacedError("search.start", f"no start is called {start!r}; {hint}")

    def _complete_retention(self) -> None:
        """Say where strengths and ranks apply, and check that methods have what they need."""
        fixed = self.training.retention
        for name, dimension in self.search.items():
            if parameter_of(name) not in {"retention.strength", "retention.rank"}:
                continue
            if dimension.when is None or name != parameter_of(name):
                implied = implied_condition(name, self.search, fixed)
                self.search[name] = dimension.model_copy(update={"when": implied})
            check_strengths(name, self.search[name])
        method, start = self.search.get(METHOD), self.search.get("start")
        starts = [str(each) for each in start.values()] if start else list(self.starts)[:1]
        own = (method.when or {}).get("start", starts) if method else starts
        self._check_retention("training.retention", [fixed.method], starts)
        self._check_retention(
            f"search.{METHOD}",
            searched_methods(self.search, Retention()),
            [str(each) for each in (own if isinstance(own, list) else [own])],
        )

    def _check_condition(self, where: str, name: str, other: str) -> None:
        if other not in self.search or other == name:
            others = [valid for valid in self.search if valid != name]
            raise PlacedError(where, f"not another searched parameter; {nearest(other, others)}")
        if parameter_of(other) != other:
            raise PlacedError(where, f"{other} is of one method; give retention.method a condition")
        chain = [other]
        while chain:
            behind = self.search[chain.pop()].when or {}
            if name in behind:
                raise PlacedError(where, f"goes round: {name} is a condition of {other}")
            chain.extend(each for each in behind if each in self.search)

    def _check_baseline(self, where: str, entry: dict[str, Scalar]) -> None:
        for name, value in entry.items():
            place = f"{where}.{name}"
            if name == "name":
                continue
            if name not in PARAMETER_NAMES:
                raise PlacedError(place, f"unknown parameter; {nearest(name, PARAMETER_NAMES)}")
            own = f"{name}.{entry.get(METHOD, self.defaults.retention.method)}"
            dimension = own if own in self.search else name
            if dimension not in self.search:
                raise PlacedError(place, "is not searched: set it in [training]")
            try:
                typed = checked(dimension, value)
            except ValueError as error:
                raise PlacedError(place, str(error)) from None
            if not self.search[dimension].contains(typed):
                raise PlacedError(place, f"{value!r} is not in search.{dimension}")

    @property
    def defaults(self) -> Parameters:
        """What a parameter is where the search does not choose it, or a recipe does not say."""
        return self.training.parameters(next(iter(self.starts)))

    def run_config(self, parameters: Parameters, run: Run, runtime: Runtime) -> "RunConfig":
        """Return the configuration of one run, with the starts it needs, recipes spelt out."""
        starts: dict[str, Start] = {}
        for name in self.lineage(parameters.start):
            start = self.starts[name]
            if isinstance(start, Recipe):
                spelt_out = start.parameters(self.defaults).model_dump(
                    exclude={"start", "retention"}
                )
                start = start.model_copy(update=spelt_out)
            starts[name] = start
        return RunConfig(
            run=run,
            data=self.data,
            starts=starts,
            parameters=parameters,
            runtime=runtime,
            evaluation=Evaluation(
                **self.evaluation.model_dump(include=set(Evaluation.model_fields))
            ),
        )


class RunConfig(_Job):
    """One fine-tuning run, complete: what ``qa-hpo train`` takes and ``qa-hpo export`` writes."""

    run: Run
    parameters: Parameters
    runtime: Annotated[Runtime, Field(alias="training")] = Runtime()

    @property
    def defaults(self) -> Parameters:
        """What a recipe does not say: the recipe's of SQuAD."""
        return Parameters()

    @model_validator(mode="after")
    def _start_is_known(self) -> Self:
        start = self.parameters.start
        if start not in self.starts:
            raise PlacedError(
                "parameters.start", f"no start is called {start!r}; {nearest(start, self.starts)}"
            )
        self._check_retention("parameters.retention", [self.parameters.retention.method], [start])
        return self


def load_study_file(path: Path) -> StudyFile:
    """Read and validate a study file.

    Raises:
        StudyFileError: One line for each mistake, with the key's path.
    """
    return StudyFile.from_toml(path)


def load_run_config(path: Path) -> RunConfig:
    """Read and validate the configuration of one run.

    Raises:
        StudyFileError: One line for each mistake, with the key's path.
    """
    given = read_toml(path)
    if "study" in given and "run" not in given:
        raise StudyFileError(
            f"{path}: this is a study file; 'qa-hpo train' takes one configuration, as "
            "'qa-hpo export' writes it (qa_hpo.toml). 'qa-hpo run' runs a study."
        )
    return validated(RunConfig, given, path)


def parse_study(text: str, source: str) -> StudyFile:
    """Validate a study that was stored as JSON; ``source`` names it in errors."""
    try:
        return StudyFile.model_validate_json(text)
    except ValidationError as error:
        raise StudyFileError(mistakes(error, StudyFile, source)) from None


def storage_url(study: Study, override: str | None = None) -> str:
    """Return the storage's URL: ``override``, ``QA_HPO_STORAGE``, the file's, the default."""
    return override or os.environ.get("QA_HPO_STORAGE") or study.storage or DEFAULT_STORAGE
