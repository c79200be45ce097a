"""How many tokens one forward pass should have on this machine: found by trying, in a few seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paragone_models.text.encoding import EncodeItem

__all__ = ["CANDIDATES", "DEFAULTS", "ELSEWHERE", "Budget", "best_budget"]

CANDIDATES = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384, 32768, 65536)}
"""Budgets worth trying, by kind of device, in rising order."""

DEFAULTS = {"cpu": 4096, "cuda": 16384}
"""The budget where nothing is tried, by kind of device."""

ELSEWHERE = 16384
"""The budget of one call to a server that makes batches of its own."""

_LENGTH = 128
_GROUP = 8
_NEAR = 0.95


@dataclass(frozen=True)
class Budget:
    """Most tokens of one forward pass.

    Attributes:
        tokens: how many.
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
        clock: in seconds.
    """
    started = clock()
    speeds: dict[int, float] = {}
    end = ""
    for budget in candidates:
        items = _groups(budget, vocabulary, max(1, min(_LENGTH, max_length // 2)))
        try:
            run(budget, items[:1])
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
    fastest = max(speeds.values(), default=0.0)
    best = next((budget for budget, speed in speeds.items() if speed >= _NEAR * fastest), candidates[0])
    tried = ", ".join(f"{budget}: {speed:.0f}" for budget, speed in speeds.items())
    return Budget(
        best, f"the smallest within 5 % of the fastest in a warm-up (tokens/s by budget: {tried or 'none'}{end})"
    )


def _groups(tokens: int, vocabulary: int, length: int) -> list[EncodeItem]:
    """Return groups of siblings that fill a pass of so many tokens, or nearly; prompts and responses of one length."""
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
