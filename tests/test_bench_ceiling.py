"""The share of the hardware's matrix products, on shapes that take a moment."""

import pytest
import torch
from bench import ceiling, report

SHAPE = ceiling.Shape("a toy", hidden=64, layers=2, heads=2, batch=4, tokens=32, square=256)


def test_operations_of_a_step_by_hand():
    from torch.utils.flop_counter import FlopCounterMode

    step = ceiling._training_step(SHAPE, torch.float32)
    with FlopCounterMode(display=False) as counter:
        step()
    tokens, h = SHAPE.batch * SHAPE.tokens, SHAPE.hidden
    # Of each layer: four products h x h and two h x 4h, and two products tokens x tokens; then the
    # head. A product of (m, k) and (k, n) has 2 m k n operations; the backward pass has twice the
    # forward pass', as either factor has a gradient.
    weights = SHAPE.layers * (4 * h * h + 2 * h * 4 * h) + 2 * h
    attention = SHAPE.layers * 2 * SHAPE.batch * SHAPE.tokens**2 * h
    by_hand = 3 * 2 * (tokens * weights + attention)
    assert counter.get_total_flops() == pytest.approx(by_hand, rel=0.05)


def test_a_run(tmp_path):
    finding = ceiling.run(3, shape=SHAPE)
    assert 0 < finding.fields["min"] <= finding.fields["share"] <= finding.fields["max"] < 1.5
    assert finding.fields["device"] == "cpu" or torch.cuda.is_available()
    assert "| matrix products" in finding.body
    report.write_finding(tmp_path, "ceiling", finding)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention", "attention"),
        ("aten::bernoulli_", "dropout"),
        ("aten::mkldnn_convolution", "matrix products"),
        ("aten::random_", "dropout"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::copy_", "copies and casts"),
        ("aten::index_select", "everything else"),
    ],
)
def test_kinds_of_operations(operation, kind):
    assert ceiling._kind(operation) == kind
