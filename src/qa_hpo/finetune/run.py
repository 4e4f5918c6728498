"""One fine-tuning run: a configuration in, epoch records and a checkpoint out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from qa_hpo.config import RunConfig
from qa_hpo.errors import StudyFileError
from qa_hpo.finetune.disk import telling_of_a_full_disk
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.interruption import Check
from qa_hpo.finetune.records import EpochRecord, FineTuned, Look
from qa_hpo.finetune.retention import OldData, RetentionMethod, make_method
from qa_hpo.finetune.starts import Starts
from qa_hpo.finetune.training import Training, collator, old_task, train
from qa_hpo.paths import CachePaths, RunPaths, read_json, write_json
from qa_hpo.retaining import NEEDS_OLD_DATA

__all__ = ["EpochRecord", "FineTuned", "Inputs", "Starts", "fine_tune"]


def fine_tune(
    config: RunConfig,
    folder: Path,
    *,
    inputs: Inputs | None = None,
    on_epoch: Callable[[EpochRecord], str | None] | None = None,
    on_look: Callable[[Look], str | None] | None = None,
    on_build: Callable[[str], None] | None = None,
    check: Check | None = None,
) -> FineTuned:
    """Fine-tune one configuration, measuring every epoch.

    A run is a function of its configuration: on the same hardware it gives the same epoch records
    again. In a folder in which the same configuration was interrupted, it goes on after the last
    finished epoch, and its records are those of a run that was never interrupted.

    Args:
        config: The run.
        folder: Where its checkpoints and resume states go.
        inputs: Data and tokenizers that are loaded already.
        on_epoch: Told of every epoch; a reason that it returns ends the run.
        on_look: Told of every look at the validation loss within an epoch, of which there are
            ``run.evaluations_per_epoch`` less one, where the run trains that epoch; a reason that
            it returns ends the run there, and the epoch leaves neither record nor checkpoint.
        on_build: Told the name of a start that has to be built first.
        check: Called before every training step and every evaluation batch, and while another
            process is waited for that builds the start; never while files are written. What it
            raises ends the run and comes out unchanged; called again with the same ``folder``,
            the run goes on after its last finished epoch.

    Returns:
        The epoch records and the best epoch's checkpoint, which lies in ``folder``.

    Raises:
        InputError: Data, starts and lengths do not go together.
        StudyFileError: ``folder`` holds the beginning of another configuration's run.
        DiskFullError: No space is left in ``folder``; what was whole in it still is.
        OutOfMemoryError: The model, or one window at a time, does not fit into the memory.
        WorkError: A start could not be built.
    """
    inputs = inputs or Inputs(CachePaths())
    starts = Starts(config, config.runtime, inputs)
    checkpoint = starts.checkpoint(config.parameters.start, on_build, check)
    training = _training(config, checkpoint, inputs, check)
    # Only now: a mistake in the configuration leaves nothing behind.
    with telling_of_a_full_disk(folder):
        _claim(config, folder, _fingerprints(config, inputs))
    return train(training, RunPaths(folder), on_epoch, check, on_look)


def _training(config: RunConfig, checkpoint: str, inputs: Inputs, check: Check | None) -> Training:
    """Load what a run from ``checkpoint`` needs."""
    data = config.data
    windows = inputs.windows(
        inputs.train_corpus(data.train, data.train_limit),
        checkpoint,
        max_length=data.max_length,
        doc_stride=config.parameters.doc_stride,
    )
    tokenizer = inputs.tokenizer(checkpoint)
    learnt = inputs.old_task(config, checkpoint)
    return Training(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        windows=windows,
        validation=inputs.validation(data, checkpoint, config.evaluation.doc_stride),
        parameters=config.parameters,
        seed=config.run.seed,
        runtime=config.runtime,
        evaluation=config.evaluation,
        old_task=None
        if learnt is None
        else old_task(learnt, checkpoint, tokenizer, config, inputs.cache.old_task, check),
        retention=_retention(config, checkpoint, inputs, check),
        stop_after_epochs=config.run.stop_after_epochs,
        evaluations_per_epoch=config.run.evaluations_per_epoch,
        device_batches=inputs.device_batches,
    )


def _retention(
    config: RunConfig, checkpoint: str, inputs: Inputs, check: Check | None
) -> RetentionMethod:
    """Return the run's retention method, with the old task's questions if it looks at them."""
    retention, old = config.parameters.retention, None
    if retention.method in NEEDS_OLD_DATA:
        corpus, windows = inputs.old_training(config, checkpoint)
        old = OldData(
            checkpoint=checkpoint,
            windows=windows,
            groups=corpus.groups(),
            key=f"{corpus.fingerprint}-{config.data.max_length}-{config.evaluation.doc_stride}",
            padded=partial(collator, tokenizer=inputs.tokenizer(checkpoint)),
            runtime=config.runtime,
            cache=inputs.cache.retention,
            check=check,
        )
    return make_method(retention, checkpoint=checkpoint, old=old, seed=config.run.seed)


def _fingerprints(config: RunConfig, inputs: Inputs) -> dict[str, str]:
    """Return a hash of each corpus that the run's records depend on."""
    data = config.data
    corpora = {
        "train": inputs.train_corpus(data.train, data.train_limit),
        "validation": inputs.validation_corpus(data),
    }
    if config.evaluation.old_task is not None:
        corpora["old_task"] = inputs.old_task_corpus(config.evaluation)
    if config.parameters.retention.method in NEEDS_OLD_DATA:
        corpora["old_training"] = inputs.old_training_corpus(config)
    return {name: corpus.fingerprint for name, corpus in corpora.items()}


def _claim(config: RunConfig, folder: Path, fingerprints: dict[str, str]) -> None:
    """Write down whose folder this is, so that no other configuration goes on from its state."""
    claim = folder / "config.json"
    # Left out is what does not change what the epochs measure at their ends, but for the noise of
    # float32: where to stop, how often to look before, on how many threads, in which batches.
    content = config.model_dump(
        mode="json",
        by_alias=True,
        exclude={
            "run": {"stop_after_epochs", "evaluations_per_epoch"},
            "runtime": {"cpu_threads", "eval_batch_size"},
        },
    )
    if content["evaluation"]["tokens"] == "words":
        del content["evaluation"]["tokens"]  # as it was when there was no choice
    content["fingerprints"] = fingerprints
    if claim.is_file() and read_json(claim) != content:
        raise StudyFileError(
            f"{folder}: holds the run of another configuration; remove it or choose another folder"
        )
    write_json(claim, content)
