"""The checkpoint layouts that can be hosted, our own and other people's.

Our folders, published general preference models, HF classifiers, and causal LMs that keep a reward in their output
embedding.

Each ``read_*`` returns a network and the spec that belongs to it, and refuses a head that is missing or random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils.import_utils import is_accelerate_available

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.kinds import KINDS, KindName
from paragone_models.network import AbsentBackbone, PreferenceNetwork, RepresentationHead
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = [
    "SPEC_FILE",
    "Loaded",
    "Options",
    "read_classifier",
    "read_general_preference",
    "read_output_row",
    "read_own",
]

SPEC_FILE = "paragone.json"
_PUBLISHED_GPM_LENGTH = 4096
_PUBLISHED_ROW_LENGTH = 4096
_LONGEST = 16384
_FIRST_TOKEN = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "deberta-v2"})
# Others scale or cap their logits, which a bare row would leave out without a word.
_PLAIN_LOGITS = frozenset({"llama", "mistral", "qwen2", "qwen3"})


@dataclass(frozen=True)
class Loaded:
    """A model read from its files.

    Attributes:
        network: backbone and head, on the CPU or where ``device`` said.
        spec: read from the folder, before the caller's overrides.
        first_token: True for encoders that are read at their first token.
    """

    network: PreferenceNetwork
    spec: ModelSpec
    first_token: bool = False


@dataclass(frozen=True)
class Options:
    """How weights are brought into memory.

    Attributes:
        dtype: of the backbone; heads are float32 always.
        trust_remote_code: run Python files that come with the checkpoint.
        elsewhere: leave the backbone's weights alone, because another server runs it.
    """

    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool
    elsewhere: bool = False


def read_own(folder: Path, options: Options) -> Loaded:
    """Read a folder written by ``paragone_models.files.saving``.

    Raises:
        ModelLoadError: if the spec is impossible, or a tensor is missing or of the wrong shape.
    """
    # The spec first: whatever is wrong with it is said before any weight is read.
    spec = ModelSpec.from_json((folder / SPEC_FILE).read_bytes())
    path = folder / checkpoints.HEAD_FILE
    if not path.is_file():
        raise ModelLoadError(f"{folder} has no {checkpoints.HEAD_FILE}: a model without its head would score at random")
    shapes = checkpoints.tensor_shapes([path])
    tensors = checkpoints.read_tensors([path], set(shapes))
    return Loaded(_with_linear_head(_backbone(folder, options), spec, tensors), spec)


def read_general_preference(folder: Path, options: Options, kind: str) -> Loaded:
    """Read the layout of the published general preference models.

    The folder is an ordinary causal LM's with ``value_head.weight`` [d, H] and perhaps ``prompt_head.weight`` [d/2, H]
    beside its tensors; nothing in config.json says so. One row is a Bradley-Terry reward. Temperature 0.1,
    L2 normalisation, the softmax gate and the overwritten last token are those of the published models.

    Raises:
        ModelLoadError: if the shapes do not fit each other or the kind asked for.
    """
    files = checkpoints.weight_files(folder)
    shapes = checkpoints.tensor_shapes(files)
    names = {"value_head.weight", "value_head.bias", "prompt_head.weight"} & set(shapes)
    rows = shapes["value_head.weight"][0]
    own: KindName = "bradley-terry" if rows == 1 else "general-preference"
    _chosen_kind(kind, (own,), f"{folder} has a value head of {rows} rows")
    # All these settings are the published models' own; their files say none of them.
    rules = KINDS[own]
    spec = ModelSpec(
        kind=own,
        dimension=rows,
        temperature=rules.default_temperature,
        gate="softmax" if rules.has_vector and "prompt_head.weight" in names else "none",
        normalise=rules.has_vector,
        max_length=min(_PUBLISHED_GPM_LENGTH, positions_of(_config(folder, options)) or _LONGEST),
        final_eos=True,
    )
    if not rules.has_vector:
        names.discard("prompt_head.weight")
    return Loaded(_with_linear_head(_backbone(folder, options), spec, checkpoints.read_tensors(files, names)), spec)


def read_output_row(folder: Path, options: Options, kind: str) -> Loaded:
    """Read a causal LM whose reward head is row 0 of its output embedding, as the Nemotron reward models in HF form.

        reward = h_last · W_out[0], the logit of vocabulary id 0 after the conversation's last token

    Nothing in the files says so, and any other causal LM would give the logit of an ordinary word: so this layout is
    read only when the caller names it. The other rows are never read. A reward of NeMo's may differ from it by a
    constant, its head's bias, which a row cannot hold and no comparison notices.

    Source: the model card of Llama-3.1-Nemotron-70B-Reward-HF.

    Raises:
        ModelLoadError: if the folder is no causal LM of a known family, its output embedding is the input's, or another
            kind was asked for.
    """
    config = _config(folder, options)
    architecture = (checkpoints.read_config(folder).get("architectures") or ["none"])[0]
    own = _chosen_kind(kind, ("bradley-terry",), "a row of the output embedding is one reward")
    if not architecture.endswith("ForCausalLM") or config.model_type not in _PLAIN_LOGITS:
        raise ModelLoadError(
            f"{folder} holds {architecture} ({config.model_type}); head='lm-head-row-0' reads causal LMs of the types "
            f"{', '.join(sorted(_PLAIN_LOGITS))}: leave head out for other layouts"
        )
    if config.tie_word_embeddings:
        raise ModelLoadError(
            f"{folder} has one matrix for input and output embedding: its row 0 is a word's vector, not a reward head"
        )
    spec = ModelSpec(kind=own, dimension=1, max_length=min(_PUBLISHED_ROW_LENGTH, positions_of(config) or _LONGEST))
    row = checkpoints.read_row(checkpoints.weight_files(folder), "lm_head.weight", 0)
    return Loaded(_with_linear_head(_backbone(folder, options), spec, {"value_head.weight": row}), spec)


def read_classifier(folder: Path, options: Options, kind: str) -> Loaded:
    """Read a transformers sequence classifier: one label is a Bradley-Terry reward, several are rated attributes.

    Raises:
        ModelLoadError: if any weight is missing or newly initialised, or the head is one this package cannot apply
            outside the model.
    """
    config = _config(folder, options)
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    possible: tuple[KindName, ...] = ("bradley-terry", "regression") if len(labels) == 1 else ("regression",)
    # One label can be rated too, if the caller says so; several are never one reward.
    own = _chosen_kind(kind, possible, f"{folder} is a classifier with {len(labels)} labels")
    spec = ModelSpec(
        kind=own,
        dimension=len(labels),
        attributes=tuple(labels) if KINDS[own].has_attributes else (),
        max_length=min(positions_of(config) or _LONGEST, _LONGEST),
    )
    if options.elsewhere:
        return _linear_classifier(folder, config, spec)
    # Loaded whole, because transformers knows how its classifiers are put together; then taken apart.
    model: Any = _with_weights(AutoModelForSequenceClassification, folder, config, options)
    backbone: nn.Module = getattr(model, model.base_model_prefix)
    if isinstance(getattr(model, "score", None), nn.Linear):
        head = RepresentationHead(config.get_text_config().hidden_size, spec, value_head=model.score.float())
        return Loaded(PreferenceNetwork(backbone, head), spec)
    if config.model_type in _FIRST_TOKEN:
        head = RepresentationHead(config.hidden_size, spec, value_head=_FirstTokenHead(model).float())
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # type: ignore[assignment]  # it is the head's now, in float32
        return Loaded(PreferenceNetwork(backbone, head), spec, first_token=True)
    raise ModelLoadError(
        f"{folder} is a {config.model_type} classifier, whose head is neither one linear layer named score nor one of "
        f"{', '.join(sorted(_FIRST_TOKEN))}: it cannot be hosted yet"
    )


def _chosen_kind(kind: str, possible: Sequence[KindName], finding: str) -> KindName:
    """Return the kind asked for, or the first of the possible ones if it is ``auto``."""
    for name in possible:
        if kind in ("auto", name):
            return name
    raise ModelLoadError(f"{finding}, which is {possible[0]}, not {kind}")


def _linear_classifier(folder: Path, config: Any, spec: ModelSpec) -> Loaded:
    """Return a classifier whose backbone runs elsewhere: its head alone is read."""
    files = checkpoints.weight_files(folder)
    names = {"score.weight", "score.bias"} & set(checkpoints.tensor_shapes(files))
    if "score.weight" not in names:
        raise ModelLoadError(
            f"{folder} is a {config.model_type} classifier without one linear layer named score: its backbone can run "
            "in this process only"
        )
    tensors = checkpoints.read_tensors(files, names)
    head = {name.replace("score", "value_head"): tensor for name, tensor in tensors.items()}
    return Loaded(_with_linear_head(AbsentBackbone(config), spec, head), spec)


class _FirstTokenHead(nn.Module):
    """The pooler and classifier of an encoder, applied to its first token's hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        pooler = getattr(model, "pooler", None) or getattr(getattr(model, str(model.base_model_prefix)), "pooler", None)
        self.pooler: nn.Module | None = pooler
        self.classifier: nn.Module = model.classifier  # type: ignore[assignment]  # torch types every attribute as Tensor | Module

    def forward(self, hidden: Tensor) -> Tensor:
        sequence = hidden[:, None, :]
        features = sequence if self.pooler is None else self.pooler(sequence)
        values: Tensor = self.classifier(features)
        return values


def _backbone(folder: Path, options: Options) -> nn.Module:
    # A file that was cut off is refused here, by its name.
    checkpoints.tensor_shapes(checkpoints.weight_files(folder))
    config = _config(folder, options)
    return AbsentBackbone(config) if options.elsewhere else _with_weights(AutoModel, folder, config, options)


def _with_weights(auto: Any, folder: Path, config: Any, options: Options) -> nn.Module:
    """Return the model with its weights, every one of them from the folder."""
    try:
        model, info = auto.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **_arguments(config, options),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded: {error}") from error
    # transformers only warns of weights that it made up.
    _refuse_incomplete(folder, info)
    network: nn.Module = model
    return network


def _config(folder: Path, options: Options) -> Any:
    checkpoints.read_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelLoadError(f"{folder}: {str(error).splitlines()[0]}") from error


def _arguments(config: Any, options: Options) -> dict[str, Any]:
    # Gemma 2 caps its attention logits, which scaled-dot-product attention leaves out without a word.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {
        "dtype": options.dtype,
        # Straight to the device where accelerate is installed; else by way of the CPU, moved by the caller.
        "device_map": {"": options.device} if options.device.type != "cpu" and is_accelerate_available() else None,
        "use_safetensors": True,
        "trust_remote_code": options.trust_remote_code,
        "attn_implementation": "eager" if capped else None,
    }


def _refuse_incomplete(folder: Path, info: Any) -> None:
    if info["mismatched_keys"]:
        raise ModelLoadError(
            f"{folder} has weights of other shapes than its config: {sorted(map(str, info['mismatched_keys']))[:3]}"
        )
    missing: Sequence[str] = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} weights ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}): "
            "they would be random numbers, so it is not served"
        )


def _with_linear_head(backbone: nn.Module, spec: ModelSpec, tensors: dict[str, Tensor]) -> PreferenceNetwork:
    config: Any = backbone.config
    hidden_size = config.get_text_config().hidden_size
    value_head = nn.Linear(hidden_size, spec.dimension, bias="value_head.bias" in tensors)
    head = RepresentationHead(hidden_size, spec, value_head=value_head)
    needed = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if needed != shapes:
        raise ModelLoadError(f"the head's tensors are {shapes}; kind {spec.kind} with this backbone needs {needed}")
    head.load_state_dict(tensors)
    return PreferenceNetwork(backbone, head)
