"""The packed engine: sequences in, hidden states at their reads out, with nothing computed twice and nothing padded.

One call plans its passes (which tokens, in which order, what to keep), runs them, and adds the rows of each pass to the
reads they belong to. Keys and values of prompts stay on the device for siblings that arrive with a later call.

Shapes: n sequences, R reads each, H hidden size, T rows of a pass, W rows of it that are read.
"""

import functools
import hashlib
import math
import mmap
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.packing.attention import KeysValues, Run
from paragone_models.packing.tree import (
    MIN_SHARED,
    NO_PARENT,
    Forest,
    Layout,
    Node,
    Tokens,
    common_length,
    grow,
    lay_out,
    pass_ranges,
    split_long,
)
from paragone_models.text.reader import EncodeItem

__all__ = ["Forward", "Packer", "Prefix", "PromptStore"]

Forward = Callable[[Run, Tensor, Tensor], Tensor]
"""One pass: (run, token ids [T], positions [T]) to the last hidden states of its output rows [W, H]."""

# Tokens from one hash of a prefix to the next.
_BLOCK = 32
# Tokens from which on a stored prefix is worth attending to, or worth storing.
_MIN_REUSED = 32
# Prefixes with a mapping each. A process may have 65,530 mappings, and needs some for its libraries and threads.
_MOST_MAPPED = 1 << 14
# What an entry and each hash of it take beside its memory: a prompt of 150 tokens took 3.7 kB of objects and tables.
_ENTRY_BYTES, _HASH_BYTES = 2_000, 250
# Bytes to which the tensors in a mapping are aligned, as torch aligns those that it makes.
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Prefix:
    """Token ids from position 0 on, with their keys and values."""

    tokens: Tokens
    states: KeysValues

    @property
    def bytes(self) -> int:
        """Memory that it keeps from being used again."""
        return self.tokens.nbytes + self.states.bytes


_Shapes = tuple[tuple[torch.dtype, int, int], ...]
"""Of keys and values by layer: their type, how many heads, and of which size."""


class _MappedPrefix:
    """A copy of a prefix in a mapping of its own.

    Between the megabytes of the heap that every pass takes and frees, whatever stays for long breaks what is free into
    pieces that nothing fits into: a store of 100 MB made the heap grow by 220. Even the few bytes that a tensor is do
    that, so tensors are made anew for each use.
    """

    __slots__ = ("_memory", "_shapes", "tokens")

    def __init__(self, prefix: Prefix) -> None:
        tensors = (*prefix.states.keys, *prefix.states.values)
        self._shapes = _shared(tuple((tensor.dtype, len(tensor), tensor.shape[2]) for tensor in tensors))
        before = sum(_aligned(tensor.nbytes) for tensor in tensors)
        size = _aligned(before + prefix.tokens.nbytes, mmap.PAGESIZE)
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.tokens: Tokens = np.frombuffer(self._memory, np.int64, len(prefix.tokens), before)
        self.tokens[:] = prefix.tokens
        for copy, tensor in zip(self._tensors(), tensors, strict=True):
            copy.copy_(tensor)

    @property
    def states(self) -> KeysValues:
        tensors = list(self._tensors())
        half = len(tensors) // 2
        return KeysValues(0, tensors[:half], tensors[half:])

    @property
    def bytes(self) -> int:
        return len(self._memory)

    def _tensors(self) -> Iterator[Tensor]:
        memory, start = torch.frombuffer(self._memory, dtype=torch.uint8), 0
        for dtype, heads, head_size in self._shapes:
            size = heads * len(self.tokens) * head_size * dtype.itemsize
            yield memory[start : start + size].view(dtype).view(heads, len(self.tokens), head_size)
            start += _aligned(size)


@functools.lru_cache
def _shared(shapes: _Shapes) -> _Shapes:
    """Return the first tuple that was like this one: all prefixes of a model have the same shapes."""
    return shapes


def _aligned(size: int, to: int = _ALIGNED) -> int:
    return math.ceil(size / to) * to


class PromptStore:
    """Keys and values of prefixes, under a budget of bytes. The least recently used one goes first.

    A prefix is found by hashes of every 32 tokens and used only after its tokens were compared. So it is exact, and
    nobody has to say which sequences belong together.

    Args:
        max_bytes: of tokens, keys and values; 0 keeps nothing.

    Attributes:
        bytes: what it keeps from being used for anything else: the prefixes' memory, and the tables that find them.
        hits: how many sequences found a prefix.
        reused_tokens: how many tokens need not be computed for that.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.reused_tokens = 0
        self._entries: OrderedDict[int, Prefix | _MappedPrefix] = OrderedDict()
        self._by_hash: dict[bytes, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, tokens: Tokens, *, limit: int, at_least: int) -> Prefix | None:
        """Return the longest stored prefix of a sequence, or None.

        Args:
            tokens: of the sequence.
            limit: longest prefix that may be returned.
            at_least: a shorter prefix is not worth it.
        """
        tokens = tokens[:limit]
        number = self._longest(tokens)
        if number is None:
            return None
        entry = self._entries[number]
        length = common_length(entry.tokens, tokens)
        if length < max(1, at_least):
            return None
        self._count_hit(number, length)
        return Prefix(entry.tokens[:length], entry.states.first(length))

    def exact(self, tokens: Tokens) -> Prefix | None:
        """Return the entry of exactly these tokens, computed as such, or None."""
        *_, last = [b"", *_hashes(tokens)]
        for number in self._by_hash.get(last, ()):
            entry = self._entries[number]
            if len(entry.tokens) == len(tokens) and common_length(entry.tokens, tokens) == len(tokens):
                self._count_hit(number, len(tokens))
                return Prefix(entry.tokens, entry.states)
        return None

    def put(self, prefix: Prefix) -> None:
        """Keep a prefix. It replaces a shorter one that it begins with; a longer one makes it superfluous.

        Args:
            prefix: from the first position on. On a CPU it is copied; elsewhere its tensors are kept as they are, so
                they must not be views of larger ones.
        """
        if not len(prefix.tokens) or prefix.bytes > self.max_bytes:
            return
        number = self._longest(prefix.tokens)
        if number is not None:
            entry = self._entries[number]
            common = common_length(entry.tokens, prefix.tokens)
            # Siblings bring the same prompt again and again: only its age changes.
            if common == len(prefix.tokens):
                self._entries.move_to_end(number)
                return
            if common == len(entry.tokens):
                self._drop(number)
        entry = self._own(prefix)
        self._entries[self._next] = entry
        for block in _hashes(prefix.tokens):
            self._by_hash.setdefault(block, []).append(self._next)
        self._next += 1
        self.bytes += _size(entry)
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _own(self, prefix: Prefix) -> Prefix | _MappedPrefix:
        on_cpu = prefix.states.keys[0].device.type == "cpu"
        if on_cpu and sys.platform == "linux" and len(self) < _MOST_MAPPED:
            return _MappedPrefix(prefix)
        return Prefix(prefix.tokens.copy(), prefix.states)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._by_hash.clear()
        self.bytes = 0

    def _count_hit(self, number: int, length: int) -> None:
        self._entries.move_to_end(number)
        self.hits += 1
        self.reused_tokens += length

    def _longest(self, tokens: Tokens) -> int | None:
        """Return the entry that shares the most whole blocks with a sequence; of several the latest."""
        if not self._entries:
            return None
        # Each hash covers everything before it, so the last one that is known belongs to the longest common prefix.
        for block in reversed(list(_hashes(tokens))):
            if numbers := self._by_hash.get(block):
                return numbers[-1]
        return None

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.bytes -= _size(entry)
        for block in _hashes(entry.tokens):
            numbers = self._by_hash[block]
            numbers.remove(number)
            if not numbers:
                del self._by_hash[block]


def _size(entry: Prefix | _MappedPrefix) -> int:
    return entry.bytes + _ENTRY_BYTES + len(entry.tokens) // _BLOCK * _HASH_BYTES


def _hashes(tokens: Tokens) -> Iterator[bytes]:
    """Yield a hash of the first 32 tokens, of the first 64, and so on."""
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        digest.update(tokens[first : first + _BLOCK].tobytes())
        yield digest.copy().digest()


@dataclass(frozen=True, slots=True)
class _Share:
    """Rows of one pass that belong to a read; a read is the weighted sum of its shares."""

    item: int
    read: int
    first: int
    last: int
    weight: float


@dataclass(slots=True)
class _Plan:
    """The passes of one call, in order.

    Attributes:
        prefixes: stored prefixes that the forest continues, by node.
        shares: rows that are read, by pass.
        passes: the pass that computes a node, by node.
        keep: how many first tokens' keys to keep of a node, by node.
        store: prefixes to store, each with its path of nodes, by the pass after which they are complete.
        last_use: the last pass that needs the keys of a node, by node.
    """

    forest: Forest
    layouts: list[Layout]
    prefixes: Mapping[int, Prefix]
    shares: list[list[_Share]]
    passes: dict[int, int]
    keep: dict[int, int] = field(default_factory=dict)
    store: dict[int, dict[bytes, tuple[Tokens, list[int]]]] = field(default_factory=dict)
    last_use: dict[int, int] = field(default_factory=dict)


class Packer:
    """Run a backbone on packed rows.

    Args:
        store: keys and values of prompts, kept from call to call.
        max_tokens: most rows of a pass.
        deterministic: make the states of an item a function of that item alone, bit for bit.

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
        """Run sequences under another budget, keep nothing of them, and return how many tokens were computed."""
        packer = Packer(self._forward, self._device, self._hidden_size, store=PromptStore(0), max_tokens=max_tokens)
        packer.encode(items)
        return packer.executed_tokens

    def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden states at each item's reads, float32, as [n, R, H].

        Args:
            items: at least one, all with the same number of reads.
        """
        # Buffers and the store belong to one call at a time.
        with self._lock, torch.inference_mode():
            plan = (_plan_isolated if self.deterministic else _plan_shared)(items, self.store, self.max_tokens)
            states = torch.zeros(len(items), len(items[0].reads), self._hidden_size, device=self._device)
            cached = {node: prefix.states for node, prefix in plan.prefixes.items()}
            for number, shares in enumerate(plan.shares):
                # Several reads may share a row, the end of a prompt say; it is computed once.
                rows = [np.arange(share.first, share.last) for share in shares]
                output_rows = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows]))
                hidden = self._run(plan, number, cached, output_rows)
                _add_reads(
                    states, hidden, shares, np.searchsorted(output_rows, [share.first for share in shares]).tolist()
                )
            return states

    def _run(self, plan: _Plan, number: int, cached: dict[int, KeysValues], output_rows: NDArray[np.int64]) -> Tensor:
        """Run one pass, move what it computed into ``cached`` and the store, and forget what no later pass needs."""
        layout = plan.layouts[number]
        keep = {node: plan.keep[node] for node in layout.rows if node in plan.keep}
        run = Run(layout, cached, keep, output_rows)
        tokens = torch.from_numpy(layout.tokens).to(self._device)
        positions = torch.from_numpy(layout.positions).to(self._device)
        hidden = self._forward(run, tokens, positions)
        self.executed_tokens += len(layout.tokens)
        for node in run.keep:
            cached[node] = run.kept_states(node, plan.forest.nodes[node].start)
        for tokens_of_prompt, path in plan.store.get(number, {}).values():
            joined = _joined([cached[node] for node in path], len(tokens_of_prompt))
            self.store.put(Prefix(tokens_of_prompt, joined))
        # A long call would else hold the keys of everything it computed.
        for node in [node for node in cached if plan.last_use.get(node, -1) <= number]:
            del cached[node]
        return hidden


def _joined(parts: Sequence[KeysValues], length: int) -> KeysValues:
    """Return the first ``length`` tokens of runs that follow each other, in memory of its own."""
    if len(parts) == 1 and len(parts[0]) == length:
        return parts[0]
    cut = [part.first(min(len(part), length - part.start)) for part in parts]
    layers = range(len(parts[0].keys))
    return KeysValues(
        parts[0].start,
        [torch.cat([part.keys[layer] for part in cut], dim=1) for layer in layers],
        [torch.cat([part.values[layer] for part in cut], dim=1) for layer in layers],
    )


def _add_reads(states: Tensor, hidden: Tensor, shares: Sequence[_Share], starts: Sequence[int]) -> None:
    """Add a pass's part of the reads, from [W, H] at ``starts``, to [n, R, H]."""
    device = hidden.device
    # Reads of one row, nearly all of them, move in one indexed copy; a loop would launch a kernel for each.
    single = [(share.item, share.read, start) for share, start in zip(shares, starts, strict=True) if share.weight == 1]
    if single:
        items, reads, rows = torch.tensor(single, device=device).unbind(1)
        states[items, reads] = hidden[rows].float()
    for share, start in zip(shares, starts, strict=True):
        if share.weight != 1:
            rows = hidden[start : start + share.last - share.first].float()
            states[share.item, share.read] += rows.sum(0) * share.weight


def _plan_shared(items: Sequence[EncodeItem], store: PromptStore, max_tokens: int) -> _Plan:
    """Return passes in which everything that is shared is computed once."""
    sequences = [np.asarray(item.token_ids, dtype=np.int64) for item in items]
    groups: dict[tuple[object, ...], tuple[Prefix | None, list[int]]] = {}
    for index, (item, tokens) in enumerate(zip(items, sequences, strict=True)):
        prefix = None
        if item.content_key is None:
            # What is read must be computed: a stored prefix has keys and values, and no hidden states.
            prefix = store.match(tokens, limit=_first_read(item), at_least=_MIN_REUSED)
        # Sequences that continue different prefixes share no tree: their first computed tokens stand elsewhere. Nor do
        # sequences with different content outside their tokens, whose keys differ although their tokens do not.
        key = (item.content_key, None if prefix is None else prefix.tokens.tobytes())
        groups.setdefault(key, (prefix, []))[1].append(index)
    forest = Forest(ends=[NO_PARENT] * len(items))
    trunks: dict[int, Prefix] = {}
    for prefix, owners in groups.values():
        start, trunk = 0, None
        if prefix is not None:
            start, trunk = len(prefix.tokens), Node(prefix.tokens, 0, NO_PARENT, len(owners), stored=True)
            trunks[len(forest.nodes)] = prefix
        tree = grow([sequences[owner] for owner in owners], start=start, min_shared=MIN_SHARED)
        forest.add(trunk, tree, owners)
    forest, trunks = _split(forest, trunks, max_tokens)
    plan = _planned(forest, trunks, list(pass_ranges(forest, max_tokens)), items)
    if store.max_bytes:
        for index, item in enumerate(items):
            path = forest.path(forest.ends[index])
            # The prompt, and what several sequences share beyond it anyway.
            common = [forest.nodes[node].stop for node in path if forest.nodes[node].sequences > 1]
            length = max([min(item.prompt_length, len(item.token_ids)), *common])
            _plan_storing(plan, item, sequences[index][:length], path)
    return plan


def _plan_isolated(items: Sequence[EncodeItem], store: PromptStore, max_tokens: int) -> _Plan:
    """Return passes of one node each, cut by each item alone: prompt, then response.

    The number of rows decides which kernels a matrix product uses, and so its last bits. Here it depends on the item
    and on nothing else, and siblings still share their prompt.
    """
    forest = Forest(ends=[NO_PARENT] * len(items))
    trunks: dict[int, Prefix] = {}
    groups: dict[tuple[object, bytes], list[int]] = {}
    sequences = [np.asarray(item.token_ids, dtype=np.int64) for item in items]
    for index, (item, tokens) in enumerate(zip(items, sequences, strict=True)):
        groups.setdefault((item.content_key, tokens[: _cut(item)].tobytes()), []).append(index)
    for (content, _), owners in groups.items():
        tokens = sequences[owners[0]][: _cut(items[owners[0]])]
        parent = NO_PARENT
        if len(tokens):
            prefix = store.exact(tokens) if content is None else None
            parent = len(forest.nodes)
            forest.nodes.append(Node(tokens, 0, NO_PARENT, len(owners), stored=prefix is not None))
            if prefix is not None:
                trunks[parent] = prefix
        for owner in owners:
            forest.ends[owner] = len(forest.nodes)
            forest.nodes.append(Node(sequences[owner][len(tokens) :], len(tokens), parent, 1))
    forest, trunks = _split(forest, trunks, max_tokens)
    single = [(index, index + 1) for index, node in enumerate(forest.nodes) if not node.stored]
    plan = _planned(forest, trunks, single, items)
    if store.max_bytes:
        for index, item in enumerate(items):
            # A longer prompt was computed in pieces. Attended to as one piece it would give other bits.
            if _cut(item) <= max_tokens:
                _plan_storing(plan, item, sequences[index][: _cut(item)], forest.path(forest.ends[index]))
    return plan


def _first_read(item: EncodeItem) -> int:
    return min((start for start, _ in item.reads), default=len(item.token_ids) - 1)


def _cut(item: EncodeItem) -> int:
    """Return where an isolated item's prompt ends: before the first read, which has to be computed every time."""
    return max(0, min(item.prompt_length, _first_read(item)))


def _split(forest: Forest, trunks: dict[int, Prefix], max_tokens: int) -> tuple[Forest, dict[int, Prefix]]:
    """Split long nodes. A stored prefix stays one node, but its index changes."""
    split = split_long(forest, max_tokens)
    moved = [index for index, node in enumerate(split.nodes) if node.stored]
    return split, dict(zip(moved, (trunks[index] for index in sorted(trunks)), strict=True))


def _planned(
    forest: Forest, trunks: dict[int, Prefix], ranges: list[tuple[int, int]], items: Sequence[EncodeItem]
) -> _Plan:
    """Return the passes over some ranges of nodes, with what each keeps for later ones and which rows are read."""
    layouts = [lay_out(forest, first, last) for first, last in ranges]
    passes = {node: number for number, layout in enumerate(layouts) for node in layout.rows}
    plan = _Plan(forest, layouts, trunks, [[] for _ in layouts], passes)
    for number, layout in enumerate(layouts):
        for above in layout.above:
            plan.last_use[above.node] = number
            # Rows below it in its own pass use the keys of that pass; only later passes need a copy.
            if above.node not in layout.rows and above.node not in trunks:
                plan.keep[above.node] = len(forest.nodes[above.node].tokens)
    for index, item in enumerate(items):
        path = [node for node in forest.path(forest.ends[index]) if node not in trunks]
        for read, (start, stop) in enumerate(item.reads):
            # Trunks have no rows: nothing that is read lies in them, see ``_plan_shared``.
            for node in path:
                begin, end = forest.nodes[node].start, forest.nodes[node].stop
                first, last = max(start, begin), min(stop, end)
                if first < last:  # a span may lie across nodes, and so across passes
                    offset = layouts[passes[node]].rows[node][0] - begin
                    share = _Share(index, read, first + offset, last + offset, 1 / (stop - start))
                    plan.shares[passes[node]].append(share)
    return plan


def _plan_storing(plan: _Plan, item: EncodeItem, tokens: Tokens, path: list[int]) -> None:
    """Plan to store a prefix of an item, if enough of it is new."""
    passes, nodes = plan.passes, plan.forest.nodes
    path = [node for node in path if nodes[node].start < len(tokens)]
    new_tokens = sum(len(nodes[node].tokens) for node in path if node not in plan.prefixes)
    # Content outside the tokens, an image say, would be found again by tokens that do not tell of it.
    if item.content_key is not None or new_tokens < _MIN_REUSED:
        return
    # A prefix may end in the middle of a path, or of a node.
    complete = max(passes[node] for node in path if node in passes)
    stored = plan.store.setdefault(complete, {})
    if tokens.tobytes() in stored:
        return  # a sibling's plan has it
    stored[tokens.tobytes()] = tokens, path
    for node in path:
        plan.last_use[node] = max(plan.last_use.get(node, 0), complete)
        if node in passes:
            length = min(nodes[node].stop, len(tokens)) - nodes[node].start
            plan.keep[node] = max(plan.keep.get(node, 0), length)
