"""The packed engine: items in, hidden states at their reads out, with nothing computed twice and nothing padded."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paragone_models.encoding import EncodeItem
from paragone_models.packing.passes import Gather, Schedule, isolated, shared
from paragone_models.packing.prompts import Known, PromptStore
from paragone_models.packing.run import Run, Stored

__all__ = ["Forward", "Packer"]

Forward = Callable[[Run, Tensor, Tensor], Tensor]
"""One pass: (run, token ids [T], positions [T]) to last hidden states [T, H]."""


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
                hidden = self._run(schedule, number, held)
                _gather(states, hidden, schedule.gathers[number])
            return states

    def _run(self, schedule: Schedule, number: int, held: dict[int, Stored]) -> Tensor:
        layout = schedule.layouts[number]
        run = Run(layout, held, {node: schedule.keep[node] for node in layout.rows if node in schedule.keep})
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


def _gather(states: Tensor, hidden: Tensor, gathers: Sequence[Gather]) -> None:
    """Add what a pass has of the reads, from [T, H] to [n, R, H]."""
    device = hidden.device
    single = [gather for gather in gathers if gather.share == 1]
    if single:
        items = torch.tensor([gather.item for gather in single], device=device)
        reads = torch.tensor([gather.read for gather in single], device=device)
        rows = torch.tensor([gather.first for gather in single], device=device)
        states[items, reads] = hidden[rows].float()
    for gather in gathers:
        if gather.share != 1:
            states[gather.item, gather.read] += hidden[gather.first : gather.last].float().sum(0) * gather.share
