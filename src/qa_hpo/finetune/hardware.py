"""What a run does on the hardware it meets: device, precision, attention, padding, threads."""

import shutil

import torch
from torch.utils._triton import has_triton
from transformers.utils.import_utils import is_flash_attn_2_available

from qa_hpo.config import Runtime
from qa_hpo.errors import StudyFileError
from qa_hpo.finetune.models import supports_flash_attention

__all__ = [
    "attention_for",
    "best_device",
    "check_compiler",
    "length_multiple",
    "lower_precision",
    "use_threads",
]

# Tensor cores want lengths that are multiples of 8; elsewhere padding is only waste.
_TENSOR_CORE = 8


def best_device() -> str:
    """Return the device that a model runs on where none is asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(threads: int | None) -> None:
    """Compute with ``threads`` CPU threads in this process; leave them as they are if None."""
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def lower_precision(runtime: Runtime) -> torch.dtype | None:
    """Return the 16-bit type that ``runtime`` means on this hardware, or None for float32.

    Raises:
        StudyFileError: It asks for a precision that this hardware lacks.
    """
    cuda = torch.cuda.is_available()
    wanted = runtime.precision
    if wanted == "auto":
        return torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else None
    if wanted == "fp16" and not cuda:
        raise StudyFileError("training.precision: 'fp16' needs a GPU; valid here: auto, fp32, bf16")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def attention_for(runtime: Runtime, checkpoint: str) -> str:
    """Return the attention that a checkpoint is loaded with.

    ``auto`` means flash attention, which leaves padding out, where the GPU, the precision, the
    installed packages and the model's family allow it; else transformers' own choice, which is
    scaled dot-product attention for most families.
    """
    if runtime.attention != "auto":
        return runtime.attention
    usable = lower_precision(runtime) is not None and is_flash_attn_2_available()
    return "flash_attention_2" if usable and supports_flash_attention(checkpoint) else "auto"


def length_multiple() -> int:
    """Return the length to whose multiple batches are padded."""
    return _TENSOR_CORE if torch.cuda.is_available() else 1


def check_compiler() -> None:
    """Check that torch can compile for this hardware.

    Raises:
        StudyFileError: What it needs for that is not installed.
    """
    if torch.cuda.is_available():
        if not has_triton():
            raise StudyFileError("training.compile: needs the package triton, which is missing")
    elif not (shutil.which("g++") or shutil.which("clang++")):
        raise StudyFileError(
            "training.compile: needs a C++ compiler, and neither g++ nor clang++ is installed"
        )
