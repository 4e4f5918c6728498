"""Dropout on a CPU, where drawing its random numbers takes a quarter of a training step.

torch draws a number for each element there, one after the other. Here one draw of 64 bits decides
about four elements: what is dropped, and how often, is as random as before, in steps of 2**-16 of
the probability; the drawn elements are others than torch's own for the same seed.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

__all__ = ["attention", "dropped_scale", "use_quick_dropout"]

_NAME = "sdpa_quick_dropout"
_STEPS = 2**16  # values of the 16 bits that decide about an element
_INT64 = torch.iinfo(torch.int64)


def use_quick_dropout(model: PreTrainedModel) -> None:
    """Let a model that is trained on a CPU drop out in this way, in place.

    Its weights' names, its configuration and what it computes in evaluation stay as they are.
    """
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = _Dropout
    # Families without scaled dot-product attention keep their own.
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def dropped_scale(like: torch.Tensor, probability: float) -> torch.Tensor:
    """Return a tensor like another: 0 with ``probability``, else what keeps the mean.

    Args:
        like: Whose shape, on the CPU, and type it has.
        probability: 0 … 1, rounded to a multiple of 2**-16; below 1 when rounded.
    """
    dropped = round(probability * _STEPS)
    count = like.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(_INT64.min, None)
    bits = draws.view(torch.int16)[:count].view(like.shape)  # -2**15 … 2**15 - 1
    # Compared into numbers: a mask of bool that is then converted takes three times as long.
    kept = torch.ge(bits, dropped - _STEPS // 2, out=like.new_empty(like.shape))
    return kept.mul_(_STEPS / (_STEPS - dropped))


class _Dropout(torch.nn.Dropout):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not _quick(input, self.p):
            return super().forward(input)
        return input * dropped_scale(input, self.p)


def _quick(tensor: torch.Tensor, probability: float) -> bool:
    return tensor.device.type == "cpu" and 0 < round(probability * _STEPS) < _STEPS


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled dot-product attention, as transformers' of that name, with quick dropout.

    On a CPU torch has no fused kernel for attention with dropout, so that writing it out costs
    nothing. Whatever is not plain attention over all tokens is left to transformers.

    Args:
        module: The layer.
        query: (batch, heads, tokens, size).
        key: Likewise.
        value: Likewise.
        attention_mask: Broadcastable to (batch, heads, tokens, tokens): bool, True where a token
            may look, or added to the scores; None where all may.
        dropout: Probability with which a weight is dropped.
        scaling: Of the scores; the square root of 1 / size if None.
        is_causal: Whether tokens look back only.
        more: Passed on.

    Returns:
        (batch, tokens, heads, size), and None in place of the weights.
    """
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    plain = key.shape[1] == query.shape[1] and not causal and "position_bias" not in more
    if not plain or not _quick(query, dropout):
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **more,
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            # Not minus infinity: a row that may look nowhere would not be a number. Added in place,
            # since no gradient needs the scores: two passes fewer over the largest tensor than with
            # masked_fill, and the same weights, as no score is large enough to change the sum.
            lowest = torch.finfo(scores.dtype).min
            scores += scores.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, lowest)
        else:
            scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1)
    weights = weights * dropped_scale(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
