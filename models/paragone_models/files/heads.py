"""Which tensors of a checkpoint are its head, by their names, and which may be left over.

Trainers save a reward head under names of their own, and config.json often says nothing of it. So a head is found by
its tensors. Every tensor of the files is then part of the backbone, or of the head, or on a short list of those that no
reward depends on. Anything else is refused by name: what is left out in silence makes another model.

Shapes: n rows of a head, H hidden size.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paragone_models.errors import ModelLoadError

__all__ = ["StoredHead", "head_module", "is_harmless", "left_over", "refuse_left_over", "standardised", "stored_head"]

_NAMES = ("score", "value_head", "v_head.summary", "v_head", "regression_head", "reward_head", "rm_head")
"""Prefixes of a head on the last token's state: transformers; OpenRLHF and general preference models; TRL and
LLaMA-Factory; DeepSpeed-Chat and Starling; UltraRM and Eurus; and two more that custom classes use."""

_RELU = frozenset({"score", "v_head.summary"})
"""Prefixes of published heads of several layers, which have a ReLU where a number is left out: ``score.0``, ``score.2``
(INF-ORM, Qwen2.5-Math-RM, WorldPM) and ``v_head.summary.0``, ``v_head.summary.2`` (GRM)."""

_OWN = "value_head"
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
class StoredHead:
    """A head on the last token's hidden state, found by its tensors' names.

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

    @property
    def deep(self) -> bool:
        """Whether it has several layers."""
        return f"{_OWN}.weight" not in self.tensors


def stored_head(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> StoredHead | None:
    """Return the head among a checkpoint's tensors, or None.

    Args:
        shapes: of all its tensors.
        config: config.json; OpenRLHF writes the head's name, a mean and a standard deviation into it.

    Raises:
        ModelLoadError: if there are several, or it is of a form that its tensors do not tell.
    """
    own = config.get("value_head_prefix")
    names = dict.fromkeys((*_NAMES, own) if isinstance(own, str) else _NAMES)
    layers = {name: layer for name in names if (layer := _layers(name, shapes))}
    if not layers:
        return None
    if len(layers) > 1:
        raise ModelLoadError(
            f"the weights have several heads ({', '.join(f'{names[0]}.weight' for names in layers.values())}): remove "
            "the ones that are not meant"
        )
    ((prefix, found),) = layers.items()
    weights = [shapes[f"{layer}.weight"] for layer in found]
    if found == [prefix]:
        if len(weights[0]) != 2:
            raise ModelLoadError(f"{prefix}.weight has shape {list(weights[0])}; a linear head has [rows, hidden size]")
    else:
        _check_layers(prefix, found, shapes)
    tensors = {
        f"{_OWN}{layer.removeprefix(prefix)}.{part}": f"{layer}.{part}"
        for layer in found
        for part in ("weight", "bias")
        if f"{layer}.{part}" in shapes
    }
    tensors |= {name: name for name in _GATE if name in shapes}
    mean, std = (_statistic(name, shapes, config) for name in _STATISTICS)
    if (mean is None) != (std is None):
        raise ModelLoadError(
            f"the head has a {'std' if mean is None else 'mean'} and not the other: give both, or none"
        )
    return StoredHead(prefix, weights[-1][0], weights[0][-1], tensors, mean, std)


def _layers(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of a head's layers, in their order: the prefix alone, or with numbers behind it."""
    if f"{prefix}.weight" in shapes:
        return [prefix]
    numbered = re.compile(rf"{re.escape(prefix)}\.(\d+)\.weight")
    numbers = sorted(int(match[1]) for name in shapes if (match := numbered.fullmatch(name)))
    return [f"{prefix}.{number}" for number in numbers]


def _check_layers(prefix: str, layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a head of several layers unless names and shapes tell what each is, and what stands between them.

    Raises:
        ModelLoadError: naming the first tensor that leaves it open.
    """
    first = f"{layers[0]}.weight"
    if prefix not in _RELU:
        raise ModelLoadError(
            f"{first} belongs to a head of several layers, and no file says which activation stands between them; "
            f"that is known of {' and '.join(f'{name}.N' for name in sorted(_RELU))} alone (a ReLU)"
        )
    width, expected = shapes[first][-1], 0
    for layer in layers:
        name, shape, number = f"{layer}.weight", shapes[f"{layer}.weight"], int(layer.rpartition(".")[2])
        normed = len(shape) == 1 and f"{layer}.bias" in shapes
        # A norm stands at its place, and a linear layer behind another has one number left out, for the ReLU.
        if len(layers) < 2 or number != expected or not (normed or len(shape) == 2) or shape[-1] != width:
            raise ModelLoadError(
                f"{name} of shape {list(shape)} belongs to a head of a form that is not known here: {prefix}.N is read "
                "as linear layers with a ReLU between two of them, perhaps with a layer norm in front of one"
            )
        width = shape[0]
        expected = number + (1 if normed else 2)
    if len(shapes[f"{layers[-1]}.weight"]) != 2:
        raise ModelLoadError(f"{layers[-1]}.weight is the last layer of a head, and no linear one: it gives no reward")


def head_module(shapes: Mapping[str, tuple[int, ...]], width: int, rows: int) -> nn.Module:
    """Return an uninitialised head of the layers that its tensors' names and shapes tell.

    Args:
        shapes: of ``value_head.weight`` [n, H], or of ``value_head.N.weight``, as ``stored_head`` names them.
        width: hidden size that it reads, H.
        rows: numbers that it gives, n.

    Raises:
        ModelLoadError: if a head of several layers reads or gives something else.
    """
    layers = _layers(_OWN, shapes)
    if not layers or layers == [_OWN]:
        return nn.Linear(width, rows, bias=f"{_OWN}.bias" in shapes)
    ends = shapes[f"{layers[0]}.weight"][-1], shapes[f"{layers[-1]}.weight"][0]
    if ends != (width, rows):
        raise ModelLoadError(f"the head goes from {ends[0]} numbers to {ends[1]}; here it goes from {width} to {rows}")
    modules: dict[int, nn.Module] = {}
    for layer in layers:
        shape, bias = shapes[f"{layer}.weight"], f"{layer}.bias" in shapes
        module = nn.LayerNorm(shape[0]) if len(shape) == 1 else nn.Linear(shape[1], shape[0], bias=bias)
        modules[int(layer.rpartition(".")[2])] = module
    return nn.Sequential(*(modules.get(number) or nn.ReLU() for number in range(max(modules) + 1)))


def _statistic(name: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> float | str | None:
    if name in shapes:
        return name
    value = config.get(name)
    # OpenRLHF writes both after training; a trainer that says so did not mean them to be applied.
    if config.get("normalize_reward") is False or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value)


def standardised(head: StoredHead, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
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
    last = _layers(_OWN, {name: tuple(tensor.shape) for name, tensor in named.items()})[-1]
    bias = named.get(f"{last}.bias", torch.zeros(head.rows))
    return {**named, f"{last}.weight": named[f"{last}.weight"] / std, f"{last}.bias": (bias - mean) / std}, std


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
