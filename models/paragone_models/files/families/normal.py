"""URM: a normal distribution of each attribute, and weights of the attributes from the same hidden state.

score.weight [2 · A, H], mean and logarithm of the deviation in turn, and weights.fc.0, .2, .4: linear layers with
biases and a SELU between them, [H, H], [H, H], [A, H].
"""

from collections import OrderedDict

from torch import nn

from paragone_models.errors import ModelLoadError
from paragone_models.files.families.backbone import LONGEST, bare_backbone, chosen_kind, config_of, read_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.families.gating import helpsteer_names
from paragone_models.gated import WeighedRatings, normal
from paragone_models.network import PreferenceNetwork, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["NORMAL"]

_RATINGS = "score.weight"
_WEIGHTS = "weights.fc."
_LAYERS = (0, 2, 4)


def _read(place: Checkpoint) -> Loaded:
    """Read such a model as a reward with the ratings that explain it, and how sure each rating is.

    Raises:
        ModelLoadError: if a tensor of the head is missing or of another shape.
    """
    folder, options = place.folder, place.options
    own = chosen_kind(place.kind, ("helpsteer",), f"{folder} weighs attributes into a reward")
    config = config_of(folder, options)
    needed = _needed(place, output_width(config))
    for name, shape in needed.items():
        if place.shapes.get(name) != shape:
            found = "is missing" if name not in place.shapes else f"has shape {list(place.shapes[name])}"
            raise ModelLoadError(
                f"{folder}: {name} {found}; a reward of weighed normal distributions (URM-LLaMa-3.1-8B) needs "
                f"{list(shape)}. Without weights.fc (URM-LLaMa-3-8B) the weights are in its code, which is not run"
            )
    tensors = read_head(folder, options, needed)
    rows, width = needed[_RATINGS]
    names = helpsteer_names(rows // 2)
    spec = ModelSpec(
        kind=own,
        dimension=1 + rows,
        attributes=(*names, *(f"{name}_deviation" for name in names)),
        max_length=min(positions_of(config) or LONGEST, LONGEST),
    )
    ratings = nn.Linear(width, rows, bias=False)
    ratings.weight.data = tensors[_RATINGS]
    layers: dict[str, nn.Module] = {}
    for number in _LAYERS:
        layers[str(number)] = nn.Linear(width, needed[f"{_WEIGHTS}{number}.weight"][0])
        if number != _LAYERS[-1]:
            layers[str(number + 1)] = nn.SELU()
    weights = nn.Sequential(OrderedDict(layers))
    weights.load_state_dict(
        {name.removeprefix(_WEIGHTS): tensor for name, tensor in tensors.items() if name != _RATINGS}
    )
    head = WeighedRatings(spec, ratings, weights, normal)
    return Loaded(PreferenceNetwork(bare_backbone(folder, options, needed), head), spec)


def _needed(place: Checkpoint, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the head's tensors, by the number of its rows."""
    rows = place.shapes.get(_RATINGS, (0,))[0]
    attributes = max(rows // 2, 1)
    shapes: dict[str, tuple[int, ...]] = {_RATINGS: (2 * attributes, width)}
    for number in _LAYERS:
        out = attributes if number == _LAYERS[-1] else width
        shapes |= {f"{_WEIGHTS}{number}.weight": (out, width), f"{_WEIGHTS}{number}.bias": (out,)}
    return shapes


NORMAL = Family(
    "normal distributions of attributes, weighed by the last token: URM (URM-LLaMa-3.1-8B)",
    found_by="tensors `weights.fc.…`, or `…ForSequenceClassificationWithNormal…` in config.json",
    becomes="`helpsteer`: the reward; the ratings' means; their standard deviations as `…_deviation`",
    finds=lambda place: (
        any(name.startswith(_WEIGHTS) for name in place.shapes)
        or "ForSequenceClassificationWithNormal" in place.architecture
    ),
    reads=_read,
)
