"""Retention methods: what keeps an old task while a new one is learnt, one file each."""

from collections.abc import Callable
from typing import cast

from qa_hpo.finetune.models import has_trained_head
from qa_hpo.finetune.retention.base import NoRetention, OldData, RetentionMethod
from qa_hpo.finetune.retention.distill import Distill
from qa_hpo.finetune.retention.ewc import ElasticWeightConsolidation
from qa_hpo.finetune.retention.freeze import Freeze
from qa_hpo.finetune.retention.l2sp import L2SP
from qa_hpo.finetune.retention.mask import Mask
from qa_hpo.finetune.retention.replay import Replay
from qa_hpo.finetune.retention.si import PathIntegral, SynapticIntelligence
from qa_hpo.parameters import Retention

__all__ = ["NoRetention", "OldData", "PathIntegral", "RetentionMethod", "make_method"]


def make_method(
    retention: Retention, *, checkpoint: str, old: OldData | None, seed: int
) -> RetentionMethod:
    """Return the method that ``retention`` describes, for one run.

    Args:
        retention: Which method, how strong.
        checkpoint: The start.
        old: The old task's training questions; None where the method does not look at them.
        seed: Seed of what the method draws.
    """
    # A method's own numbers are there, which is checked with the configuration.
    strength, rank = cast("float", retention.strength), cast("int", retention.rank)
    known = cast("OldData", old)
    makers: dict[str, Callable[[], RetentionMethod]] = {
        "none": NoRetention,
        "l2sp": lambda: L2SP(strength, head_is_fresh=not has_trained_head(checkpoint)),
        "ewc": lambda: ElasticWeightConsolidation(strength, known),
        "si": lambda: SynapticIntelligence(strength, checkpoint),
        "replay": lambda: Replay(strength, known, seed),
        "distill": lambda: Distill(strength, known, seed),
        "freeze": lambda: Freeze(strength),
        "mask": lambda: Mask(strength, known),
        "lora": lambda: _adapters(rank, allocated=False),
        "adalora": lambda: _adapters(rank, allocated=True),
    }
    return makers[retention.method]()


def _adapters(rank: int, *, allocated: bool) -> RetentionMethod:
    # Only where they are wanted: peft takes seconds to import.
    from qa_hpo.finetune.retention.adalora import AdaLora  # noqa: PLC0415
    from qa_hpo.finetune.retention.lora import Lora  # noqa: PLC0415

    return AdaLora(rank) if allocated else Lora(rank)
