"""Process reward models: two classes, wrong and right, at a token that closes each step (Qwen2.5-Math-PRM).

score.0 [H, H], score.2 [2, H], a ReLU between them; the separator is a token of the tokenizer by its name
"""

from transformers import AutoTokenizer

from paragone_models.errors import ModelLoadError
from paragone_models.files.families.backbone import LONGEST, bare_backbone, chosen_kind, config_of, read_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.heads import head_module
from paragone_models.network import PreferenceNetwork, StepsHead, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["PROCESS"]

_SEPARATOR = "<extra_0>"
_CLASSES = 2
_PUBLISHED_LENGTH = 4096


def _read(place: Checkpoint) -> Loaded:
    """Read such a model.

    Raises:
        ModelLoadError: if its head is not of two classes, a tensor is missing or left over, or its tokenizer has no
            separator.
    """
    folder, options, found = place.folder, place.options, place.stored
    own = chosen_kind(place.kind, ("process",), f"{folder} scores steps")
    if found is None or found.prefix != "score" or found.rows != _CLASSES or found.mean is not None:
        raise ModelLoadError(
            f"{folder} is {place.architecture}, whose head is score.… with {_CLASSES} rows, for wrong and right; this "
            f"one has {'none' if found is None else f'{found.prefix} with {found.rows}'}"
        )
    config = config_of(folder, options)
    spec = ModelSpec(
        kind=own,
        dimension=1,
        max_length=min(_PUBLISHED_LENGTH, positions_of(config) or LONGEST),
        step_token=_separator(place),
    )
    stored = read_head(folder, options, found.claimed)
    tensors = {name: stored[where] for name, where in found.tensors.items()}
    module = head_module(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, output_width(config), _CLASSES
    )
    module.load_state_dict({name.removeprefix("value_head."): tensor for name, tensor in tensors.items()})
    return Loaded(PreferenceNetwork(bare_backbone(folder, options, found.claimed), StepsHead(spec, module)), spec)


def _separator(place: Checkpoint) -> int:
    """Return the id of the separator, which the weights do not tell."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.folder, trust_remote_code=place.options.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelLoadError(f"{place.folder} has no tokenizer that tells the token {_SEPARATOR}: {error}") from error
    number = tokenizer.get_vocab().get(_SEPARATOR)
    if number is None:
        raise ModelLoadError(f"the tokenizer of {place.folder} has no token {_SEPARATOR}, which closes each step")
    return int(number)


PROCESS = Family(
    "process reward models (Qwen2.5-Math-PRM)",
    found_by="`…ForProcessRewardModel` in config.json",
    becomes="`process`: the log-odds that a step is right, at the `<extra_0>` behind each",
    finds=lambda place: place.architecture.endswith("ForProcessRewardModel"),
    reads=_read,
)
