"""Linear layers on AMD's processors with AVX-512, where torch's own leave half of it unused.

torch's products of matrices come from MKL, which computes there in vectors of half the width: on
Zen 5 they take twice the time. Its convolutions come from oneDNN, which takes the full width on any
processor, and a linear layer is a convolution that sees one token at a time.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

__all__ = ["multiplies_at_half_width", "use_quick_linear"]

_CPU_INFO = Path("/proc/cpuinfo")
_NARROW = 16  # outputs; oneDNN's kernels compute so many at once


def use_quick_linear(model: torch.nn.Module) -> None:
    """Let a model compute its linear layers by oneDNN where it runs on a CPU in float32, in place.

    Its weights' names and its configuration stay as they are; what it computes differs by rounding.
    """
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.out_features >= _NARROW:
            module.__class__ = _Linear


@functools.cache
def multiplies_at_half_width() -> bool:
    """Whether torch's products of matrices leave half of this processor's vectors unused.

    ``ATEN_CPU_CAPABILITY=avx2`` in the environment, which holds torch itself to that width, is
    respected: then this is False on every processor.
    """
    mkl, onednn = torch.backends.mkl, torch.backends.mkldnn
    if not (mkl.is_available() and onednn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in _CPU_INFO.read_text()
    except OSError:
        return False


class _Linear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not _quick(input, self.weight):
            return super().forward(input)
        # (batch, tokens, in) seen as (batch, in, 1, tokens), channels last: nothing is copied.
        seen = input.transpose(1, 2).unsqueeze(2)
        output = F.conv2d(seen, self.weight[:, :, None, None], self.bias)
        return output.squeeze(2).transpose(1, 2)


def _quick(input: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        input.device.type == "cpu"
        and input.dim() == 3
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
