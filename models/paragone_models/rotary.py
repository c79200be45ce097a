"""Rotary positions: which lengths may share a pass, and how many tokens a backbone has positions for.

Two ways of scaling choose a model's angles by the longest sequence of a pass. LongRoPE has one set of factors up to the
original context and another beyond it; dynamic NTK has one set for every length beyond the context, and keeps the last
one until a short sequence comes. A text's numbers must not depend on what shares its pass, so such passes hold texts of
one set of angles only, and nothing is left over from the pass before.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["angles_of", "depending_on_length", "forget_lengths", "hidden_by_angles", "positions_of"]

# These count positions from behind the padding token's id on.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert"})
# "su" is what early Phi-3 files call LongRoPE.
_BY_SWITCH = frozenset({"longrope", "su"})
# Their angles reach beyond ``max_position_embeddings`` where a file names no original length.
_STRETCHED = frozenset({"linear", "dynamic", "yarn"})


def depending_on_length(config: Any) -> list[str]:
    """Return the types of rotary positions of a configuration whose angles depend on a pass's longest sequence."""
    types = {_type(parameters) for parameters in _scalings(config)}
    return sorted(name for name in types if name in _BY_SWITCH or "dynamic" in name)


def angles_of(config: Any, length: int) -> tuple[int, ...]:
    """Return what tells a sequence's angles from those of other lengths: equal if two lengths may share a pass.

    Args:
        config: of a backbone; decided by this alone.
        length: of the sequence, in tokens.

    >>> from transformers import LlamaConfig
    >>> angles_of(LlamaConfig(), 9) == angles_of(LlamaConfig(), 2000)
    True
    """
    text = config.get_text_config()
    known = type(config).__module__.startswith("transformers.models.")
    angles = []
    for parameters in _scalings(config):
        name = _type(parameters)
        if name not in _BY_SWITCH and "dynamic" not in name:
            continue
        if name in _BY_SWITCH:
            switch = parameters.get("original_max_position_embeddings")
            switch = getattr(text, "original_max_position_embeddings", None) if switch is None else switch
        else:
            switch = text.max_position_embeddings
        if not known or not isinstance(switch, int):
            angles.append(length)  # code that comes with a checkpoint may switch anywhere
        elif name in _BY_SWITCH:
            angles.append(int(length > switch))
        else:
            angles.append(max(length - switch, 0))
    return tuple(angles)


def hidden_by_angles(
    backbone: Any,
    run: Callable[[Tensor, Tensor | None], Tensor],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Return hidden states of right-padded sequences, those of different angles in passes of their own.

    Args:
        backbone: a transformers model.
        run: one pass through it, from token ids and mask to hidden states [n, T, H].
        input_ids: token ids, padded on the right. [B, T]
        attention_mask: 1 for real tokens; without it all are. [B, T]

    Returns:
        Hidden states, with gradients where the passes have them. [B, T, H]
    """
    if not depending_on_length(backbone.config):
        return run(input_ids, attention_mask)
    longest = input_ids.shape[1]
    lengths = [longest] * len(input_ids) if attention_mask is None else attention_mask.sum(dim=1).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(angles_of(backbone.config, int(length)), []).append(row)
    parts = []
    for rows in groups.values():
        # Cut to its own longest: padding counts as length too.
        end = int(max(lengths[row] for row in rows))
        forget_lengths(backbone)
        mask = None if attention_mask is None else attention_mask[rows, :end]
        parts.append(functional.pad(run(input_ids[rows, :end], mask), (0, 0, 0, longest - end)))
    order = [row for rows in groups.values() for row in rows]
    return torch.cat(parts)[torch.tensor(order, device=input_ids.device).argsort()]


def forget_lengths(backbone: nn.Module) -> None:
    """Take back what the passes before left in a backbone's rotary positions.

    Dynamic NTK keeps the angles of the longest sequence so far until one comes that is shorter than the context: the
    same text would have other numbers after a longer one.
    """
    for module in backbone.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)
        for name, original in list(module.named_buffers(recurse=False)):
            if name.endswith("original_inv_freq"):
                setattr(module, name.replace("original_", ""), original.clone())
        # Some layers keep the original angles as a plain attribute.
        for name, value in list(vars(module).items()):
            if name.endswith("original_inv_freq") and isinstance(value, Tensor):
                current = getattr(module, name.replace("original_", ""))
                setattr(module, name.replace("original_", ""), value.to(current.device, copy=True))


def positions_of(config: Any) -> int | None:
    """Return for how many tokens a backbone has positions, or None if there is no such limit.

    Scaled rotary positions reach as far as their factor says: ``original_max_position_embeddings`` times the factor, or
    ``max_position_embeddings`` times the factor where the file names no original length.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if text.model_type in _OFFSET_POSITIONS:
        return int(positions - text.pad_token_id - 1)
    # One scaling for all layers; where layers differ, the file's own length is meant with all of them.
    parameters = _parameters(text)
    factor = parameters.get("factor")
    if _type(parameters) not in _STRETCHED or not isinstance(factor, int | float) or factor <= 1:
        return positions
    original = parameters.get("original_max_position_embeddings") or positions
    return max(positions, int(original * factor))


def _parameters(text: Any) -> Mapping[str, Any]:
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    return found if isinstance(found, Mapping) else {}


def _type(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def _scalings(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of every set of angles; a model may have one for each type of layer."""
    parameters = _parameters(config.get_text_config())
    yield parameters
    yield from (value for value in parameters.values() if isinstance(value, Mapping))
