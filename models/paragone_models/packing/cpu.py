"""Packed passes on a CPU: attention block by block, and the Llama family written out.

**Attention.** Nodes come in preorder, and a node's first position is the length of the path above it. So one buffer,
indexed by position, holds the keys of the path to the node at hand: what stands above was written before, and a sibling
overwrites nothing but its predecessor. A block of rows then sees one range of keys, and a mask is needed on its
diagonal alone, and where a sliding window ends. Rows and keys of a block are rounded up: oneDNN makes a kernel for
every shape that it meets, and packed passes would hardly ever meet one again; its kernels and the softmax like whole
tiles, too. Nobody reads the extra rows, and the extra keys lie behind the diagonal. Two plain products with a softmax
between them ran this shape 1.2 (float32) to 2.9 (bfloat16) times as fast as torch's flash kernel, merged by
log-sum-exp; docs/log.md has the figures.

**Llama, Mistral, Qwen2, Qwen3** give the same numbers as the models' own code, with less around the matrix products:
residuals are added inside the product, large intermediate results live in memory that is kept, what stands between
products takes few operations (torch's, or kernels of our own), and the last layer computes queries and MLP only for the
rows that are read. Weights are the model's own tensors, not copies.

Shapes: T rows, W output rows, H hidden size, I width of the MLP, Hq and Hk heads, D head size, n rows of a block, S
keys that it sees.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from paragone_models.packing.attention import Rule, Run

__all__ = ["Buffers", "DecoderForward", "Norm", "Operations", "TorchOperations", "attend_blocks"]

_FAMILY = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
# Rows that go through an MLP at once, at most. With 512 to 1,024 of them oneDNN left a core idle.
_MLP_ROWS = 2048
# Rows of a pass are rounded up to the first, or above the third to the second: oneDNN took 4 to 8 ms to prepare a
# product of a new shape.
_FINE, _COARSE, _LONG = 32, 128, 1024
# The last layer runs for the output rows alone where fewer than one row in so many is one.
_SPARSE = 8

# About how many logits a block has: they stay in the cache from the first product to the second.
_LOGITS = 1 << 20
# What rows and keys of a block are rounded up to.
_GRAIN = 32
# Rows of a block: fewer waste the products, more waste what lies above the diagonal.
_FEWEST, _MOST = 64, 192

Norm = tuple[Tensor, float]
"""A norm's weight, and what is added to the mean square."""

_Linear = tuple[Tensor, Tensor | None]


class Buffers:
    """Tensors by name, whose memory is used again and again: a fresh megabyte costs more to map than to fill."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with anything in it, valid until its name is asked for again.

        Args:
            like: has its dtype and device, unless another dtype is given.
        """
        dtype = dtype or like.dtype
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype != dtype:
            memory = self._memory[name] = like.new_empty(size, dtype=dtype)
        return memory[:size].view(shape)


@dataclass(frozen=True, slots=True)
class _NodeRows:
    """A node of the pass.

    Attributes:
        first: its first row.
        last: one behind its last row.
        start: position of its first row.
        earlier: nodes of earlier passes whose keys must be written before this one's.
    """

    first: int
    last: int
    start: int
    earlier: tuple[int, ...]

    @property
    def end(self) -> int:
        """One behind the position of its last row."""
        return self.start + self.last - self.first


class _Path:
    """One layer of a pass: the keys and values of the path to the node at hand, by position.

    Args:
        longest: positions of the longest path.
        key: of the pass. [Hk, T, D]
        value: of the pass. [Hk, T, D]
        causal: -inf where a column is greater than its row, else 0.
    """

    def __init__(self, buffers: Buffers, longest: int, key: Tensor, value: Tensor, rule: Rule, causal: Tensor) -> None:
        self._buffers = buffers
        self._rule = rule
        self._causal = causal
        self._keys, self._values = (
            buffers.take(name, (len(part), _rounded(longest), part.shape[2]), part)
            for name, part in (("path keys", key), ("path values", value))
        )

    def put(self, start: int, key: Tensor, value: Tensor) -> None:
        """Write keys and values, [Hk, n, D] each, from a position on."""
        end = start + key.shape[1]
        # Keys are scaled once here; scaling logits would touch more numbers, for every block again.
        torch.mul(key, self._rule.scale, out=self._keys[:, start:end])
        self._values[:, start:end] = value
        # What an earlier path or pass left there might not be finite, and zero times that is not zero.
        self._keys[:, end : _rounded(end)] = 0
        self._values[:, end : _rounded(end)] = 0

    def read(self, query: Tensor, position: int, out: Tensor) -> None:
        """Let neighbouring rows read.

        Args:
            query: [Hq, n, D]
            position: of the first row.
            out: receives what they read. [n, Hq, D]
        """
        heads, rows, size = query.shape
        window, cap = self._rule.window, self._rule.cap
        earliest = 0 if window is None else max(0, position - window + 1) // _GRAIN * _GRAIN
        visible = slice(earliest, _rounded(position + rows))
        keys, values = self._keys[:, visible], self._values[:, visible]
        padded = rows if rows == 1 else _rounded(rows)
        # Grouped heads: the queries that share a key head lie one below the other, so one product serves them all.
        grouped = (len(keys), heads // len(keys) * padded)
        queries = self._buffers.take("block queries", (heads, padded, size), query)
        queries[:, :rows] = query
        logits = self._logits(queries.view(*grouped, size), keys, cap)
        by_row = logits.view(heads, padded, -1)
        diagonal = position - earliest
        by_row[:, :, diagonal:] += self._causal[:padded, : by_row.shape[2] - diagonal]
        if window is not None and (outside := diagonal + rows - window) > 0:
            by_row[:, :, :outside] += torch.full_like(by_row[0, :, :outside], -torch.inf).tril_(diagonal - window)
        weights = torch.softmax(logits, -1, out=self._buffers.take("weights", tuple(logits.shape), logits))
        read = self._buffers.take("read", (*grouped, values.shape[2]), query)
        torch.bmm(weights.to(values.dtype), values, out=read)
        # The extra rows hold anything, even NaN; they end here.
        out.copy_(read.view(heads, padded, -1)[:, :rows].transpose(0, 1))

    def _logits(self, queries: Tensor, keys: Tensor, cap: float | None) -> Tensor:
        """Return products of queries and keys, [Hk, n · Hq / Hk, S]; in float32 where they go through a tanh."""
        if cap is not None:
            return torch.bmm(queries.float(), keys.float().transpose(1, 2)).div_(cap).tanh_().mul_(cap)
        out = self._buffers.take("logits", (*queries.shape[:2], keys.shape[1]), queries)
        return torch.bmm(queries, keys.transpose(1, 2), out=out)


def attend_blocks(
    run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, outputs_only: bool = False
) -> Tensor:
    """Return what every row reads, see ``Attend``; or what the output rows alone read, as [W, Hq, D].

    Args:
        query: of every row [Hq, T, D], or of the output rows [Hq, W, D].
        key: of every row. [Hk, T, D]
        value: of every row. [Hk, T, D]
    """
    # Layers share rows and masks; only keys differ.
    if "nodes" not in run.memo:
        run.memo["nodes"] = list(_node_rows(run))
        run.memo["causal"] = key.new_full((_rounded(_MOST), _rounded(_MOST) + _GRAIN), -torch.inf).triu_(1)
    nodes: list[_NodeRows] = run.memo["nodes"]
    # A pass through a model's own code has no operations that lend buffers.
    buffers: Buffers = run.memo.setdefault("buffers", Buffers())
    # The buffers are as long as the longest path; a shorter one uses their beginning.
    path = _Path(buffers, max(node.end for node in nodes), key, value, rule, run.memo["causal"])
    out = query.new_empty(query.shape[1], len(query), value.shape[2])
    done = 0
    for node in nodes:
        for index in node.earlier:
            states = run.earlier[index]
            path.put(states.start, states.keys[layer], states.values[layer])
        path.put(node.start, key[:, node.first : node.last], value[:, node.first : node.last])
        for first, last in _output_rows(run, node) if outputs_only else _blocks(node, len(query)):
            rows = slice(done, done + last - first)
            path.read(query[:, rows], node.start + first - node.first, out[rows])
            done = rows.stop
    out[done:] = 0  # rows that round the pass up belong to no node
    return out


def _node_rows(run: Run) -> Iterator[_NodeRows]:
    layout = run.layout
    # Earlier keys are written just before the first row that attends to them. Preorder makes sure that no other path's
    # rows stand between the two.
    earlier: dict[int, tuple[int, ...]] = {}
    for above in layout.above:
        if above.node not in layout.rows:
            earlier[above.first] = (*earlier.get(above.first, ()), above.node)
    for first, last in layout.rows.values():
        yield _NodeRows(first, last, int(layout.positions[first]), earlier.get(first, ()))


def _blocks(node: _NodeRows, heads: int) -> Iterator[tuple[int, int]]:
    """Yield all rows of a node in blocks, the last one smaller."""
    # A long path gets fewer rows, so that a block's logits stay in the cache.
    most = max(_FEWEST, min(_MOST, _LOGITS // (heads * node.end) // _GRAIN * _GRAIN))
    for first in range(node.first, node.last, most):
        yield first, min(first + most, node.last)


def _output_rows(run: Run, node: _NodeRows) -> Iterator[tuple[int, int]]:
    """Yield the output rows of a node, one by one."""
    first, last = run.output_rows.searchsorted((node.first, node.last))
    # They are far apart, and single rows need no rounding.
    for row in run.output_rows[first:last].tolist():
        yield row, row + 1


def _rounded(length: int) -> int:
    return -(-length // _GRAIN) * _GRAIN


class Operations(Protocol):
    """What a decoder computes between its matrix products. Results lie in ``buffers``, under the name that is given."""

    buffers: Buffers

    def normed(self, name: str, rows: Tensor, norm: Norm) -> Tensor:
        """Return rows divided by their root mean square, times a weight."""
        ...

    def rotated(self, name: str, heads: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Return heads [T, heads, D], normed if there is a norm, turned by angles [T, D / 2], as [heads, T, D]."""
        ...

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) times up, [T, I] each, in the memory of the gate."""
        ...

    def attend(
        self, run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, outputs_only: bool = False
    ) -> Tensor:
        """Return what every row reads, or the output rows alone: see ``attend_blocks``."""
        ...


class TorchOperations:
    """``Operations`` by torch's own."""

    def __init__(self) -> None:
        self.buffers = Buffers()

    def normed(self, name: str, rows: Tensor, norm: Norm) -> Tensor:
        """Return rows divided by their root mean square, times a weight."""
        # torch has no fused RMS norm on a CPU: its own goes seven times over copies in float32. Batch norm, when it
        # does not train, scales a channel by the inverse root of its variance in one go. So rows are its channels, of
        # mean 0.
        weight, epsilon = norm
        flat = rows.reshape(-1, rows.shape[-1])
        exact = torch.promote_types(rows.dtype, torch.float32)
        precise = self.buffers.take("precise", tuple(flat.shape), rows, dtype=exact).copy_(flat)
        variance = torch.linalg.vector_norm(precise, dim=-1).square_().div_(flat.shape[-1])
        out = self.buffers.take(name, (1, *flat.shape), rows)
        unused = variance.new_empty(0)
        torch.native_batch_norm(
            flat[None], None, None, torch.zeros_like(variance), variance, False, 0.0, epsilon, out=(out, unused, unused)
        )
        return out[0].mul_(weight).view(rows.shape)

    def rotated(self, name: str, heads: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Return heads, normed if there is a norm, at their positions."""
        if norm is not None:
            heads = self.normed("heads normed", heads, norm)
        half = heads.shape[-1] // 2
        first, second = heads[..., :half], heads[..., half:]
        cos, sin = cos[:, None], sin[:, None]
        rotated = self.buffers.take(name, tuple(heads.shape), heads)
        torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin)
        return rotated.transpose(0, 1)

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) times up, in the memory of the gate."""
        torch.ops.aten.silu_(gate)
        return gate.mul_(up)

    def attend(
        self, run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, outputs_only: bool = False
    ) -> Tensor:
        """Return what every row reads, or the output rows alone: see ``attend_blocks``."""
        run.memo["buffers"] = self.buffers
        return attend_blocks(run, layer, query, key, value, rule, outputs_only=outputs_only)


class _Layer:
    """The tensors of one layer."""

    def __init__(self, layer: Any, window: int | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.rule = Rule(float(attention.scaling), window, None)
        self.head_dim = int(attention.head_dim)
        self.before_attention = _norm(layer.input_layernorm)
        self.before_mlp = _norm(layer.post_attention_layernorm)
        # Qwen3 has a norm on each head of queries and keys, the others have none.
        self.query_norm = _norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.key_norm = _norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.query, self.key, self.value = (
            _linear(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        self.output = _linear(attention.o_proj)
        self.gate, self.up, self.down = (_linear(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


_OWN = ("torch.nn.", "transformers.models.", "transformers.activations")


class DecoderForward:
    """Run a decoder of the Llama family on packed rows.

    Args:
        backbone: one that ``serves`` is true for.
        operations: what runs between the products; torch's operations unless given.
    """

    def __init__(self, backbone: Any, operations: Operations | None = None) -> None:
        self._embed = backbone.embed_tokens
        self._rotary = backbone.rotary_emb
        self._norm = _norm(backbone.norm)
        self._layers = [_Layer(layer, _window(backbone.config, index)) for index, layer in enumerate(backbone.layers)]
        self._operations = operations or TorchOperations()
        self._buffers = self._operations.buffers

    @staticmethod
    def serves(backbone: Any) -> bool:
        """Return whether a transformers model is one of the family, unchanged, on a CPU."""
        if type(backbone).__name__ not in _FAMILY or next(backbone.parameters()).device.type != "cpu":
            return False
        modules = list(backbone.modules())
        # Adapters, quantised layers and hooks compute more than the weights that are taken from here; an adapter's
        # layer holds the plain one inside.
        linear = all(type(module) is nn.Linear for module in modules if isinstance(module, nn.Linear))
        own = all(type(module).__module__.startswith(_OWN) for module in modules)
        own = own and not any("forward" in vars(module) for module in modules)  # compressed-tensors puts its own there
        plain = not any(module._forward_hooks or module._forward_pre_hooks for module in modules)  # noqa: SLF001
        return (
            type(backbone).__module__.startswith("transformers.models.")
            and linear
            and own
            and plain
            and backbone.config.hidden_act == "silu"
            and backbone.layers[0].self_attn.head_dim % 2 == 0
        )

    def __call__(self, run: Run, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the last hidden states of the output rows, as [W, H].

        Args:
            tokens: token ids. [T]
            positions: positions. [T]
        """
        # The rows that round a pass up are token 0 at position 0; nobody reads them.
        extra = -len(tokens) % (_FINE if len(tokens) <= _LONG else _COARSE)
        tokens, positions = (functional.pad(part, (0, extra)) for part in (tokens, positions))
        hidden: Tensor = self._embed(tokens)
        cos, sin = self._rotary(hidden[None], positions[None])
        # Both halves of a model's table are alike; the operations want one.
        cos, sin = (table[0, :, : table.shape[-1] // 2] for table in (cos, sin))
        for index, layer in enumerate(self._layers[:-1]):
            queries = self._queries_keys_values(layer, hidden, cos, sin)
            run.note(index, *queries[1:])
            read = self._operations.attend(run, index, *queries, layer.rule)
            _add(hidden, read.flatten(1), layer.output)
            self._mlp(layer, hidden)
        # A copy: the buffer belongs to the next pass.
        return self._operations.normed("states", self._last(run, hidden, cos, sin), self._norm).clone()

    def _last(self, run: Run, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Run the last layer: keys and values of all rows, the rest for the output rows."""
        index, layer = len(self._layers) - 1, self._layers[-1]
        rows = torch.from_numpy(run.output_rows)
        if len(rows) * _SPARSE > len(hidden):  # means over whole responses, say
            query, key, value = self._queries_keys_values(layer, hidden, cos, sin)
            run.note(index, key, value)
            read = self._operations.attend(run, index, query, key, value, layer.rule)[rows]
        else:
            # Keys and values of all rows are needed here too: siblings of a later call attend to them.
            normed = self._operations.normed("states", hidden, layer.before_attention)
            key = self._rotated("keys", normed, layer.key, layer, layer.key_norm, cos, sin)
            value = self._projected("value", normed, layer.value).unflatten(1, (-1, layer.head_dim)).transpose(0, 1)
            run.note(index, key, value)
            query = self._rotated("queries", normed[rows], layer.query, layer, layer.query_norm, cos[rows], sin[rows])
            read = self._operations.attend(run, index, query, key, value, layer.rule, outputs_only=True)
        hidden = hidden[rows]
        _add(hidden, read.flatten(1), layer.output)
        self._mlp(layer, hidden)
        return hidden

    def _queries_keys_values(
        self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = self._operations.normed("states", hidden, layer.before_attention)
        value = self._projected("value", normed, layer.value).unflatten(1, (-1, layer.head_dim)).transpose(0, 1)
        return (
            self._rotated("queries", normed, layer.query, layer, layer.query_norm, cos, sin),
            self._rotated("keys", normed, layer.key, layer, layer.key_norm, cos, sin),
            value,
        )

    def _rotated(
        self, name: str, normed: Tensor, linear: _Linear, layer: _Layer, norm: Norm | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Return queries or keys at their positions, [heads, T, D], in the buffer of that name."""
        heads = self._projected("heads", normed, linear).unflatten(1, (-1, layer.head_dim))
        return self._operations.rotated(name, heads, norm, cos, sin)

    def _mlp(self, layer: _Layer, hidden: Tensor) -> None:
        """Add the MLP's result to the hidden states, block by block."""
        # In blocks, so that the wide results in between stay small. Equal ones, because a short last block would waste
        # a core.
        for block in hidden.tensor_split(max(1, -(-len(hidden) // _MLP_ROWS))):
            normed = self._operations.normed("states", block, layer.before_mlp)
            gate = self._projected("gate", normed, layer.gate)
            up = self._projected("up", normed, layer.up)
            _add(block, self._operations.activated(gate, up), layer.down)

    def _projected(self, name: str, rows: Tensor, linear: _Linear) -> Tensor:
        """Return rows times a weight, in the buffer of that name, valid until it is asked for again."""
        weight, bias = linear
        out = self._buffers.take(name, (len(rows), len(weight)), rows)
        # Into a buffer: a fresh megabyte for each product costs more than the product saves.
        if bias is None:
            return torch.mm(rows, weight.t(), out=out)
        return torch.addmm(bias, rows, weight.t(), out=out)


def _add(target: Tensor, rows: Tensor, linear: _Linear) -> None:
    """Add rows times a weight to the target, in place: the product adds the residual on its way."""
    weight, bias = linear
    target.addmm_(rows, weight.t())
    if bias is not None:
        target += bias


def _linear(module: Any) -> _Linear:
    return module.weight, module.bias


def _norm(module: Any) -> Norm:
    return module.weight, float(module.variance_epsilon)


def _window(config: Any, layer: int) -> int | None:
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window
