"""LDL-Reward: a distribution over bins of each attribute, and weights of the attributes from the same hidden state.

regression_layer.pt (rows A · 10) and gating_layer.pt (rows A), beside the weights of a bare backbone: linear layers
network.N with biases, a LeakyReLU between them, and in the second one a dropout, which is counted and does nothing.
"""

import re
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

from torch import nn

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.families.backbone import LONGEST, bare_backbone, chosen_kind, config_of
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.sources import BIN_HEADS
from paragone_models.gated import WeighedRatings, binned
from paragone_models.network import PreferenceNetwork, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["BINS"]

_BINS = 10
_LAYER = re.compile(r"network\.(\d+)\.(weight|bias)")
_RATINGS, _WEIGHTS = BIN_HEADS


def _read(place: Checkpoint) -> Loaded:
    """Read such a model as a reward with the ratings that explain it.

    Raises:
        ModelLoadError: if one of its files is missing, or its layers are others.
    """
    folder, options = place.folder, place.options
    own = chosen_kind(place.kind, ("helpsteer",), f"{folder} weighs attributes into a reward")
    config = config_of(folder, options)
    width = output_width(config)
    # Behind a layer comes its activation, and in the one that weighs a dropout.
    ratings, rows = _layers(folder / _RATINGS, width, step=2)
    weights, attributes = _layers(folder / _WEIGHTS, width, step=3)
    if rows != attributes * _BINS or place.stated.get("num_objectives", rows) != rows:
        raise ModelLoadError(
            f"{folder}: {_RATINGS} has {rows} rows and {_WEIGHTS} {attributes}, and config.json "
            f"{place.stated.get('num_objectives', 'none')} num_objectives: there are {_BINS} bins an attribute"
        )
    if place.stated.get("softmax"):
        last = weights[-1]
        assert isinstance(last, nn.Linear)
        temperature = float(place.stated.get("temperature", 1.0))
        last.weight.data /= temperature
        last.bias.data /= temperature
        weights.append(nn.Softmax(dim=-1))
    spec = ModelSpec(
        kind=own,
        dimension=1 + attributes,
        attributes=tuple(f"objective_{row}" for row in range(attributes)),
        max_length=min(positions_of(config) or LONGEST, LONGEST),
    )
    head = WeighedRatings(spec, ratings, weights, binned(_BINS))
    return Loaded(PreferenceNetwork(bare_backbone(folder, options), head), spec)


def _layers(path: Path, width: int, *, step: int) -> tuple[nn.Sequential, int]:
    """Return the layers of a file, and how many numbers they give.

    Args:
        width: what the first one reads.
        step: how many numbers further the next layer is.
    """
    if not path.is_file():
        raise ModelLoadError(f"{path.parent} has no {path.name}, and {', '.join(BIN_HEADS)} are its heads")
    shapes = checkpoints.tensor_shapes([path])
    numbers = sorted({int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name))})
    sizes = [shapes.get(f"network.{number}.weight", (0, 0)) for number in numbers]
    expected = {f"network.{number}.weight": size for number, size in zip(numbers, sizes, strict=True)}
    expected |= {f"network.{number}.bias": size[:1] for number, size in zip(numbers, sizes, strict=True)}
    chained = all(after[1] == before[0] for before, after in pairwise([(width,), *sizes]))
    if not numbers or shapes != expected or not chained or numbers != list(range(0, step * len(numbers), step)):
        raise ModelLoadError(
            f"{path} holds {', '.join(sorted(shapes)) or 'nothing'}: known are linear layers network.0, "
            f"network.{step}, … with biases, from {width} numbers on"
        )
    layers: dict[str, nn.Module] = {}
    for number, (rows, columns) in zip(numbers, sizes, strict=True):
        layers[f"network_{number}"] = nn.Linear(columns, rows)
        layers[f"after_{number}"] = nn.LeakyReLU()
    layers.popitem()
    stack = nn.Sequential(OrderedDict(layers))
    tensors = checkpoints.read_tensors([path], set(shapes))
    stack.load_state_dict({name.replace("network.", "network_"): tensor for name, tensor in tensors.items()})
    return stack, sizes[-1][0]


BINS = Family(
    "distributions over bins, weighed by the last token: LDL-Reward-Gemma-2-27B",
    found_by="the files `regression_layer.pt` and `gating_layer.pt`, pickles of tensors",
    becomes="`helpsteer`: the reward; the means of the distributions as `objective_0` …",
    finds=lambda place: any((place.folder / name).is_file() for name in BIN_HEADS),
    reads=_read,
)
