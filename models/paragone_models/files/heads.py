"""Which tensors of a checkpoint are its head, by their names, and which may be left over.

Trainers save a reward head under names of their own, and config.json often says nothing of it. So a head is found by
its tensors. Every tensor of the files is then part of the backbone, or of the head, or on a short list of those that no
reward depends on. Anything else is refused by name: what is left out in silence makes another model.

Shapes: n rows of a head, H hidden size.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paragone_models.errors import ModelLoadError

__all__ = ["LinearHead", "find_linear_head", "is_harmless", "left_over", "refuse_left_over", "standardised"]

_NAMES = ("score", "value_head", "v_head.summary", "v_head", "regression_head", "reward_head", "rm_head")
"""Prefixes of one linear layer on the last token's state: transformers; OpenRLHF and general preference models; TRL and
LLaMA-Factory; DeepSpeed-Chat and Starling; UltraRM and Eurus; and two more that custom classes use."""

_GATE = ("prompt_head.weight", "prompt_head.bias")
_STATISTICS = ("mean", "std")
_HARMLESS = re.compile(
    r"(^|\.)(lm_head|embed_out)(\.|$)"  # words' logits: no reward is one unless the caller says so
    r"|(^|\.)cls\.(predictions|seq_relationship)\."  # the same of BERT
    r"|(^|\.)(rotary_emb|rotary|rope)\.(inv_freq|cos_cached|sin_cached)$|(^|\.)inv_freq$"  # the config gives them
    r"|(^|\.)(position_ids|token_type_ids)$"
)
# Causal masks that GPT-2 and its like once stored; a bias of a projection has one dimension.
_MASK = re.compile(r"(^|\.)(attn|attention|crossattention)\.(bias|masked_bias)$")
_MASK_DIMENSIONS = {0, 4}
_SHOWN = 3


@dataclass(frozen=True)
class LinearHead:
    """One linear layer on the last token's hidden state, found by its tensors' names.

    Attributes:
        prefix: of its tensors.
        rows: numbers that it gives, n.
        width: hidden size that it reads, H.
        tensors: names in the files by the names of ``RepresentationHead``.
        mean, std: what rewards are standardised by, (reward − mean) / std, as values or as names of tensors; or None.
    """

    prefix: str
    rows: int
    width: int
    tensors: Mapping[str, str]
    mean: float | str | None = None
    std: float | str | None = None

    @property
    def claimed(self) -> frozenset[str]:
        """Names in the files that are part of the head."""
        return frozenset(self.tensors.values()) | {name for name in (self.mean, self.std) if isinstance(name, str)}

    @property
    def gated(self) -> bool:
        """Whether a gate of general preference blocks lies beside it."""
        return _GATE[0] in self.tensors


def find_linear_head(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> LinearHead | None:
    """Return the linear head among a checkpoint's tensors, or None.

    Args:
        shapes: of all its tensors.
        config: config.json; OpenRLHF writes the head's name, a mean and a standard deviation into it.

    Raises:
        ModelLoadError: if there are several, or one is no matrix.
    """
    own = config.get("value_head_prefix")
    names = dict.fromkeys((*_NAMES, own) if isinstance(own, str) else _NAMES)
    heads = [name for name in names if f"{name}.weight" in shapes]
    if not heads:
        return None
    if len(heads) > 1:
        raise ModelLoadError(
            f"the weights have several heads ({', '.join(f'{name}.weight' for name in heads)}): remove the ones that "
            "are not meant"
        )
    prefix = heads[0]
    shape = shapes[f"{prefix}.weight"]
    if len(shape) != 2:
        raise ModelLoadError(f"{prefix}.weight has shape {list(shape)}; a linear head has [rows, hidden size]")
    tensors = {f"value_head.{part}": f"{prefix}.{part}" for part in ("weight", "bias") if f"{prefix}.{part}" in shapes}
    tensors |= {name: name for name in _GATE if name in shapes}
    mean, std = (_statistic(name, shapes, config) for name in _STATISTICS)
    if (mean is None) != (std is None):
        raise ModelLoadError(
            f"the head has a {'std' if mean is None else 'mean'} and not the other: give both, or none"
        )
    return LinearHead(prefix, shape[0], shape[1], tensors, mean, std)


def _statistic(name: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> float | str | None:
    if name in shapes:
        return name
    value = config.get(name)
    # OpenRLHF writes both after training; a trainer that says so did not mean them to be applied.
    if config.get("normalize_reward") is False or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value)


def standardised(head: LinearHead, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Return a head's tensors with mean and standard deviation applied to them, and that deviation.

        (W h + b − mean) / std = (W / std) h + (b − mean) / std

    Args:
        tensors: by the names in the files, float32.

    Raises:
        ModelLoadError: if mean or deviation is no finite number, or the deviation is not above zero.
    """
    named = {name: tensors[stored] for name, stored in head.tensors.items()}
    if head.mean is None or head.std is None:
        return named, 1.0
    mean, std = (_number(value, tensors) for value in (head.mean, head.std))
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ModelLoadError(
            f"rewards are standardised by mean {mean} and std {std}: the one must be finite, the other above 0"
        )
    if (mean, std) == (0.0, 1.0):
        return named, 1.0
    bias = named.get("value_head.bias", torch.zeros(head.rows))
    named |= {"value_head.weight": named["value_head.weight"] / std, "value_head.bias": (bias - mean) / std}
    return named, std


def _number(value: float | str, tensors: Mapping[str, Tensor]) -> float:
    if isinstance(value, float):
        return value
    if tensors[value].numel() != 1:
        raise ModelLoadError(
            f"{value} has shape {list(tensors[value].shape)}; a standardised reward has one number there"
        )
    return float(tensors[value])


def is_harmless(name: str) -> bool:
    """Return whether no reward depends on a tensor of this name."""
    return _HARMLESS.search(name) is not None


def left_over(names: Collection[str], claimed: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names that are neither claimed nor known to change no reward, sorted.

    Args:
        names: tensors of the files that the backbone has no place for.
        claimed: names that the head takes.
        shapes: of the files' tensors.
    """
    return sorted(
        name
        for name in names
        if name not in claimed
        and not is_harmless(name)
        and not (_MASK.search(name) and len(_shape(name, shapes)) in _MASK_DIMENSIONS)
    )


def _shape(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if name in shapes:
        return shapes[name]
    # transformers names a bare model's tensors without their prefix.
    return next((shape for stored, shape in shapes.items() if stored.endswith(f".{name}")), (0,))


def refuse_left_over(folder: object, names: Collection[str]) -> None:
    """Refuse tensors that nothing would apply.

    Raises:
        ModelLoadError: if there are any.
    """
    if not names:
        return
    shown = ", ".join(list(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    raise ModelLoadError(
        f"{folder} has {len(names)} tensors that its config.json gives no place to ({shown}): without them it would be "
        "another model, so it is not served. Correct config.json (layers, biases, architecture), or remove them from "
        "the file if they are not meant"
    )
