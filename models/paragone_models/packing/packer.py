"""The packed engine: items in, hidden states at their reads out, with nothing computed twice and nothing padded."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.packing.packed_attention import Run, Stored
from paragone_models.packing.passes import Gather, Schedule, isolated, shared
from paragone_models.packing.prompts import Known, PromptStore
from paragone_models.text.encoding import EncodeItem

__all__ = ["Forward", "Packer"]

Forward = Callable[[Run, Tensor, Tensor], Tensor]
"""One pass: (run, token ids [T], positions [T]) to the last hidden states of the rows that are wanted [W, H]."""


_NONE = np.empty(0, dtype=np.int64)


class Packer:
    """Run a backbone on packed rows.

    Args:
        forward: runs the backbone.
        device: where it lies.
        hidden_size: H.
        store: keys and values of prompts.
        max_tokens: most rows of a pass.
        deterministic: make what comes out a function of each item alone, bit for bit.

    Attributes:
        executed_tokens: how many tokens were computed since the start.
    """

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        hidden_size: int,
        *,
        store: PromptStore,
        max_tokens: int,
        deterministic: bool = False,
    ) -> None:
        self.store = store
        self.max_tokens = max_tokens
        self.deterministic = deterministic
        self.executed_tokens = 0
        self._forward = forward
        self._device = device
        self._hidden_size = hidden_size
        self._lock = threading.Lock()

    def trial(self, max_tokens: int, items: Sequence[EncodeItem]) -> int:
        """Run sequences under another budget, keep nothing of them, and return how many tokens were computed.

        Args:
            max_tokens: most rows of a pass.
            items: all with the same number of reads.
        """
        packer = Packer(self._forward, self._device, self._hidden_size, store=PromptStore(0), max_tokens=max_tokens)
        packer.encode(items)
        return packer.executed_tokens

    def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden states at each item's reads, float32, as [n, R, H].

        Args:
            items: at least one, all with the same number of reads.
        """
        with self._lock, torch.inference_mode():
            plan = isolated if self.deterministic else shared
            schedule = plan(items, self.store, self.max_tokens)
            states = torch.zeros(len(items), len(items[0].reads), self._hidden_size, device=self._device)
            held: dict[int, Stored] = {node: known.stored for node, known in schedule.known.items()}
            for number in range(len(schedule.layouts)):
                gathers = schedule.gathers[number]
                wanted = np.unique(np.concatenate([_NONE, *(np.arange(one.first, one.last) for one in gathers)]))
                hidden = self._run(schedule, number, held, wanted)
                _gather(states, hidden, gathers, np.searchsorted(wanted, [one.first for one in gathers]).tolist())
            return states

    def _run(self, schedule: Schedule, number: int, held: dict[int, Stored], wanted: NDArray[np.int64]) -> Tensor:
        layout = schedule.layouts[number]
        run = Run(layout, held, {node: schedule.keep[node] for node in layout.rows if node in schedule.keep}, wanted)
        tokens = torch.from_numpy(layout.tokens).to(self._device)
        positions = torch.from_numpy(layout.positions).to(self._device)
        hidden = self._forward(run, tokens, positions)
        self.executed_tokens += len(layout.tokens)
        for node in run.keep:
            held[node] = run.stored(node, schedule.forest.nodes[node].start)
        for prompt, path in schedule.prompts.get(number, ()):
            self.store.put(Known(prompt, _joined([held[node] for node in path], len(prompt))))
        for node in [node for node in held if schedule.last_use.get(node, -1) <= number]:
            del held[node]
        return hidden


def _joined(parts: Sequence[Stored], length: int) -> Stored:
    """Return the first ``length`` tokens of stored runs that follow each other, in memory of its own."""
    if len(parts) == 1 and len(parts[0]) == length:
        return parts[0]
    cut = [part.first(min(len(part), length - part.start)) for part in parts]
    layers: Any = range(len(parts[0].keys))
    return Stored(
        parts[0].start,
        [torch.cat([part.keys[layer] for part in cut], dim=1) for layer in layers],
        [torch.cat([part.values[layer] for part in cut], dim=1) for layer in layers],
    )


def _gather(states: Tensor, hidden: Tensor, gathers: Sequence[Gather], starts: Sequence[int]) -> None:
    """Add what a pass has of the reads, from [W, H] at ``starts`` to [n, R, H]."""
    device = hidden.device
    single = [(one.item, one.read, start) for one, start in zip(gathers, starts, strict=True) if one.share == 1]
    if single:
        items, reads, rows = torch.tensor(single, device=device).unbind(1)
        states[items, reads] = hidden[rows].float()
    for one, start in zip(gathers, starts, strict=True):
        if one.share != 1:
            rows = hidden[start : start + one.last - one.first].float()
            states[one.item, one.read] += rows.sum(0) * one.share
