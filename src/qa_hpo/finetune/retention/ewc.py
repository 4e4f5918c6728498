"""Elastic weight consolidation: weights are pulled back as far as the old task depends on them.

J. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017.
"""

from collections.abc import Mapping

import torch

from qa_hpo.finetune.retention.anchors import QuadraticPenalty
from qa_hpo.finetune.retention.base import OldData
from qa_hpo.finetune.retention.fisher import diagonal_fisher

__all__ = ["ElasticWeightConsolidation"]


class ElasticWeightConsolidation(QuadraticPenalty):
    """Adds strength / 2 * sum of F (w - w*)^2 to the loss.

    F is the diagonal of the start's Fisher information on the old task's training questions, w*
    the start's weights.

    Args:
        strength: The paper's lambda, at least 0.
        old: The old task's training questions.
    """

    needs_old_data = True
    needs_head = True

    def __init__(self, strength: float, old: OldData) -> None:
        super().__init__(strength / 2)
        self.old = old

    def importances(self, held: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.Tensor]:
        """Return the Fisher information of every weight."""
        return diagonal_fisher(self.old)
