"""How much each weight of a start matters for the old task: its Fisher information.

J. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, take the
diagonal of the Fisher information as the precision of each weight after the old task.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.disk import telling_of_a_full_disk
from qa_hpo.finetune.evaluation import span_loss
from qa_hpo.finetune.hardware import best_device, use_threads
from qa_hpo.finetune.interruption import Check
from qa_hpo.finetune.locking import locked
from qa_hpo.finetune.memory import RandomState, releasing, telling_of_memory
from qa_hpo.finetune.models import checkpoint_fingerprint, load_model
from qa_hpo.finetune.retention.anchors import trained_parameters
from qa_hpo.finetune.retention.base import OldData
from qa_hpo.paths import write_bytes

__all__ = ["diagonal_fisher", "squared_gradients"]

_logger = logging.getLogger(__name__)

# Part of a kept file's name: raised when the same start and windows would give other values.
_VERSION = 1


def diagonal_fisher(old: OldData, *, sample: int = 1024, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the diagonal of a start's empirical Fisher information on the old task.

    It is computed once and kept; trials from the same start find it there. Of several processes
    that want it at once, one computes and the others wait.

    "Empirical" means that the gradients are those for the corpus's labels. Fisher information in
    the proper sense takes the expectation over labels that the model itself draws; the two agree
    only where the model fits the data, and can differ far from there (F. Kunstner, P. Hennig and
    L. Balles, "Limitations of the empirical Fisher approximation for natural gradient descent",
    NeurIPS 2019). A start has been trained on these very questions, which is the case where the
    difference is least.

    Args:
        old: The start, and the old task's questions.
        sample: How many windows are looked at; all where there are fewer.
        seed: Seed of their choice.

    Returns:
        For each parameter that is trained, by name, the mean squared gradient, (nats per unit of
        weight)^2, shaped like the parameter: float32, on the CPU.

    Raises:
        CheckpointError: The start cannot be loaded, has no trained head, or its gradients are not
            finite.
        DiskFullError: No space is left to keep it.
        OutOfMemoryError: A single window does not fit.
    """
    path = old.cache / f"{_key(old, sample, seed)}.safetensors"
    known = _read(path)
    if known is not None:
        return known
    with locked(path, old.check):
        known = _read(path)
        if known is None:
            known = _compute(old, sample, seed)
            with telling_of_a_full_disk(old.cache):
                write_bytes(path, save(known))
    return known


def squared_gradients(
    model: torch.nn.Module,
    collator: WindowCollator,
    indices: Sequence[int],
    check: Check | None = None,
) -> dict[str, torch.Tensor]:
    """Return the mean over windows of the square of each single window's gradient.

    Windows go through the model one at a time. Squaring the gradient of a batch instead would be
    as many times faster as a batch has windows, and wrong: that is the square of a mean, not the
    mean of squares. Windows whose gradients point in opposite directions cancel in it, and at a
    minimum, where the sum of all gradients is 0, it tends to 0 with the size of the batch,
    whatever the weight is worth.

    Args:
        model: Called with the inputs of a window; gives ``start_logits`` and ``end_logits``. Put
            in evaluation mode here; its own gradients are not touched.
        collator: The windows and how they are padded.
        indices: Numbers of the windows, at least one.
        check: Called before every window; what it raises ends the work.

    Returns:
        By the names of the parameters that are trained, shaped like them, on their device.
    """
    model.train(False)
    parameters = trained_parameters(model)
    weights = list(parameters.values())
    device = weights[0].device
    sums = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    for index in indices:
        if check is not None:
            check()
        batch = {name: rows.to(device) for name, rows in collator([int(index)]).items()}
        labels = {name: batch.pop(name) for name in ("start_positions", "end_positions")}
        outputs = model(**batch)
        loss = span_loss(
            outputs.start_logits, outputs.end_logits, batch["attention_mask"], **labels
        )
        # A weight that the answer does not depend on has a gradient of 0.
        gradients = torch.autograd.grad(loss.sum(), weights, materialize_grads=True)
        torch._foreach_addcmul_(sums, gradients, gradients)
    torch._foreach_div_(sums, len(indices))
    return dict(zip(parameters, sums, strict=True))


def _key(old: OldData, sample: int, seed: int) -> str:
    content = [_VERSION, checkpoint_fingerprint(old.checkpoint), old.key, sample, seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """Return what a kept file holds; None if it is not there or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None


def _compute(old: OldData, sample: int, seed: int) -> dict[str, torch.Tensor]:
    indices = np.arange(len(old.windows))
    if len(indices) > sample:
        chosen = np.random.default_rng(seed).choice(indices, sample, replace=False)
        indices = np.sort(chosen)
    _logger.info("%s: Fisher information of %d windows", old.checkpoint, len(indices))
    use_threads(old.runtime.cpu_threads)
    # Flash attention knows no float32, and a squared gradient needs its range.
    attention = old.runtime.attention
    attention = "auto" if attention == "flash_attention_2" else attention
    # A run that computes it goes on like one that finds it, whatever loading a model draws.
    random_state = RandomState(torch.device(best_device()))
    with releasing(), telling_of_memory(old.checkpoint, "its gradients on the old task"):
        model = load_model(old.checkpoint, attention=attention, fresh_head=False)
        torch.nn.Module.to(model, best_device())
        squares = squared_gradients(model, old.padded(old.windows), indices.tolist(), old.check)
        found = {name: square.cpu() for name, square in squares.items()}
        del model, squares
    random_state.restore()
    if not all(bool(square.isfinite().all()) for square in found.values()):
        raise CheckpointError(f"{old.checkpoint}: its gradients on the old task are not finite")
    return found
