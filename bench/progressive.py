"""A progressive network, as far as it goes for span answers: what it gives, and what it costs.

A. Rusu et al., "Progressive Neural Networks", 2016. The start is the first column and does not
learn any more; a narrow second column, which sees the first one's layers through lateral
connections, learns the new task, with a head of its own. It is no method of the package: a second
column cannot be merged into the start's weights, so that what is exported would be no ordinary
checkpoint, and every answer takes longer for good.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qa_hpo.finetune import run as runs
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.retention import RetentionMethod

__all__ = ["Progressive", "inference_ratio", "instead_of_none"]

SHARE = 4
"""The first column is so many times as wide as the second."""


class Column(torch.nn.Module):
    """The second column: as many layers as the first, a quarter of its width.

    Args:
        layers: of the first column.
        width: of its hidden states.
        heads: of its attention.
    """

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        own = width // SHARE
        self.enter = torch.nn.Linear(width, own)
        self.lateral = torch.nn.ModuleList(torch.nn.Linear(width, own) for _ in range(layers))
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                own, max(1, heads // SHARE), 4 * own, dropout=0.1, activation="gelu",
                batch_first=True, norm_first=True,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.head = torch.nn.Linear(own, 2)

    def forward(self, hidden: tuple[torch.Tensor, ...], mask: torch.Tensor) -> torch.Tensor:
        """Return start and end logits, (batch, tokens, 2).

        Args:
            hidden: of the first column, embeddings first, (batch, tokens, width) each.
            mask: (batch, tokens), 0 on padding.
        """
        state = self.enter(hidden[0])
        for layer, lateral, beside in zip(self.layers, self.lateral, hidden[1:], strict=True):
            state = layer(state + lateral(beside), src_key_padding_mask=mask == 0)
        return self.head(state)  # type: ignore[no-any-return]


class Progressive(RetentionMethod):
    """Freezes the start and trains a second column beside it."""

    needs_head = True

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        config: Any = model.config
        model.requires_grad_(False)
        column = Column(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
        model.column = column.to(model.device)
        first = model.base_model

        def forward(**inputs: torch.Tensor) -> QuestionAnsweringModelOutput:
            with torch.no_grad():
                hidden = first(**inputs, output_hidden_states=True).hidden_states
            logits = model.column(hidden, inputs["attention_mask"])
            start, end = logits.unbind(-1)
            return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)

        model.forward = forward


@contextlib.contextmanager
def instead_of_none() -> Iterator[None]:
    """Make every run of the block one with a second column."""
    with mock.patch.object(runs, "make_method", side_effect=lambda *_, **__: Progressive()):
        yield


def inference_ratio(checkpoint: str, inputs: dict[str, torch.Tensor], times: int = 15) -> float:
    """How many times as long a forward pass takes with a second column, the two in turn.

    Args:
        checkpoint: of the first column.
        inputs: of the model.
        times: passes of each, after one that warms up; the least counts.
    """
    plain, beside = (load_model(checkpoint).eval() for _ in range(2))
    Progressive().prepare(beside, 1)
    beside.eval()
    spans: dict[int, list[float]] = {0: [], 1: []}
    with torch.inference_mode():
        for _ in range(times + 1):
            for which, model in enumerate((plain, beside)):
                began = time.perf_counter()
                model(**inputs)
                spans[which].append(time.perf_counter() - began)
    return min(spans[1][1:]) / min(spans[0][1:])
