"""What a decoder does between its matrix products, by torch's own operations.

Shapes: T rows, W wanted rows, Hq and Hk heads, D head size, H hidden size, I width of the MLP.
"""

import torch
from torch import Tensor

from paragone_models.packing.blocks import attend_blocks
from paragone_models.packing.buffers import Rooms
from paragone_models.packing.packed_attention import Rule, Run

__all__ = ["Norm", "TorchOperations"]

Norm = tuple[Tensor, float]
"""A norm's weight, and what is added to the mean square."""


class TorchOperations:
    """A decoder's operations, by torch's.

    Args:
        rooms: for results.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def normed(self, name: str, rows: Tensor, norm: Norm) -> Tensor:
        """Return rows divided by their root mean square, times a weight, in the memory of that name.

        torch has no fused RMS norm on a CPU: its own goes seven times over copies in float32. Batch norm, when it does
        not train, scales a channel by the inverse root of its variance in one go; so rows are its channels, of mean 0.
        """
        weight, epsilon = norm
        flat = rows.reshape(-1, rows.shape[-1])
        exact = torch.promote_types(rows.dtype, torch.float32)
        precise = self._rooms.take("precise", tuple(flat.shape), rows, dtype=exact).copy_(flat)
        variance = torch.linalg.vector_norm(precise, dim=-1).square_().div_(flat.shape[-1])
        out = self._rooms.take(name, (1, *flat.shape), rows)
        unused = variance.new_empty(0)
        torch.native_batch_norm(
            flat[None], None, None, torch.zeros_like(variance), variance, False, 0.0, epsilon, out=(out, unused, unused)
        )
        return out[0].mul_(weight).view(rows.shape)

    def rotated(self, name: str, heads: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Return heads at their positions, [heads, T, D], in the memory of that name.

        Args:
            name: which memory.
            heads: as projected. [T, heads, D]
            norm: of each head, if the model has one.
            cos: of the angles. [T, D / 2]
            sin: of the angles. [T, D / 2]
        """
        if norm is not None:
            heads = self.normed("heads normed", heads, norm)
        half = heads.shape[-1] // 2
        first, second = heads[..., :half], heads[..., half:]
        cos, sin = cos[:, None], sin[:, None]
        rotated = self._rooms.take(name, tuple(heads.shape), heads)
        torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin)
        return rotated.transpose(0, 1)

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) times up, [T, I] each, in the memory of the gate."""
        torch.ops.aten.silu_(gate)
        return gate.mul_(up)

    def attend(
        self, run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, wanted: bool = False
    ) -> Tensor:
        """Return what every row reads, or the wanted rows alone: see ``attend_blocks``."""
        run.memo["rooms"] = self._rooms
        return attend_blocks(run, layer, query, key, value, rule, wanted=wanted)
