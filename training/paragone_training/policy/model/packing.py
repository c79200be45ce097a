"""A pass as one row of tokens without padding, in which what several sequences begin with is computed once.

The prefix tree and the attention are those of the engine (``paragone_models.packing``), here with gradients. A pair's
two responses share their prompt, as do several pairs of one prompt in a pass; a response that several pairs have is
computed once. Only backbones that packing was proven for; and whatever a configuration promises, states and gradients
of a few sequences are computed both ways before it is believed.

N sequences as they were given, T rows, M response tokens, H hidden size.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paragone_models.packing.attention import NAME, Attend, Run, packed
from paragone_models.packing.backend import failure_of, refusal, through_model, tolerance
from paragone_models.packing.gpu import flex_attention
from paragone_models.packing.segments import segments_attention
from paragone_models.packing.tree import MIN_SHARED, Layout, Tokens, grow, lay_out
from paragone_training.policy.sections import Batching

__all__ = [
    "Item",
    "PackedRow",
    "choose",
    "longest_of_prompts",
    "packed_attention",
    "packed_row",
    "packed_states",
    "unpacked",
]

logger = logging.getLogger(__name__)

Item = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a response."""

_TRIAL_PROMPTS, _TRIAL_RESPONSES = (24, 7), (3, 9)


class PackedRow(NamedTuple):
    """Prompts and responses in one row.

    Attributes:
        layout: tokens of the rows, and who attends to whom.
        reads: the row that predicts each response token. [M]
        targets: response tokens. [M]
        owners: the distinct sequence that each of them belongs to. [M]
        places: which distinct sequence each of the given ones is. [N]
    """

    layout: Layout
    reads: Tensor
    targets: Tensor
    owners: Tensor
    places: Tensor


def packed_row(items: Sequence[Item]) -> PackedRow:
    """Return prompts and responses as one row; equal ones are in it once.

    Args:
        items: token ids of a prompt and of a response, N times; no prompt is empty.
    """
    distinct: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    places = [distinct.setdefault((tuple(prompt), tuple(response)), len(distinct)) for prompt, response in items]
    sequences = [np.array([*prompt, *response], dtype=np.int64) for prompt, response in distinct]
    starts = [len(prompt) for prompt, _ in distinct]
    layout, rows = _laid_out(sequences)
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    reads = [own[start - 1 : -1] for own, start in zip(rows, starts, strict=True)]
    targets = [sequence[start:] for sequence, start in zip(sequences, starts, strict=True)]
    owners = np.repeat(np.arange(len(sequences)), counts)
    columns = (np.concatenate(reads), np.concatenate(targets), owners, np.array(places))
    return PackedRow(layout, *(torch.from_numpy(column) for column in columns))


def longest_of_prompts(prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[tuple[int, ...], int]:
    """Return the length of each prompt's longest sequence: by it prompts are ordered whose sequences stay together.

    Args:
        prompts: token ids of each sequence's prompt.
        lengths: of the sequences, with their prompts.
    """
    longest: dict[tuple[int, ...], int] = {}
    for prompt, length in zip(prompts, lengths, strict=True):
        longest[tuple(prompt)] = max(length, longest.get(tuple(prompt), 0))
    return longest


def _laid_out(sequences: Sequence[Tokens]) -> tuple[Layout, list[NDArray[np.int64]]]:
    """Return the row of some sequences, and the rows of each one's tokens."""
    forest = grow(sequences, start=0, min_shared=MIN_SHARED)
    layout = lay_out(forest, 0, len(forest.nodes))
    paths = [forest.path(end) for end in forest.ends]
    return layout, [np.concatenate([np.arange(*layout.rows[node]) for node in path]) for path in paths]


def packed_states(backbone: Any, row: PackedRow, attend: Attend) -> Tensor:
    """Return the last hidden states that predict the response tokens. [M, H].

    Args:
        backbone: a transformers decoder without its head.
        row: the pass.
        attend: what ``choose`` returned.

    Raises:
        RuntimeError: if there will be a backward pass and the caller is not in a block of ``attention.packed``: layers
            that are run again in it, to save memory, would attend in another way.
    """
    if torch.is_grad_enabled() and backbone.config._attn_implementation != NAME:  # noqa: SLF001 - it has no other name
        raise RuntimeError("a packed pass with gradients and its backward pass stand in one block of attention.packed")
    device = next(backbone.parameters()).device
    run = Run(row.layout, {}, {}, row.reads.cpu().numpy())
    tokens, positions = (torch.from_numpy(column).to(device) for column in (row.layout.tokens, row.layout.positions))
    return through_model(backbone, attend)(run, tokens, positions)


def packed_attention(model: nn.Module, batching: Batching) -> Attend | None:
    """Return the attention of packed passes, or None where passes are padded; the log says which and why, once.

    Args:
        model: a causal language model, on its device, with adapters or without.
        batching: the recipe's.
    """
    found = choose(model, batching)
    _tell(f"passes are padded: {found}" if isinstance(found, str) else "passes are packed")
    return None if isinstance(found, str) else found


@cache
def _tell(message: str) -> None:
    logger.info(message)


def choose(model: Any, batching: Batching) -> Attend | str:
    """Return the attention of packed passes, or why passes are padded.

    Args:
        model: as ``packed_attention``.
        batching: the recipe's.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = next(bare.parameters()).device.type
    reason = unpacked(bare.config, batching, device)
    if reason is not None:
        return reason
    attend = flex_attention() if device == "cuda" else segments_attention()
    reason = failure_of(partial(_disagreement, bare.base_model, attend), verb="packing failed")
    return attend if reason is None else reason


def unpacked(config: Any, batching: Batching, device: str) -> str | None:
    """Return why a model's passes are padded, as far as its configuration says, or None.

    Args:
        config: its transformers configuration.
        batching: the recipe's.
        device: type of the device.
    """
    if batching == "padded":
        return "training.batching is 'padded'"
    if device not in ("cpu", "cuda"):
        return f"there is no packed attention for {device}"
    if device == "cuda" and batching == "auto":
        return "packing was not measured on a GPU; training.batching = 'packed' asks for it"
    if getattr(config, "attention_dropout", 0.0):
        return f"attention_dropout is {config.attention_dropout}, and packed attention drops nothing"
    return refusal(config)


def _disagreement(backbone: Any, attend: Attend) -> str | None:
    """Return how packed passes differ from sequences one by one, in states or in gradients, or None if they agree."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return [int(token) for token in generator.integers(0, backbone.config.vocab_size, count)]

    items = [(prompt, draw(count)) for prompt in map(draw, _TRIAL_PROMPTS) for count in _TRIAL_RESPONSES]
    row = packed_row(items)
    _, rows = _laid_out([np.array([*prompt, *response]) for prompt, response in items])
    parameter = next(backbone.parameters())
    weights = torch.from_numpy(generator.standard_normal((len(row.reads), backbone.config.hidden_size)))
    weights = weights.to(parameter.device, parameter.dtype)
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad(), _leaves(backbone) as leaves:
            with packed(backbone.config):
                states = packed_states(backbone, row, attend)
            (gradient,) = torch.autograd.grad((states * weights).sum(), leaves)
            alone, wanted = [], torch.zeros_like(gradient)
            for (prompt, response), own, part in zip(items, rows, weights.split(_counts(items)), strict=True):
                leaves.clear()
                tokens = torch.tensor([[*prompt, *response]], device=parameter.device)
                hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
                (one,) = torch.autograd.grad((hidden * part).sum(), leaves)
                wanted[0].index_add_(0, torch.from_numpy(own).to(parameter.device), one[0])
                alone.append(hidden.detach())
    finally:
        backbone.train(was_training)
    most = tolerance(parameter.dtype)
    for name, mine, other in (("states", states.detach(), torch.cat(alone)), ("gradients", gradient, wanted)):
        error = float((mine - other).norm() / other.norm())
        if not error <= most:
            return f"its packed {name} are off by {error:.1e} of their size"
    return None


def _counts(items: Sequence[Item]) -> list[int]:
    return [len(response) for _, response in items]


@contextmanager
def _leaves(backbone: Any) -> Iterator[list[Tensor]]:
    """Collect the embeddings of every pass inside the block as tensors that gradients are asked for."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = backbone.get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()
