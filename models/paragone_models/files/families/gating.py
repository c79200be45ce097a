"""ArmoRM and QRM: attributes of a response, weighed into one reward by a network that reads the prompt.

    regression_layer.weight [A · Q, H], reward_transform_matrix [A, A], gating.logit_scale [1], and gating.layers.N:
    linear layers with a ReLU between them (ArmoRM), or each followed by a ReLU, a batch norm and perhaps a dropout,
    which is counted and does nothing (QRM). QRM of Gemma 2 has no matrix.

Their own code looks for the token that ends a turn before the last header of an assistant. In Llama 3's template that
is the prompt's last token, and in Gemma's a line break stands behind it.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers import AutoTokenizer

from paragone_models.errors import ModelLoadError
from paragone_models.files.families.backbone import LONGEST, bare_backbone, chosen_kind, config_of, read_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.gated import GatedRatings
from paragone_models.network import PreferenceNetwork, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["GATED", "helpsteer_names"]

_RATINGS = "regression_layer.weight"
_TRANSFORM = "reward_transform_matrix"
_SCALE = "gating.logit_scale"
_COUNT = "num_batches_tracked"
_GATE = "gating.layers."
_LAYER = re.compile(r"gating\.layers\.(\d+)\.")


@dataclass(frozen=True)
class _Layout:
    """What the publishers' classes of one backbone take where config.json is silent.

    Attributes:
        transformed: whether there is a matrix that the attributes are multiplied by.
        distance: how many tokens before the prompt's end the gate reads; None: its last token.
    """

    objectives: int
    quantiles: int
    temperature: float
    transformed: bool
    distance: int | None = None


_LAYOUTS = {"llama": _Layout(19, 1, 10.0, transformed=True), "gemma2": _Layout(5, 19, 1.0, False, distance=2)}
_HELPSTEER = tuple(
    f"helpsteer-{name}" for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
)
_PUBLISHED_NAMES = (
    *_HELPSTEER,
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
    layout = _LAYOUTS.get(config.model_type)
    if layout is None:
        raise ModelLoadError(
            f"{folder} is a gated {config.model_type} model, whose gate reads a token that is not known here: gates of "
            f"the types {', '.join(sorted(_LAYOUTS))} are read"
        )
    if layout.distance is not None:
        _check_turns(place, layout.distance)
    named = (_RATINGS, _SCALE, *([_TRANSFORM] if layout.transformed else []))
    claimed = {name for name in shapes if name in named or _LAYER.match(name)}
    width, attributes, quantiles = _sizes(place, layout, output_width(config))
    gate = _gate(place, width, attributes)
    # How many batches a norm has seen is counted, and changes nothing.
    tensors = read_head(folder, options, {name for name in claimed if not name.endswith(_COUNT)})
    ratings = nn.Linear(width, attributes * quantiles, bias=False)
    ratings.weight.data = tensors[_RATINGS]
    counts = {name: tensor for name, tensor in gate.state_dict().items() if name.endswith(_COUNT)}
    own_gate = {name.removeprefix(_GATE): tensor for name, tensor in tensors.items() if _LAYER.match(name)}
    gate.load_state_dict(counts | own_gate)
    names = [*_names(place, attributes), *_quantile_names(quantiles)]
    spec = ModelSpec(
        kind=own,
        dimension=1 + len(names),
        attributes=tuple(names),
        gate="attributes",
        gate_distance=layout.distance,
        max_length=min(positions_of(config) or LONGEST, LONGEST),
    )
    head = GatedRatings(
        spec,
        ratings,
        gate,
        tensors.get(_TRANSFORM, torch.eye(attributes)),
        scale=float(tensors[_SCALE]),
        temperature=float(place.stated.get("gating_temperature", layout.temperature)),
    )
    return Loaded(PreferenceNetwork(bare_backbone(folder, options, claimed), head), spec)


def _check_turns(place: Checkpoint, distance: int) -> None:
    """Refuse a tokenizer whose chat template ends a user's turn otherwise than the gate was trained on.

    Raises:
        ModelLoadError: if the token that the gate would read is none that ends a turn.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.folder, trust_remote_code=place.options.trust_remote_code)
    except (ValueError, OSError, KeyError):
        return  # without one it reads no text
    turn = [{"role": "user", "content": "a"}]
    ids = tokenizer.apply_chat_template(turn, tokenize=True, return_dict=False)
    if len(ids) < distance or ids[-distance] not in tokenizer.get_added_vocab().values():
        raise ModelLoadError(
            f"the chat template of {place.folder} has no special token {distance} tokens before the end of a user's "
            "turn, which is where the gate reads (<end_of_turn> and a line break, in Gemma's): keep its own template"
        )


def _sizes(place: Checkpoint, layout: _Layout, width: int) -> tuple[int, int, int]:
    """Return hidden size, attributes and quantiles, after holding the tensors' shapes against them."""
    attributes = int(place.stated.get("num_objectives", layout.objectives))
    quantiles = int(place.stated.get("num_quantiles", layout.quantiles))
    needed: dict[str, tuple[int, ...]] = {_RATINGS: (attributes * quantiles, width)}
    if layout.transformed:
        needed[_TRANSFORM] = (attributes, attributes)
    needed[_SCALE] = (1,)
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
    weights = {number: place.shapes.get(f"{_GATE}{number}.weight", ()) for number in numbers}
    linear = [number for number in numbers if len(weights[number]) == 2]
    normed = len(numbers) > len(linear)
    # Named by the numbers in the files, so that its state has their names.
    layers: dict[str, nn.Module] = {}
    for number in linear:
        out, into = weights[number]
        layers[str(number)] = nn.Linear(into, out, bias=f"{_GATE}{number}.bias" in place.shapes)
        if number != linear[-1]:
            layers[f"relu {number}"] = nn.ReLU()
            layers |= {str(number + 2): nn.BatchNorm1d(out)} if normed else {}
    gate = nn.Sequential(OrderedDict(layers))
    expected = {f"{_GATE}{name}": tuple(tensor.shape) for name, tensor in gate.state_dict().items()}
    found = {name: shape for name, shape in place.shapes.items() if _LAYER.match(name)}
    ends = (weights[linear[0]][1], weights[linear[-1]][0]) if linear else ()
    # A ReLU has a number where a norm follows it, and none where it stands alone. A dropout may follow the norm.
    steps = {after - before for before, after in pairwise(linear)}
    numbered = linear[:1] == [0] and steps <= ({3, 4} if normed else {1})
    if not numbered or expected != found or ends != (width, attributes):
        raise ModelLoadError(
            f"{place.folder}: gating.layers ({', '.join(sorted(found)) or 'missing'}) are no gate of a form that is "
            f"known here: linear layers from {width} to {attributes}, with a ReLU, or a ReLU and a batch norm, between"
        )
    return gate


def _names(place: Checkpoint, attributes: int) -> list[str]:
    labels = place.stated.get("id2label") or {}
    if len(labels) == attributes and not any(str(label).startswith("LABEL_") for label in labels.values()):
        return [str(labels[str(row)]) for row in range(attributes)]
    if attributes == len(_PUBLISHED_NAMES):
        return list(_PUBLISHED_NAMES)
    return helpsteer_names(attributes)


def helpsteer_names(attributes: int) -> list[str]:
    """Return the names of a publisher's attributes that its files do not name: HelpSteer2's if there are five."""
    if attributes == len(_HELPSTEER):
        return list(_HELPSTEER)
    return [f"objective_{row}" for row in range(attributes)]


def _quantile_names(quantiles: int) -> list[str]:
    if quantiles == 1:
        return []
    return [f"quantile_{float(level):.3g}" for level in torch.linspace(0, 1, quantiles + 2)[1:-1]]


GATED = Family(
    "attributes weighed by the prompt: ArmoRM, QRM of Llama 3 and Gemma 2",
    found_by="tensors `regression_layer.weight` and `gating.layers.…`",
    becomes="`helpsteer`: the reward, read at the last token and weighed at the prompt's; the ratings; QRM's quantiles "
    "of the reward as `quantile_…`",
    finds=lambda place: _RATINGS in place.shapes and any(map(_LAYER.match, place.shapes)),
    reads=_read,
)
