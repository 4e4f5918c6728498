"""Replay: questions of the old task among those of the new one.

A. Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 1995, showed
that a network that goes on seeing a few old items forgets far less. D. Rolnick et al., "Experience
Replay for Continual Learning", NeurIPS 2019, get as far as methods that know where tasks begin and
end by mixing old experience into every batch.
"""

from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.retention.base import OldData, RetentionMethod
from qa_hpo.finetune.retention.memory import remembered

__all__ = ["Replay"]


class Replay(RetentionMethod):
    """Every epoch holds the new task's windows and those of a memory, all shuffled together.

    The memory is a share of the old task's questions, drawn once, before the run begins. Were it
    drawn anew for each epoch, epochs would differ in their number of windows, as questions do: the
    steps of the whole run, on which the learning rate's schedule rests, would be known only at its
    end, and a resumed run could not tell from its step in which epoch, and where in it, to go on.

    Args:
        strength: Share of the old task's questions that is remembered, above 0 to 1.
        old: The old task's questions.
        seed: Seed of the draw.

    Attributes:
        old: The old task's questions.
        memory: The windows of the remembered ones; question numbers are those of ``old.windows``.
    """

    needs_old_data = True

    def __init__(self, strength: float, old: OldData, seed: int) -> None:
        self.old = old
        self.memory = remembered(old, strength, seed)

    def batches(self, collator: WindowCollator) -> WindowCollator:
        """Return the new task's windows and, after them, the memory's."""
        return WindowCollator(
            collator.windows.concatenated(self.memory),
            collator.pad_id,
            left=collator.left,
            multiple=collator.multiple,
        )
