"""Which dtype a backbone is run in when nobody says: bfloat16 where this machine multiplies it fast, else float32."""

import os
import platform
import time
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["automatic_dtype", "bfloat16_refusal", "bfloat16_speedup"]

_ROWS, _SIZE = 256, 512
_TRIES = 24
_WORTH = 1.3
_DTYPES = (torch.float32, torch.bfloat16)
_WITHOUT_BFLOAT16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})
"""Values of oneDNN's variable that keep it below avx512_bf16."""
_SMALL = 10_000_000
"""Parameters below which a pass is not made of matrix products, so that a faster product gains nothing."""


def automatic_dtype(device: torch.device, *, parameters: int, demonstration: bool) -> torch.dtype:
    """Return the dtype of a backbone.

    Args:
        device: where it will run.
        parameters: how many it has.
        demonstration: built-in demonstrations stay in float32, so that their answers are the same everywhere.
    """
    if demonstration:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and parameters >= _SMALL and bfloat16_speedup() >= _WORTH:
        return torch.bfloat16
    return torch.float32


def bfloat16_refusal() -> str | None:
    """Return why this process has no instructions that multiply bfloat16 on the CPU, or None if it has.

    Asked of the processor, of torch and of oneDNN's own limit, never tried: oneDNN fails only when it builds a kernel,
    and says then what is missing in words of its own.
    """
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if os.environ.get(variable, "").upper() in _WITHOUT_BFLOAT16:
            return f"{variable} is {os.environ[variable]}, which leaves out the instructions that multiply bfloat16"
    # The same questions as torch's own compiler asks. On x86 the first one is answered yes for every AVX-512.
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return "this CPU, or oneDNN in this process, has no kernels for bfloat16"
    if platform.machine() in ("x86_64", "AMD64") and not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    ):
        return "this CPU has neither avx512_bf16 nor amx, so it multiplies no bfloat16"
    return None


@cache
def bfloat16_speedup() -> float:
    """Return how many times faster this CPU multiplies bfloat16 matrices than float32 ones, measured once a process.

    0 where it has no instructions for it: on a busy machine a measurement alone could be wrong, and the dtype changes
    everybody's scores.
    """
    if bfloat16_refusal() is not None:
        return 0.0
    factors = [(torch.ones(_ROWS, _SIZE, dtype=dtype), torch.ones(_SIZE, _SIZE, dtype=dtype)) for dtype in _DTYPES]
    turns = [tuple(_seconds(*pair) for pair in factors) for _ in range(_TRIES)]
    # The shortest of many, in turns and without the first: what else the machine does can only add.
    exact, coarse = zip(*turns[1:], strict=True)
    ratio: float = min(exact) / min(coarse)
    return ratio


@torch.inference_mode()
def _seconds(rows: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    linear(rows, weight)
    return time.perf_counter() - started
