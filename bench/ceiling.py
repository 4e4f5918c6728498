"""How much of the hardware's matrix products a training step makes use of."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForQuestionAnswering

from bench.report import Finding, machine, table
from qa_hpo.config import Runtime
from qa_hpo.finetune.dropout import use_quick_dropout
from qa_hpo.finetune.evaluation import span_loss
from qa_hpo.finetune.hardware import best_device, lower_precision
from qa_hpo.finetune.linear import multiplies_at_half_width, use_quick_linear

__all__ = ["Shape", "run"]

PACKAGES = ("qa_hpo", "torch", "transformers")
# What an operation's name says about its purpose; the first that fits counts.
KINDS = {
    "matrix products": ("mm", "convolution", "matmul", "linear", "gemm", "cutlass", "addmm", "bmm"),
    "attention": ("attention", "flash", "fmha"),
    "dropout": ("dropout", "bernoulli", "random_"),
    "layer norm": ("layer_norm", "layernorm"),
    "activation": ("gelu",),
    "optimizer": ("adam", "foreach", "norm", "clip"),
    "softmax and loss": ("softmax", "nll", "log"),
    "copies and casts": ("copy", "_to", "memcpy", "memset", "fill", "zero", "contiguous"),
}


@dataclass(frozen=True)
class Shape:
    """A model and a batch.

    Attributes:
        name: What the results call the model.
        hidden: Its width.
        layers: Its layers.
        heads: Its attention heads.
        batch: Windows of a step.
        tokens: Tokens of a window, without padding.
        square: Side of the matrices whose product is the ceiling.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    batch: int
    tokens: int
    square: int


def _shape() -> Shape:
    if torch.cuda.is_available():
        return Shape("BERT-base", 768, 12, 12, batch=64, tokens=384, square=8192)
    # The shape of MiniLM-L6, with which the other benchmarks train on a CPU.
    return Shape("MiniLM-L6", 384, 6, 12, batch=16, tokens=192, square=2048)


def run(pairs: int, *, shape: Shape | None = None) -> Finding:
    """Measure the ceiling and a training step in turn, and profile a step."""
    shape = shape or _shape()
    torch.set_num_threads(os.cpu_count() or 1)
    precision = lower_precision(Runtime()) or torch.float32
    step = _training_step(shape, precision)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    products = _product(shape.square, precision)
    ceilings, reached = [], []
    for _ in range(pairs):
        ceilings.append(2 * shape.square**3 / _fastest(products))
        reached.append(flops / _fastest(step))
    shares = [rate / ceiling for rate, ceiling in zip(reached, ceilings, strict=True)]
    shares.sort()
    fields = {
        "share": round(shares[len(shares) // 2], 3),
        "min": round(shares[0], 3),
        "max": round(shares[-1], 3),
        "pairs": pairs,
        "ceiling_tflops": round(max(ceilings) / 1e12, 3),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": str(precision).removeprefix("torch."),
    }
    return Finding(fields, _body(shape, fields, flops, _profiled(step)))


def _training_step(shape: Shape, precision: torch.dtype) -> Callable[[], None]:
    """Return a step as the trainer makes it: autocast, loss, backward, clipping, fused AdamW."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=max(512, shape.tokens),
    )
    device = best_device()
    model = BertForQuestionAnswering(config).to(device)
    model.train()
    if device == "cpu":
        use_quick_dropout(model)
        if multiplies_at_half_width():
            use_quick_linear(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(config.vocab_size, (shape.batch, shape.tokens), device=device)
    mask = torch.ones_like(ids)
    positions = torch.randint(shape.tokens, (shape.batch,), device=device)
    lower = precision is not torch.float32

    def step() -> None:
        with torch.autocast(device, dtype=precision, enabled=lower):
            outputs = model(input_ids=ids, attention_mask=mask)
            losses = span_loss(outputs.start_logits, outputs.end_logits, mask, positions, positions)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _product(square: int, precision: torch.dtype) -> Callable[[], None]:
    factor = torch.randn(1, square, square, device=best_device(), dtype=precision)

    layer = torch.nn.Linear(square, square, bias=False, device=best_device(), dtype=precision)
    if multiplies_at_half_width():
        # The hardware's rate, and not that of the slower of torch's two libraries.
        use_quick_linear(torch.nn.Sequential(layer))

    def product() -> None:
        with torch.no_grad():
            layer(factor)

    return product


def _fastest(work: Callable[[], None], runs: int = 5) -> float:
    """Return the seconds of the fastest of some runs, after one that warms up."""
    work()
    seconds = []
    for _ in range(runs):
        _wait()
        began = time.perf_counter()
        work()
        _wait()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _profiled(step: Callable[[], None]) -> dict[str, float]:
    """Return the share of a step's time by kind of operation, the largest first."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        step()
        _wait()
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        times[_kind(event.key)] += spent
    total = sum(times.values()) or 1
    return {kind: spent / total for kind, spent in times.most_common() if spent}


def _kind(name: str) -> str:
    lowered = name.lower()
    for kind, words in KINDS.items():
        if any(word in lowered for word in words):
            return kind
    return "everything else"


def _body(shape: Shape, fields: dict[str, object], flops: int, kinds: dict[str, float]) -> str:
    rows = [[kind, f"{share:.1%}"] for kind, share in kinds.items()]
    return f"""## ceiling

How much of the hardware's matrix products a training step makes use of: the operations of its
matrix products and attention, over its time, against the rate of one large product.

- Model: of {shape.name}'s shape, with random weights; batch {shape.batch}, {shape.tokens} tokens \
without padding; forward with dropout, loss, backward, clipping, fused AdamW
- Device: {fields["device"]}, {fields["precision"]}; the ceiling is a product of {shape.square} x \
{shape.square} matrices, {fields["ceiling_tflops"]} Tflop/s
{machine(PACKAGES)}
- Measured: ceiling and step in turn, {fields["pairs"]} times, each time the fastest of 5 runs;
  {flops / 1e9:,.0f} Gflop a step, as torch's counter has them (without recomputation)

A step reaches **{fields["share"]:.0%}** of the ceiling (median; {fields["min"]:.0%} to \
{fields["max"]:.0%}).

Where a step's time goes, by torch's profiler:

{table(("operations", "share"), rows)}"""
