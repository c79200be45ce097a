"""What suits this machine: the dtype of a backbone, and how many tokens a forward pass should have.

The processor is asked what it can do; how fast it does it is measured. Without a choice of the caller's a backbone runs
in bfloat16 where the machine multiplies that fast, else in float32.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from paragone_models.text.reader import EncodeItem

__all__ = [
    "CANDIDATES",
    "DEFAULTS",
    "ELSEWHERE",
    "Budget",
    "DtypeChoice",
    "automatic_dtype",
    "best_budget",
    "bfloat16_refusal",
    "bfloat16_speedup",
    "is_out_of_memory",
]

CANDIDATES = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384, 32768, 65536)}
"""Budgets worth trying, by kind of device, in rising order. [tokens]"""

DEFAULTS = {"cpu": 4096, "cuda": 16384}
"""The budget where nothing is tried, by kind of device. [tokens]"""

ELSEWHERE = 16384
"""The budget of one call to a server that makes batches of its own. [tokens]"""

# Length of a prompt and of a response in a trial, and responses to a prompt; a trial should look like real work.
_LENGTH, _GROUP = 128, 8
_NEAR = 0.95

# The measured product has the shape of a small model's layers.
_ROWS, _SIZE = 256, 512
_TRIES = 24
# bfloat16 costs accuracy; it has to be this many times as fast.
_WORTH = 1.3
_DTYPES = (torch.float32, torch.bfloat16)
# Values of oneDNN's variable that keep it below avx512_bf16.
_WITHOUT_BFLOAT16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})
# Parameters below which a pass is not made of matrix products, so that a faster product gains nothing.
_SMALL = 10_000_000


# torch has no exception of its own for these: its words are all that tells them apart.
_CPU_MEMORY_MESSAGES = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch says that a pass did not fit into memory, so that a smaller one may."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _CPU_MEMORY_MESSAGES)


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype of a backbone.

    Attributes:
        reason: why this one, for people.
    """

    dtype: torch.dtype
    reason: str


def automatic_dtype(device: torch.device, *, parameters: int, demonstration: bool) -> DtypeChoice:
    """Return the dtype of a backbone for which nobody chose one.

    Args:
        demonstration: built-in demonstrations stay in float32, so that their answers are the same everywhere.
    """
    if demonstration:
        return DtypeChoice(torch.float32, "a demonstration's answers are the same everywhere")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return DtypeChoice(torch.bfloat16, "this GPU multiplies it")
        return DtypeChoice(torch.float32, "this GPU multiplies no bfloat16")
    if device.type != "cpu":
        return DtypeChoice(torch.float32, f"bfloat16 was never tried on {device.type}")
    if parameters < _SMALL:
        return DtypeChoice(torch.float32, f"bfloat16 gains nothing below {_SMALL // 10**6} M parameters")
    refusal = bfloat16_refusal()
    if refusal is not None:
        return DtypeChoice(torch.float32, refusal)
    times = bfloat16_speedup()
    if times >= _WORTH:
        return DtypeChoice(torch.bfloat16, f"this CPU multiplies it {times:.1f} times as fast as float32")
    return DtypeChoice(
        torch.float32,
        f"this CPU multiplies bfloat16 {times:.1f} times as fast, and {_WORTH} is what its error is worth",
    )


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


@dataclass(frozen=True)
class Budget:
    """Most tokens of one forward pass.

    Attributes:
        reason: why so many, for people.
    """

    tokens: int
    reason: str


def best_budget(
    run: Callable[[int, Sequence[EncodeItem]], int],
    candidates: Sequence[int],
    *,
    vocabulary: int,
    max_length: int,
    limit_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Budget:
    """Return the smallest budget that is nearly as fast as the fastest one.

    A small batch is done sooner, and gives way to more urgent ones sooner.

    Args:
        run: runs sequences under a budget, keeps nothing of them, and returns how many tokens it computed.
        candidates: budgets in rising order, at least one.
        vocabulary: token ids to choose from.
        max_length: longest sequence that the backbone reads.
        limit_s: no larger budget is tried once this much time has passed.
    """
    started = clock()
    speeds: dict[int, float] = {}
    end = ""
    for budget in candidates:
        items = _groups(budget, vocabulary, max(1, min(_LENGTH, max_length // 2)))
        try:
            run(budget, items[:1])  # the first pass of a shape also prepares kernels
            before = clock()
            executed = run(budget, items)
        except torch.OutOfMemoryError:
            end = f"; {budget} tokens do not fit into memory"
            break
        now = clock()
        speeds[budget] = executed / max(now - before, 1e-9)
        if now - started > limit_s and budget != candidates[-1]:
            end = f"; nothing larger was tried after {now - started:.0f} s"
            break
    # Nothing but the smallest may fit; then the smallest it is.
    fastest = max(speeds.values(), default=0.0)
    best = next((budget for budget, speed in speeds.items() if speed >= _NEAR * fastest), candidates[0])
    tried = ", ".join(f"{budget}: {speed:.0f}" for budget, speed in speeds.items())
    return Budget(
        best, f"the smallest within 5 % of the fastest in a warm-up (tokens/s by budget: {tried or 'none'}{end})"
    )


def _groups(tokens: int, vocabulary: int, length: int) -> list[EncodeItem]:
    """Return groups of siblings that fill a pass of so many tokens, or nearly; prompts and responses of one length."""
    # Seeded, so that a budget is always tried on the same texts.
    generator = torch.Generator().manual_seed(tokens)
    draw = torch.randint(vocabulary, (tokens + 2 * length,), generator=generator).tolist()
    items: list[EncodeItem] = []
    used = 0
    while used + 2 * length <= tokens or not items:
        prompt, used = draw[used : used + length], used + length
        for _ in range(_GROUP):
            if used + length > tokens and items:
                break
            ids, used = prompt + draw[used : used + length], used + length
            items.append(EncodeItem(ids, ((len(ids) - 1, len(ids)),), length))
    return items
