"""Keys and values of prompts, kept on the device for siblings that arrive later.

Least recently used first out, under a budget in bytes. An entry is found by hashes of the token prefixes of every 32
tokens, and believed only after its tokens were compared: it is exact, and nobody has to say what belongs together.


What one call of the packed engine does: its forest, its passes, what each keeps, and where the reads come from.

The packed engine: items in, hidden states at their reads out, with nothing computed twice and nothing padded.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.packing.attention import Run, Stored
from paragone_models.packing.tree import (
    NO_PARENT,
    Forest,
    Layout,
    Node,
    Tokens,
    chunks,
    common_length,
    grow,
    lay_out,
    split_long,
)
from paragone_models.text.reader import EncodeItem

__all__ = ["Forward", "Gather", "Known", "Packer", "PromptStore", "Schedule", "isolated", "shared"]

_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Known:
    """A prefix whose keys and values are at hand.

    Attributes:
        tokens: token ids, from position 0 on.
        stored: their keys and values.
    """

    tokens: Tokens
    stored: Stored


class PromptStore:
    """Keep keys and values of prefixes under a budget.

    Args:
        max_bytes: 0 keeps nothing.

    Attributes:
        bytes: what the entries take.
        hits: how many sequences found a prefix.
        reused_tokens: how many tokens need not be computed for that.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.reused_tokens = 0
        self._entries: OrderedDict[int, Known] = OrderedDict()
        self._blocks: dict[bytes, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, tokens: Tokens, *, limit: int, at_least: int) -> Known | None:
        """Return the longest prefix of a sequence that is known, or None.

        Args:
            tokens: the sequence.
            limit: most tokens to return.
            at_least: a shorter one is not worth it.
        """
        if not self._entries:
            return None
        wanted = tokens[:limit]
        number = self._find(wanted)
        if number is None:
            return None
        entry = self._entries[number]
        length = common_length(entry.tokens, wanted)
        if length < max(1, at_least):
            return None
        self._entries.move_to_end(number)
        self.hits += 1
        self.reused_tokens += length
        return Known(entry.tokens[:length], entry.stored.first(length))

    def exact(self, tokens: Tokens) -> Known | None:
        """Return the entry of exactly these tokens, computed as such, or None."""
        *_, last = [b"", *_blocks(tokens)]
        for number in self._blocks.get(last, ()):
            entry = self._entries[number]
            if len(entry.tokens) == len(tokens) and common_length(entry.tokens, tokens) == len(tokens):
                self._entries.move_to_end(number)
                self.hits += 1
                self.reused_tokens += len(tokens)
                return entry
        return None

    def put(self, known: Known) -> None:
        """Keep a prefix, unless a longer one that begins with it is kept already; it replaces a shorter one.

        Args:
            known: from position 0 on; its tensors are kept as they are, so they must not be views of larger ones.
        """
        size = known.stored.bytes
        if size > self.max_bytes or not len(known.tokens):
            return
        number = self._find(known.tokens)
        if number is not None:
            entry = self._entries[number]
            common = common_length(entry.tokens, known.tokens)
            if common == len(known.tokens):
                self._entries.move_to_end(number)
                return
            if common == len(entry.tokens):
                self._drop(number)
        self._entries[self._next] = known
        for block in _blocks(known.tokens):
            self._blocks.setdefault(block, []).append(self._next)
        self._next += 1
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._blocks.clear()
        self.bytes = 0

    def _find(self, tokens: Tokens) -> int | None:
        """Return the entry that shares the most whole blocks with a sequence; of several the last one kept."""
        for block in reversed(list(_blocks(tokens))):
            if numbers := self._blocks.get(block):
                return numbers[-1]
        return None

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.bytes -= entry.stored.bytes
        for block in _blocks(entry.tokens):
            numbers = self._blocks[block]
            numbers.remove(number)
            if not numbers:
                del self._blocks[block]


def _blocks(tokens: Tokens) -> Iterator[bytes]:
    """Yield a hash of the first 32 tokens, of the first 64, and so on."""
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        digest.update(tokens[first : first + _BLOCK].tobytes())
        yield digest.copy().digest()


MIN_SHARED = 16
"""Tokens from which on a shared run is worth a node of its own."""
MIN_REUSED = 32
"""Tokens from which on a stored prefix is worth attending to, or worth storing."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Rows of one pass that belong to a read.

    Attributes:
        item: index of the item.
        read: index of the read.
        first: first row.
        last: one behind the last.
        share: what each row counts.
    """

    item: int
    read: int
    first: int
    last: int
    share: float


@dataclass(slots=True)
class Schedule:
    """The passes of one call, in order.

    Attributes:
        forest: what is computed.
        layouts: one per pass.
        gathers: by pass.
        keep: first tokens of a node to keep, by node.
        known: stored prefixes that the forest continues, by node.
        prompts: prefixes to store, each with its path of nodes, by the pass after which they are complete.
        last_use: the last pass that needs what was kept of a node.
    """

    forest: Forest
    layouts: list[Layout]
    gathers: list[list[Gather]]
    known: dict[int, Known]
    keep: dict[int, int] = field(default_factory=dict)
    prompts: dict[int, list[tuple[Tokens, list[int]]]] = field(default_factory=dict)
    last_use: dict[int, int] = field(default_factory=dict)


def shared(items: Sequence[EncodeItem], store: PromptStore, max_tokens: int) -> Schedule:
    """Return passes in which everything that is shared is computed once.

    Args:
        items: sequences.
        store: what was computed before.
        max_tokens: most rows of a pass.
    """
    sequences = [np.asarray(item.token_ids, dtype=np.int64) for item in items]
    groups: dict[tuple[object, ...], tuple[Known | None, list[int]]] = {}
    for index, (item, tokens) in enumerate(zip(items, sequences, strict=True)):
        # What is read must be computed: a stored prefix has keys and values, and no hidden states.
        known = store.match(tokens, limit=_first_read(item), at_least=MIN_REUSED) if item.content_key is None else None
        key = (item.content_key, None) if known is None else (item.content_key, known.tokens.tobytes())
        groups.setdefault(key, (known, []))[1].append(index)
    forest = Forest(ends=[NO_PARENT] * len(items))
    trunks: dict[int, Known] = {}
    for known, owners in groups.values():
        start, trunk = 0, None
        if known is not None:
            start, trunk = len(known.tokens), Node(known.tokens, 0, NO_PARENT, len(owners), known=True)
            trunks[len(forest.nodes)] = known
        tree = grow([sequences[owner] for owner in owners], start=start, min_shared=MIN_SHARED)
        forest.add(trunk, tree, owners)
    forest, trunks = _split(forest, trunks, max_tokens)
    schedule = _scheduled(forest, trunks, list(chunks(forest, max_tokens)), items)
    if store.max_bytes:
        _store_prompts(schedule, items, sequences)
    return schedule


def isolated(items: Sequence[EncodeItem], store: PromptStore, max_tokens: int) -> Schedule:
    """Return passes of one node each, cut by each item alone: prompt, then response.

    Which rows a matrix product has decides its kernels and so its last bits. Here it depends on the item and on nothing
    else, and siblings still share their prompt.

    Args:
        items: sequences.
        store: what was computed before, in the same way.
        max_tokens: most rows of a pass.
    """
    forest = Forest(ends=[NO_PARENT] * len(items))
    trunks: dict[int, Known] = {}
    groups: dict[tuple[object, bytes], list[int]] = {}
    sequences = [np.asarray(item.token_ids, dtype=np.int64) for item in items]
    for index, (item, tokens) in enumerate(zip(items, sequences, strict=True)):
        groups.setdefault((item.content_key, tokens[: _cut(item)].tobytes()), []).append(index)
    for (content, _), owners in groups.items():
        tokens = sequences[owners[0]][: _cut(items[owners[0]])]
        parent = NO_PARENT
        if len(tokens):
            known = store.exact(tokens) if content is None else None
            parent = len(forest.nodes)
            forest.nodes.append(Node(tokens, 0, NO_PARENT, len(owners), known=known is not None))
            if known is not None:
                trunks[parent] = known
        for owner in owners:
            forest.ends[owner] = len(forest.nodes)
            forest.nodes.append(Node(sequences[owner][len(tokens) :], len(tokens), parent, 1))
    forest, trunks = _split(forest, trunks, max_tokens)
    alone = [(index, index + 1) for index, node in enumerate(forest.nodes) if not node.known]
    schedule = _scheduled(forest, trunks, alone, items)
    if store.max_bytes:
        _store_prompts(schedule, items, sequences, max_whole=max_tokens)
    return schedule


def _first_read(item: EncodeItem) -> int:
    return min((start for start, _ in item.reads), default=len(item.token_ids) - 1)


def _cut(item: EncodeItem) -> int:
    return max(0, min(item.prompt_length, _first_read(item)))


def _split(forest: Forest, trunks: dict[int, Known], max_tokens: int) -> tuple[Forest, dict[int, Known]]:
    """Split long nodes; what is known stays one node, and moves in the list."""
    split = split_long(forest, max_tokens)
    moved = [index for index, node in enumerate(split.nodes) if node.known]
    return split, dict(zip(moved, (trunks[index] for index in sorted(trunks)), strict=True))


def _scheduled(
    forest: Forest, trunks: dict[int, Known], runs: list[tuple[int, int]], items: Sequence[EncodeItem]
) -> Schedule:
    layouts = [lay_out(forest, first, last) for first, last in runs]
    schedule = Schedule(forest, layouts, [[] for _ in layouts], trunks)
    passes = {node: number for number, layout in enumerate(layouts) for node in layout.rows}
    for number, layout in enumerate(layouts):
        for above in layout.above:
            schedule.last_use[above.node] = number
            if above.node not in layout.rows and above.node not in trunks:
                schedule.keep[above.node] = len(forest.nodes[above.node].tokens)
    for index, item in enumerate(items):
        path = [node for node in forest.path(forest.ends[index]) if node not in trunks]
        for read, (start, stop) in enumerate(item.reads):
            for node in path:
                begin, end = forest.nodes[node].start, forest.nodes[node].stop
                first, last = max(start, begin), min(stop, end)
                if first < last:
                    number = passes[node]
                    offset = layouts[number].rows[node][0] - begin
                    share = 1 / (stop - start)
                    schedule.gathers[number].append(Gather(index, read, first + offset, last + offset, share))
    return schedule


def _store_prompts(
    schedule: Schedule, items: Sequence[EncodeItem], sequences: Sequence[Tokens], *, max_whole: int = 0
) -> None:
    """Plan which prefixes are stored: prompts, and what several sequences share anyway.

    With ``max_whole``: exactly the prompts of up to so many tokens.
    """
    forest = schedule.forest
    passes = {node: number for number, layout in enumerate(schedule.layouts) for node in layout.rows}
    seen: set[bytes] = set()
    for index, item in enumerate(items):
        path = forest.path(forest.ends[index])
        if max_whole:
            length = _cut(item)
            if length > max_whole:
                continue  # computed in pieces; attended to as one it would give other bits
        else:
            common = [forest.nodes[node].stop for node in path if forest.nodes[node].sequences > 1]
            length = max([min(item.prompt_length, len(item.token_ids)), *common])
        path = [node for node in path if forest.nodes[node].start < length]
        new = sum(len(forest.nodes[node].tokens) for node in path if node not in schedule.known)
        tokens = sequences[index][:length]
        if item.content_key is not None or new < MIN_REUSED or (key := tokens.tobytes()) in seen:
            continue
        seen.add(key)
        done = max(passes[node] for node in path if node in passes)
        schedule.prompts.setdefault(done, []).append((tokens, path))
        for node in path:
            schedule.last_use[node] = max(schedule.last_use.get(node, 0), done)
            if node in passes:
                wanted = min(forest.nodes[node].stop, length) - forest.nodes[node].start
                schedule.keep[node] = max(schedule.keep.get(node, 0), wanted)


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
