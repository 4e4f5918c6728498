"""What one epoch measured, and what a run leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["EpochRecord", "FineTuned", "Look", "best_record"]


class Look(NamedTuple):
    """A look at the validation loss within an epoch.

    Attributes:
        position: Where, in epochs: 1.5 is in the middle of the second one.
        val_loss: Mean validation loss, in nats per window; None where a storage has no number for
            it, as it was not finite.
    """

    position: float
    val_loss: float | None


@dataclass(frozen=True)
class EpochRecord:
    """What one finished epoch measured.

    Attributes:
        epoch: Finished epochs, from 1.
        train_loss: Mean training loss of the epoch's steps, in nats per window.
        seconds: Time the epoch took, its evaluation and checkpoints included.
        eval_seconds: Time of the evaluation, and of the looks.
        val_loss: Mean validation loss, in nats per window; None without validation data.
        metrics: The validation metrics, by their official names, in percent.
        looks: The looks at the validation loss before the epoch's end, in their order.
    """

    epoch: int
    train_loss: float
    seconds: float
    eval_seconds: float
    val_loss: float | None
    metrics: Mapping[str, float]
    looks: tuple[Look, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record as one flat dictionary, as JSON has it; ``looks`` only where any are.

        A look is a list of its position and its loss.
        """
        timing = {"seconds": self.seconds, "eval_seconds": self.eval_seconds}
        losses = {"epoch": self.epoch, "train_loss": self.train_loss, "val_loss": self.val_loss}
        looks = {"looks": [list(look) for look in self.looks]} if self.looks else {}
        return {**losses, **self.metrics, **timing, **looks}

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> "EpochRecord":
        """Return the record of which ``flat`` is the :meth:`as_dict`."""
        own = {name: flat[name] for name in cls.__dataclass_fields__ if name in flat}
        metrics = {name: value for name, value in flat.items() if name not in own}
        own["looks"] = tuple(Look(*look) for look in own.get("looks", ()))
        return cls(**own, metrics=metrics)


def best_record(records: Sequence[EpochRecord]) -> EpochRecord | None:
    """Return the record with the highest ``best_f1``, the earliest of equals; None of none.

    Without validation data every epoch is better than the one before.
    """
    if not records:
        return None
    if "best_f1" not in records[-1].metrics:
        return records[-1]
    return max(records, key=lambda record: (record.metrics["best_f1"], -record.epoch))


@dataclass(frozen=True)
class FineTuned:
    """What a run leaves.

    Attributes:
        records: One for each finished epoch.
        best: The best of them; None if no epoch could be measured.
        checkpoint: Folder with the best epoch's weights and tokenizer; None if ``best`` is.
        stop_reason: Why it ended before the end of its last epoch, or None.
        device_batch: Windows that went through the model at once at the end of the training: the
            batch size, or less where a whole batch did not fit into the memory.
        peak_memory_mib: The most memory at once, in MiB; see ``memory.PeakMemory``.
    """

    records: tuple[EpochRecord, ...]
    best: EpochRecord | None
    checkpoint: Path | None
    stop_reason: str | None
    device_batch: int
    peak_memory_mib: float
