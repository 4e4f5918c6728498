"""Looks at everything a study needs before the first trial: mistakes show at once, by name."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qa_hpo.config import Recipe, StudyFile
from qa_hpo.errors import CheckpointError, CorpusError, WindowError, WorkError
from qa_hpo.finetune.families import position_limit
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import check_windows, checkpoint_fingerprint, quiet, read_config
from qa_hpo.finetune.starts import Starts
from qa_hpo.squad.corpus import Corpus

__all__ = ["Preflight", "fingerprints", "preflight", "prepare", "training_strides"]


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        train: The training questions.
        validation: The validation questions.
        test: The questions that only an export looks at, if the study has some.
        old_task: The questions on which forgetting is measured, if the study has some.
        starts: Each start and, in words, what it is.
    """

    train: Corpus
    validation: Corpus
    test: Corpus | None
    old_task: Corpus | None
    starts: dict[str, str]

    @property
    def corpora(self) -> dict[str, Corpus]:
        """The corpora that the study has, by what they are for."""
        named = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
            "old task": self.old_task,
        }
        return {name: corpus for name, corpus in named.items() if corpus is not None}


def preflight(file: StudyFile, inputs: Inputs) -> Preflight:
    """Load the data, tokenizers and configurations of a study, and cut the narrowest windows.

    Raises:
        InputError: Something cannot be used; one line says what, where and what would be valid.
    """
    quiet()
    train = inputs.train_corpus(file.data.train, file.data.train_limit)
    validation = inputs.validation_corpus(file.data)
    old = None
    if file.evaluation.old_task is not None:
        evaluation = file.evaluation
        old = inputs.corpus(file.evaluation.old_task, "validation", evaluation.old_task_limit)
    test = _test(file, inputs, train, validation)
    described = {}
    checked: set[tuple[str, str, int]] = set()
    for name, start in file.starts.items():
        origin = file.lineage(name)[-1]
        given, place = file.starts[origin], f"starts.{origin}"
        assert isinstance(given, str)
        with _naming(place):
            checkpoint = inputs.checkpoint(given)
        config = _read(checkpoint, given, place, file.training.attention)
        described[name] = f"{given} ({config.model_type})"
        _check_length(config, given, place, file.data.max_length)
        strides = training_strides(file)
        sets = [(train, strides[-1], "training"), (validation, file.evaluation.doc_stride, "")]
        if old is not None:
            sets.append((old, file.evaluation.doc_stride, "evaluation.old_task"))
        if file.data.old_task is not None:
            learnt = inputs.train_corpus(file.data.old_task, file.data.old_task_limit)
            sets.append((learnt, file.evaluation.doc_stride, "data.old_task"))
        if isinstance(start, Recipe):
            recipe = inputs.train_corpus(start.train, start.train_limit)
            sets.append((recipe, start.parameters(file.defaults).doc_stride, f"starts.{name}"))
            described[name] = f"{start.from_} trained on {start.train} ({len(recipe):,} questions)"
        for corpus, stride, what in sets:
            key = (checkpoint, corpus.fingerprint, stride)
            if key not in checked:
                checked.add(key)
                with _naming(f"{given}, {what or 'evaluation'} windows"):
                    cut = inputs.windows(
                        corpus, checkpoint, max_length=file.data.max_length, doc_stride=stride
                    )
                    check_windows(cut, config, given)
    return Preflight(train, validation, test, old, described)


def _test(file: StudyFile, inputs: Inputs, train: Corpus, validation: Corpus) -> Corpus | None:
    """Return the test questions, if the study has some: none that the search looks at.

    Raises:
        CorpusError: They are not there, or trials are trained or measured on some of them.
    """
    if file.data.test is None:
        return None
    test = inputs.corpus(file.data.test, "validation")
    seen = {"data.validation": validation, "data.train": train}
    for name, start in file.starts.items():
        if isinstance(start, Recipe):
            seen[f"starts.{name}.train"] = inputs.train_corpus(start.train, start.train_limit)
    pairs = _pairs(test)
    for place, corpus in seen.items():
        theirs = set(_pairs(corpus))
        shared = [i for i, pair in enumerate(pairs) if pair in theirs]
        what = "are"
        if not shared and corpus is validation:
            contexts = {context for _, context in theirs}
            shared = [i for i, (_, context) in enumerate(pairs) if context in contexts]
            what = "have contexts that are"
        if shared:
            raise CorpusError(
                f"data.test: {test.source}: {len(shared):,} of its {len(test):,} questions {what} "
                f"in {place} ({corpus.source}) too, such as {test.ids[shared[0]]!r}; give a corpus "
                "of other articles, which has no part in the search (of a hub id it is the split "
                '"validation")'
            )
    return test


def _pairs(corpus: Corpus) -> list[tuple[str, str]]:
    """Return each question with its context; how words are spaced makes no other question."""
    contexts = [" ".join(context.split()) for context in corpus.contexts]
    return [
        (" ".join(question.split()), contexts[number])
        for question, number in zip(corpus.questions, corpus.context_index, strict=True)
    ]


def fingerprints(file: StudyFile, inputs: Inputs) -> dict[str, str]:
    """Return a hash of each corpus and start that a study uses, by its key in the study file.

    Hosts with equal ones may work on the same study. A start that is a recipe follows from its
    own source and corpus; a hub id stands for itself.

    Raises:
        InputError: A corpus or a start is not there, or cannot be used.
        WorkError: The hub fails.
    """
    data = file.data
    found = {
        "data.train": inputs.train_corpus(data.train, data.train_limit).fingerprint,
        "data.validation": inputs.validation_corpus(data).fingerprint,
    }
    if file.evaluation.old_task is not None:
        old = inputs.corpus(file.evaluation.old_task, "validation", file.evaluation.old_task_limit)
        found["evaluation.old_task"] = old.fingerprint
    if data.old_task is not None:
        found["data.old_task"] = inputs.train_corpus(data.old_task, data.old_task_limit).fingerprint
    for name, start in file.starts.items():
        if isinstance(start, Recipe):
            corpus = inputs.train_corpus(start.train, start.train_limit)
            found[f"starts.{name}.train"] = corpus.fingerprint
        else:
            with _naming(f"starts.{name}"):
                inputs.checkpoint(start)
            found[f"starts.{name}"] = checkpoint_fingerprint(start)[:16]
    return found


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say of which part of a study something is that cannot be used."""
    try:
        yield
    except (CheckpointError, WindowError, WorkError) as error:
        raise type(error)(f"{place}: {error}") from None


def _read(checkpoint: str, given: str, place: str, attention: str) -> Any:
    """Return the configuration of a start's checkpoint, which is a folder."""
    try:
        return read_config(checkpoint, attention)
    except CheckpointError as error:
        why = str(error).removeprefix(f"{checkpoint}: ")
        raise CheckpointError(f"{place}: {given}: {why}") from None


def _check_length(config: Any, given: str, place: str, max_length: int) -> None:
    limit = position_limit(config)
    if limit is not None and max_length > limit:
        raise WindowError(
            f"data.max_length: {max_length} is more than the {limit} positions of {place} ({given})"
        )


def training_strides(file: StudyFile) -> list[int]:
    """Return the training strides that a study may use, as far as it names them, ascending."""
    dimension = file.search.get("doc_stride")
    if dimension is None:
        return [file.training.doc_stride]
    default = [file.training.doc_stride] if dimension.when else []
    return sorted(int(value) for value in [*dimension.values(), *default])


def prepare(
    file: StudyFile, inputs: Inputs, on_step: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Do once what every worker needs: cut the windows and build the starts.

    Args:
        file: The study.
        inputs: Loads, and owns the cache.
        on_step: Told what is being done.

    Yields:
        Each start's name and its checkpoint.

    Raises:
        InputError: As :func:`preflight`.
        WorkError: A start could not be built.
    """
    found = preflight(file, inputs)
    starts = Starts(file, file.training.runtime(), inputs)
    dimension = file.search.get("doc_stride")
    ranged = dimension is not None and dimension.low is not None
    for name in file.starts:
        checkpoint = starts.checkpoint(name, lambda built: on_step(f"building start {built}"))
        for stride in [] if ranged else training_strides(file):
            on_step(f"windows of {name}, doc_stride {stride}")
            inputs.windows(
                found.train, checkpoint, max_length=file.data.max_length, doc_stride=stride
            )
        yield name, checkpoint
