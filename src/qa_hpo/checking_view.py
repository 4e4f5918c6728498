"""A study as its costs see it: trials that were drawn, and the windows and paces of its starts."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qa_hpo.config import Recipe, Run, Runtime, StudyFile
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import Preflight, training_strides
from qa_hpo.finetune.timing import Pace, time_steps
from qa_hpo.finetune.training import Training
from qa_hpo.parameters import Parameters, Retention
from qa_hpo.retaining import NEEDS_OLD_DATA, searched_methods
from qa_hpo.search.promotion import Rules
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.windows import Windows
from qa_hpo.workers.local import Place

__all__ = ["DRAWN", "RUN", "Sets", "View"]

DRAWN = 200
"""Trials that are drawn at most."""
RUN = 4
"""Checkpoints' sizes that a run which is not over keeps: its best one, and a resume state, which is
the weights and the optimizer's two moments."""


@dataclass(frozen=True)
class Sets:
    """The windows of models with one tokenizer.

    Attributes:
        training: Training windows for each stride that the file names.
        training_bytes: Their sizes.
        validation: Validation windows.
        old_task: Windows on which forgetting is measured.
        other_bytes: Sizes of all that are cut besides the training windows, those of recipes
            and of the old task included.
    """

    training: dict[int, int]
    training_bytes: dict[int, int]
    validation: int
    old_task: int
    other_bytes: int


@dataclass(frozen=True)
class View:
    """A study as its costs see it.

    Attributes:
        file: The study.
        found: What a look at it found.
        inputs: What loaded its data.
        places: Where its workers compute.
        trials: Configurations that were drawn.
    """

    file: StudyFile
    found: Preflight
    inputs: Inputs
    places: list[Place]
    trials: list[Parameters]

    def root(self, start: str) -> str:
        """Return the checkpoint that a start comes from."""
        root = self.file.starts[self.file.lineage(start)[-1]]
        assert isinstance(root, str)
        return root

    def roots(self) -> list[str]:
        """Return the checkpoints that the drawn trials come from."""
        return list(dict.fromkeys(self.root(trial.start) for trial in self.trials))

    @cached_property
    def sets(self) -> dict[str, Sets]:
        """The windows of each checkpoint that a start comes from."""
        return {root: self._sets(root) for root in dict.fromkeys(map(self.root, self.file.starts))}

    def _sets(self, root: str) -> Sets:
        strides, stride = training_strides(self.file), self.file.evaluation.doc_stride
        training, sizes = {}, {}
        for named in strides:  # one at a time: a set may take hundreds of MiB
            windows = self._cut(self.found.train, root, named)
            training[named], sizes[named] = len(windows), windows.nbytes
        others = {(corpus.fingerprint, s): (corpus, s) for corpus, s in self._other(root)}
        for named in strides:
            others.pop((self.found.train.fingerprint, named), None)
        old = self.found.old_task
        return Sets(
            training=training,
            training_bytes=sizes,
            validation=len(self._cut(self.found.validation, root, stride)),
            old_task=0 if old is None else len(self._cut(old, root, stride)),
            other_bytes=sum(self._cut(corpus, root, s).nbytes for corpus, s in others.values()),
        )

    def _other(self, root: str) -> Iterator[tuple[Corpus, int]]:
        """Give each corpus that is cut besides the training questions, with its stride."""
        file, load = self.file, self.inputs.train_corpus
        stride = file.evaluation.doc_stride
        yield self.found.validation, stride
        if self.found.old_task is not None:
            yield self.found.old_task, stride
        if file.data.old_task is not None:
            yield load(file.data.old_task, file.data.old_task_limit), stride
        needed = set(self.methods) & set(NEEDS_OLD_DATA)
        for name, start in file.starts.items():
            if self.root(name) != root:
                continue
            if isinstance(start, Recipe):
                corpus = load(start.train, start.train_limit)
                yield corpus, start.parameters(file.defaults).doc_stride
            if needed and (learnt := file.old_training(name)) is not None:
                yield load(*learnt), stride

    def _cut(self, corpus: Corpus, root: str, stride: int) -> Windows:
        return self.inputs.windows(
            corpus,
            self.inputs.checkpoint(root),
            max_length=self.file.data.max_length,
            doc_stride=stride,
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The retention methods that a trial may have."""
        return searched_methods(self.file.search, self.file.defaults.retention)

    def evaluated(self, start: str) -> int:
        """Return the windows of an epoch's evaluation."""
        sets = self.sets[self.root(start)]
        return sets.validation + sets.old_task

    def pace(self, root: str) -> Pace:
        """Time a run from a checkpoint, with a batch size in the middle of those searched.

        It has no retention method: those that need a start that is built, or a Fisher information,
        would take as long as what is to be foreseen.
        """
        file, inputs = self.file, self.inputs
        mine = [trial for trial in self.trials if self.root(trial.start) == root]
        middle = sorted(mine, key=lambda trial: trial.batch_size)[len(mine) // 2]
        name = next(name for name, start in file.starts.items() if start == root)
        plain = middle.model_copy(update={"start": name, "retention": Retention()})
        runtime = file.training.runtime()
        if runtime.cpu_threads is None:
            threads = self.places[0].threads
            runtime = Runtime(**{**runtime.model_dump(), "cpu_threads": threads})
        config = file.run_config(plain, Run(name="timed", seed=file.study.seed), runtime)
        folder = inputs.checkpoint(root)
        windows = self._cut(self.found.train, root, max(self.sets[root].training))
        pace = time_steps(
            Training(
                checkpoint=folder,
                tokenizer=inputs.tokenizer(folder),
                windows=windows,
                validation=inputs.validation(file.data, folder, file.evaluation.doc_stride),
                parameters=config.parameters,
                seed=config.run.seed,
                runtime=config.runtime,
                evaluation=config.evaluation,
            )
        )
        return dataclasses.replace(pace, checkpoint=root)

    def seconds(self, trial: Parameters, pace: Pace) -> float:
        """Return how long a trial takes that does not end early, without its retention method.

        Looks within an epoch measure the validation loss alone; the old task is measured at its
        end.
        """
        counts = self.sets[self.root(trial.start)].training
        cut = float(np.interp(trial.doc_stride, list(counts), list(counts.values())))
        looks = self.file.pruning.evaluations_per_epoch - 1
        # The best checkpoint and the resume state: written, packed, and put into the store.
        saving = 3 * RUN * pace.save_s
        epoch = cut * pace.window_s + saving
        validation = self.sets[self.root(trial.start)].validation
        epoch += (looks * validation + self.evaluated(trial.start)) * pace.evaluation_s
        return pace.setup_s + self.epochs_of(trial) * epoch

    def epochs_of(self, trial: Parameters) -> float:
        """Return for how many epochs a trial is trained; on average, where trials are promoted."""
        file, rules = self.file, Rules.of(self.file)
        if rules is None:
            return trial.epochs
        number = file.budget.trials or DRAWN
        exempt = len(file.baseline) + (file.evaluation.seeds - 1) * file.evaluation.finalists
        exempt += round(file.pruning.control_fraction * max(0, number - exempt))
        return rules.expected_epochs(number, min(number, exempt)) / number

    @property
    def mean_epochs(self) -> float:
        """For how many epochs a trial is trained, of those that were drawn."""
        return float(np.mean([self.epochs_of(trial) for trial in self.trials]))

    def mean_s(self, paces: dict[str, Pace]) -> float:
        """Return how long a trial takes, of those that were drawn."""
        return float(np.mean([self.seconds(t, paces[self.root(t.start)]) for t in self.trials]))

    @property
    def parallel(self) -> int:
        """How many trials go on at once, at the pace that was measured.

        Workers that share a GPU go on at the pace of one.
        """
        devices = {place.device for place in self.places}
        return len(self.places) if devices == {"cpu"} else len(devices)
