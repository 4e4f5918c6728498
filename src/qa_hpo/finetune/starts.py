"""Names of starts to checkpoints; one that is a recipe is built once, by whoever comes first."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from qa_hpo.config import Recipe, RunConfig, Runtime, StudyFile
from qa_hpo.errors import DivergedError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.interruption import Check
from qa_hpo.finetune.locking import locked
from qa_hpo.finetune.retention import NoRetention, PathIntegral
from qa_hpo.finetune.training import Training, train
from qa_hpo.parameters import Parameters
from qa_hpo.paths import RunPaths

__all__ = ["Starts"]

_logger = logging.getLogger(__name__)

# Part of a built start's key: raised when the same recipe would give other weights.
_VERSION = 2


class Starts:
    """The starts of a study or of a single run.

    Args:
        job: Where they are defined.
        runtime: How the hardware is used while one is built.
        inputs: Loads data and tokenizers, and owns the cache that built starts are kept in.
    """

    def __init__(self, job: StudyFile | RunConfig, runtime: Runtime, inputs: Inputs) -> None:
        self.job = job
        self.runtime = runtime
        self.inputs = inputs

    def checkpoint(
        self,
        name: str,
        on_build: Callable[[str], None] | None = None,
        check: Check | None = None,
    ) -> str:
        """Return a folder with start ``name``, after fetching or building it if need be.

        Several processes that want the same start wait for the one that builds it. A build that
        was interrupted goes on from its last finished epoch.

        Args:
            name: One of the job's starts.
            on_build: Told the name of a start that is about to be built.
            check: Called before every batch of a build, and again and again while another process
                builds; what it raises ends the build or the wait, and comes out unchanged.

        Raises:
            CheckpointError: There is no such checkpoint, or it cannot be had from the hub.
            WorkError: The recipe's training diverged, or ran out of memory or disk space, or the
                hub failed.
        """
        start = self.job.starts[name]
        if isinstance(start, str):
            return self.inputs.checkpoint(start)
        final = self.inputs.cache.start(name, self._key(name))
        if not final.is_dir():
            source = self.checkpoint(start.from_, on_build, check)
            final.parent.mkdir(parents=True, exist_ok=True)
            with locked(final, check):
                if not final.is_dir():
                    if on_build is not None:
                        on_build(name)
                    self._build(name, start, final, source, check)
        return str(final)

    def built(self, name: str) -> bool:
        """Return whether start ``name`` is there without any work."""
        start = self.job.starts[name]
        return isinstance(start, str) or self.inputs.cache.start(name, self._key(name)).is_dir()

    def fingerprint(self, name: str) -> str:
        """Return a hash that differs where the weights of start ``name`` may."""
        start = self.job.starts[name]
        return self.inputs.checkpoint_key(start) if isinstance(start, str) else self._key(name)

    def _parameters(self, recipe: Recipe) -> Parameters:
        return recipe.parameters(self.job.defaults)

    def _key(self, name: str) -> str:
        recipe = self.job.starts[name]
        assert isinstance(recipe, Recipe)
        corpus = self.inputs.train_corpus(recipe.train, recipe.train_limit)
        content = {
            "version": _VERSION,
            "source": self.fingerprint(recipe.from_),
            "corpus": corpus.fingerprint,
            "parameters": self._parameters(recipe).model_dump(exclude={"start", "retention"}),
            "seed": recipe.seed,
            "max_length": self.job.data.max_length,
            "precision": self.runtime.precision,
        }
        if recipe.path_integral:
            content["path_integral"] = True
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _build(
        self, name: str, recipe: Recipe, final: Path, source: str, check: Check | None
    ) -> None:
        parameters = self._parameters(recipe)
        corpus = self.inputs.train_corpus(recipe.train, recipe.train_limit)
        windows = self.inputs.windows(
            corpus,
            source,
            max_length=self.job.data.max_length,
            doc_stride=parameters.doc_stride,
        )
        _logger.info("building start %s: %d questions", name, len(corpus))
        paths = RunPaths(final.with_name(f".{final.name}.building"))
        tuned = train(
            Training(
                checkpoint=source,
                tokenizer=self.inputs.tokenizer(source),
                windows=windows,
                validation=None,
                parameters=parameters,
                seed=recipe.seed,
                runtime=self.runtime,
                retention=PathIntegral() if recipe.path_integral else NoRetention(),
                device_batches=self.inputs.device_batches,
            ),
            paths,
            check=check,
        )
        if tuned.checkpoint is None or tuned.stop_reason is not None:
            shutil.rmtree(paths.folder, ignore_errors=True)
            raise DivergedError(
                f"starts.{name}: its training diverged; a lower learning_rate than "
                f"{parameters.learning_rate} may help"
            )
        tuned.checkpoint.replace(final)
        shutil.rmtree(paths.folder, ignore_errors=True)
