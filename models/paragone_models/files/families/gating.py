"""ArmoRM and QRM: attributes of a response, weighed into one reward by a network that reads the prompt.

    regression_layer.weight [A · Q, H], reward_transform_matrix [A, A], gating.logit_scale [1], and gating.layers.N:
    linear layers with a ReLU between them (ArmoRM), or each followed by a ReLU and a batch norm (QRM).

Their own code looks for the last ``<|eot_id|>`` before an assistant's header, which is the last token of the prompt in
Llama 3's template: the read of every gate here.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paragone_models.errors import ModelLoadError
from paragone_models.files.families.backbone import LONGEST, bare_backbone, chosen_kind, config_of, read_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.gated import GatedRatings
from paragone_models.network import PreferenceNetwork, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["GATED"]

_RATINGS = "regression_layer.weight"
_TRANSFORM = "reward_transform_matrix"
_SCALE = "gating.logit_scale"
_COUNT = "num_batches_tracked"
_LAYER = re.compile(r"gating\.layers\.(\d+)\.")
# What the publishers' classes take where config.json is silent.
_OBJECTIVES, _TEMPERATURE = 19, 10.0
# Elsewhere the prompt does not end with the token that such a gate was trained on (Gemma's ends with a line break).
_TYPES = frozenset({"llama"})
_PUBLISHED_NAMES = (
    *(f"helpsteer-{name}" for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")),
    *(f"ultrafeedback-{name}" for name in ("overall_score", "instruction_following", "truthfulness", "honesty")),
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    *(f"code-{name}" for name in ("complexity", "style", "explanation", "instruction-following", "readability")),
)


def _read(place: Checkpoint) -> Loaded:
    """Read such a model as a reward with the ratings that explain it.

    Raises:
        ModelLoadError: if a tensor of the head is missing, of another shape, or in no place that is known, or the
            backbone is of another type.
    """
    folder, options, shapes = place.folder, place.options, place.shapes
    own = chosen_kind(place.kind, ("helpsteer",), f"{folder} weighs attributes into a reward")
    config = config_of(folder, options)
    if config.model_type not in _TYPES:
        raise ModelLoadError(
            f"{folder} is a gated {config.model_type} model, whose gate reads a token that is not known here: gates of "
            f"the types {', '.join(sorted(_TYPES))} are read"
        )
    claimed = {name for name in shapes if name in (_RATINGS, _TRANSFORM, _SCALE) or _LAYER.match(name)}
    width, attributes, quantiles = _sizes(place, output_width(config))
    gate = _gate(place, width, attributes)
    # How many batches a norm has seen is counted, and changes nothing.
    tensors = read_head(folder, options, {name for name in claimed if not name.endswith(_COUNT)})
    ratings = nn.Linear(width, attributes * quantiles, bias=False)
    ratings.weight.data = tensors[_RATINGS]
    counts = {name: tensor for name, tensor in gate.state_dict().items() if name.endswith(_COUNT)}
    gate.load_state_dict(counts | _of_gate(tensors))
    names = [*_names(place, attributes), *_quantile_names(quantiles)]
    spec = ModelSpec(
        kind=own,
        dimension=1 + len(names),
        attributes=tuple(names),
        gate="attributes",
        max_length=min(positions_of(config) or LONGEST, LONGEST),
    )
    head = GatedRatings(
        spec,
        ratings,
        gate,
        tensors[_TRANSFORM],
        scale=float(tensors[_SCALE]),
        temperature=float(place.stated.get("gating_temperature", _TEMPERATURE)),
    )
    return Loaded(PreferenceNetwork(bare_backbone(folder, options, claimed), head), spec)


def _sizes(place: Checkpoint, width: int) -> tuple[int, int, int]:
    """Return hidden size, attributes and quantiles, after holding the tensors' shapes against them."""
    attributes = int(place.stated.get("num_objectives", _OBJECTIVES))
    quantiles = int(place.stated.get("num_quantiles", 1))
    needed = {_RATINGS: (attributes * quantiles, width), _TRANSFORM: (attributes, attributes), _SCALE: (1,)}
    for name, shape in needed.items():
        if place.shapes.get(name) != shape:
            found = "is missing" if name not in place.shapes else f"has shape {list(place.shapes[name])}"
            raise ModelLoadError(
                f"{place.folder}: {name} {found}; {attributes} objectives of {quantiles} quantiles at hidden size "
                f"{width} need {list(shape)}"
            )
    return width, attributes, quantiles


def _gate(place: Checkpoint, width: int, attributes: int) -> nn.Sequential:
    """Return an uninitialised gate of the layers that its tensors' names and shapes tell."""
    numbers = sorted({int(match[1]) for name in place.shapes if (match := _LAYER.match(name))})
    weights = {number: place.shapes.get(f"gating.layers.{number}.weight", ()) for number in numbers}
    linear = [number for number in numbers if len(weights[number]) == 2]
    normed = set(numbers) - set(linear)
    layers: list[nn.Module] = []
    for number in linear:
        out, into = weights[number]
        layers.append(nn.Linear(into, out, bias=f"gating.layers.{number}.bias" in place.shapes))
        layers += [nn.ReLU(), nn.BatchNorm1d(out)] if normed else [nn.ReLU()]
    gate = nn.Sequential(*layers[: -2 if normed else -1])
    # In the files a ReLU has a number where a norm follows it, and none where it stands alone.
    places = [3 * row for row in range(len(linear))] if normed else list(range(len(linear)))
    expected = {f"gating.layers.{name}": tuple(tensor.shape) for name, tensor in _numbered(gate, normed).items()}
    found = {name: shape for name, shape in place.shapes.items() if _LAYER.match(name)}
    ends = (weights[linear[0]][1], weights[linear[-1]][0]) if linear else ()
    if linear != places or expected != found or ends != (width, attributes):
        raise ModelLoadError(
            f"{place.folder}: gating.layers ({', '.join(sorted(found)) or 'missing'}) are no gate of a form that is "
            f"known here: linear layers from {width} to {attributes}, with a ReLU, or a ReLU and a batch norm, between"
        )
    return gate


def _numbered(gate: nn.Sequential, normed: set[int]) -> Mapping[str, Tensor]:
    state: dict[str, Any] = gate.state_dict()
    if normed:
        return state
    return {f"{int(name.split('.')[0]) // 2}.{name.split('.')[1]}": tensor for name, tensor in state.items()}


def _of_gate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gate's tensors by the names of the module that ``_gate`` makes."""
    own = {name.removeprefix("gating.layers."): tensor for name, tensor in tensors.items() if _LAYER.match(name)}
    if any(name.endswith("running_mean") for name in own):
        return own
    return {f"{2 * int(name.split('.')[0])}.{name.split('.')[1]}": tensor for name, tensor in own.items()}


def _names(place: Checkpoint, attributes: int) -> list[str]:
    labels = place.stated.get("id2label") or {}
    if len(labels) == attributes and not any(str(label).startswith("LABEL_") for label in labels.values()):
        return [str(labels[str(row)]) for row in range(attributes)]
    if attributes == len(_PUBLISHED_NAMES):
        return list(_PUBLISHED_NAMES)
    return [f"objective_{row}" for row in range(attributes)]


def _quantile_names(quantiles: int) -> list[str]:
    if quantiles == 1:
        return []
    return [f"quantile_{float(level):.3g}" for level in torch.linspace(0, 1, quantiles + 2)[1:-1]]


GATED = Family(
    "attributes weighed by the prompt: ArmoRM, QRM of Llama 3",
    found_by="tensors `regression_layer.weight` and `gating.layers.…`",
    becomes="`helpsteer`: the reward, read at the last token and weighed at the prompt's; the ratings; QRM's quantiles "
    "of the reward as `quantile_…`",
    finds=lambda place: _RATINGS in place.shapes and any(map(_LAYER.match, place.shapes)),
    reads=_read,
)
