"""The packed forward pass of the Llama family on a CPU, written out: Llama, Mistral, Qwen2, Qwen3.

The same numbers as the models' own code, with less around the matrix products: residuals are added inside the product,
large intermediate results live in memory that is kept, what stands between products takes few operations (torch's, or
kernels of our own), and the last layer computes queries and MLP only for the rows that are read. Weights are the
model's own tensors, not copies.

Shapes: T rows, W output rows, H hidden size, I width of the MLP, Hq and Hk heads, D head size.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from paragone_models.packing.attention import Buffers, Rule, Run, attend_blocks

__all__ = ["DecoderForward", "Norm", "Operations", "TorchOperations"]

_FAMILY = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
_BLOCK = 2048
"""Rows that go through an MLP at once, at most. With 512 to 1,024 of them oneDNN left a core idle."""
_FINE, _COARSE, _LONG = 32, 128, 1024
"""Rows of a pass are rounded up to the first, or above the third to the second: oneDNN took 4 to 8 ms to prepare a
product of a new shape."""
_SPARSE = 8
"""The last layer runs for the output rows alone where fewer than one row in so many is one."""

Norm = tuple[Tensor, float]
"""A norm's weight, and what is added to the mean square."""

_Linear = tuple[Tensor, Tensor | None]


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
        self.query_norm = _norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.key_norm = _norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.query, self.key, self.value = (
            _linear(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        self.output = _linear(attention.o_proj)
        self.gate, self.up, self.down = (_linear(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


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
        # Adapters, quantised layers and hooks compute more than the weights that are taken from here.
        linear = all(type(module) is nn.Linear for module in modules if isinstance(module, nn.Linear))
        plain = not any(module._forward_hooks or module._forward_pre_hooks for module in modules)  # noqa: SLF001
        return (
            type(backbone).__module__.startswith("transformers.models.")
            and linear
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
        for block in hidden.tensor_split(max(1, -(-len(hidden) // _BLOCK))):
            normed = self._operations.normed("states", block, layer.before_mlp)
            gate = self._projected("gate", normed, layer.gate)
            up = self._projected("up", normed, layer.up)
            _add(block, self._operations.activated(gate, up), layer.down)

    def _projected(self, name: str, rows: Tensor, linear: _Linear) -> Tensor:
        """Return rows times a weight, in the buffer of that name, valid until it is asked for again."""
        weight, bias = linear
        out = self._buffers.take(name, (len(rows), len(weight)), rows)
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
