"""The checkpoint layouts that can be hosted, our own and other people's.

Our folders, published general preference models, HF classifiers, and causal LMs that keep a reward in their output
embedding.

Each ``read_*`` returns a network and the spec that belongs to it, and refuses a head that is missing or random.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_accelerate_available

from paragone_models.errors import ModelLoadError, reason_of
from paragone_models.files import checkpoints, quantised
from paragone_models.files.adapters import adapter_shapes, cast, merge, read_adapter, without_adapter
from paragone_models.files.heads import StoredHead, head_module, left_over, refuse_left_over, standardised, stored_head
from paragone_models.kinds import KINDS, KindName
from paragone_models.network import AbsentBackbone, PreferenceNetwork, RepresentationHead, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = [
    "SPEC_FILE",
    "Loaded",
    "Options",
    "find_head",
    "headless",
    "read_backbone",
    "read_classifier",
    "read_output_row",
    "read_own",
    "read_stored_head",
    "untrusted",
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
        adapter: folder of an adapter to be merged into the backbone, or None.
        backbone: the backbone, if it is in memory already.
    """

    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool
    elsewhere: bool = False
    adapter: Path | None = None
    backbone: nn.Module | None = None


def read_own(folder: Path, options: Options, home: Path | None = None) -> Loaded:
    """Read a folder written by ``paragone_models.files.saving``.

    Args:
        home: folder of the backbone, of a head that was saved alone.

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
    backbone = _backbone(folder, options) if home is None else read_backbone(home, options)
    return Loaded(_with_head(backbone, spec, tensors), spec)


def read_backbone(folder: Path, options: Options) -> nn.Module:
    """Return a bare backbone, without the head that may lie beside it: another one belongs to it.

    Raises:
        ModelLoadError: if a tensor is missing, of the wrong shape or left over.
    """
    if options.backbone is not None:
        return options.backbone
    own = stored_head(_all_shapes(folder, options), checkpoints.read_config(folder))
    return _backbone(folder, options, () if own is None else own.claimed)


def read_stored_head(folder: Path, options: Options, kind: str, found: StoredHead) -> Loaded:
    """Read a backbone with a head beside its tensors, of which config.json says nothing.

    ``value_head.weight`` [d, H], perhaps with ``prompt_head.weight`` [d/2, H], is the layout of the published general
    preference models and of OpenRLHF; temperature 0.1, L2 normalisation, the softmax gate and the overwritten last
    token are theirs. Under any other name a head of one row is a Bradley-Terry reward, and one of several rows rates.

    Rewards that a trainer standardises are (reward − mean) / std; a temperature of 1 / std then keeps preferences as
    they were trained.

    Raises:
        ModelLoadError: if the shapes do not fit each other or the kind asked for.
    """
    published = found.prefix == "value_head"
    possible: tuple[KindName, ...] = ("bradley-terry", "regression")
    if found.rows > 1:
        possible = ("general-preference",) if published else ("regression",)
    own = _chosen_kind(kind, possible, f"{folder} has a head {found.prefix} of {found.rows} rows")
    rules = KINDS[own]
    if found.gated and not rules.has_vector and found.rows > 1:
        raise ModelLoadError(f"{folder} has a gate, prompt_head.weight, beside a head of kind {own}, which has none")
    tensors, std = standardised(found, _read_head(folder, options, found.claimed))
    if not rules.has_vector:
        # The gate of a single row weighs it by softmax(x) = 1.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("prompt_head")}
    config = _config(folder, options)
    longest = _PUBLISHED_GPM_LENGTH if published else _LONGEST
    spec = ModelSpec(
        kind=own,
        dimension=found.rows,
        attributes=tuple(f"LABEL_{row}" for row in range(found.rows)) if rules.has_attributes else (),
        temperature=rules.default_temperature / std,
        gate="softmax" if rules.has_vector and found.gated else "none",
        normalise=rules.has_vector,
        max_length=min(longest, positions_of(config) or _LONGEST),
        final_eos=published,
    )
    return Loaded(_with_head(_backbone(folder, options, found.claimed), spec, tensors), spec)


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
    return Loaded(_with_head(_backbone(folder, options), spec, {"value_head.weight": row}), spec)


def read_classifier(folder: Path, options: Options, kind: str) -> Loaded:
    """Read a transformers sequence classifier: one label is a Bradley-Terry reward, several are rated attributes.

    Where config.json says nothing of labels there are as many as the head has rows; transformers would take two.

    Raises:
        ModelLoadError: if any weight is missing, newly initialised or left over, or the head is one this package cannot
            apply outside the model.
    """
    config = _config(folder, options)
    shapes = _all_shapes(folder, options)
    rows = _rows(shapes)
    stated = checkpoints.read_config(folder)
    if rows is not None and not any(stated.get(name) for name in ("id2label", "num_labels")):
        config.num_labels = rows
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
        return _linear_classifier(folder, config, spec, options)
    # Loaded whole, because transformers knows how its classifiers are put together; then taken apart.
    linear = {"score.weight", "score.bias"} & set(shapes)
    model: Any = _with_weights(AutoModelForSequenceClassification, folder, config, options, linear)
    backbone: nn.Module = getattr(model, model.base_model_prefix)
    if isinstance(getattr(model, "score", None), nn.Linear):
        # From the files: read in half precision the head would be another one. Its class has no place for a bias.
        tensors = quantised.dense_head(folder, config, model.score) or _read_head(folder, options, linear)
        head = {name.replace("score", "value_head"): tensor for name, tensor in tensors.items()}
        return Loaded(_with_head(backbone, spec, head), spec)
    if config.model_type in _FIRST_TOKEN:
        module = _FirstTokenHead(model)
        _restore_precision(module, model, folder, options)
        head_of = RepresentationHead(config.hidden_size, spec, value_head=module)
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # type: ignore[assignment]  # it is the head's now, in float32
        return Loaded(PreferenceNetwork(backbone, head_of), spec, first_token=True)
    raise ModelLoadError(
        f"{folder} is a {config.model_type} classifier, whose head is neither one linear layer named score nor one of "
        f"{', '.join(sorted(_FIRST_TOKEN))}: it cannot be hosted yet"
    )


def _rows(shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Return the rows of a classifier's last layer, or None if it has another name."""
    for name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
        if len(shapes.get(name, ())) == 2:
            return shapes[name][0]
    return None


def _restore_precision(head: nn.Module, model: nn.Module, folder: Path, options: Options) -> None:
    """Make a head's parameters those of the files in float32; they were loaded in the backbone's dtype."""
    own = {id(parameter) for parameter in head.parameters()}
    names = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}
    stored = _read_head(folder, options, set(names) & set(_all_shapes(folder, options)))
    head.float()
    for name, tensor in stored.items():
        names[name].data.copy_(tensor)


def _chosen_kind(kind: str, possible: Sequence[KindName], finding: str) -> KindName:
    """Return the kind asked for, or the first of the possible ones if it is ``auto``."""
    for name in possible:
        if kind in ("auto", name):
            return name
    raise ModelLoadError(f"{finding}, which is {possible[0]}, not {kind}")


def _linear_classifier(folder: Path, config: Any, spec: ModelSpec, options: Options) -> Loaded:
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
    return Loaded(_with_head(_backbone(folder, options, names), spec, head), spec)


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


def _all_shapes(folder: Path, options: Options) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors: of its weights, of heads beside them, and of its adapter, which wins."""
    if options.adapter is None:
        return checkpoints.tensor_shapes([*checkpoints.weight_files(folder), *checkpoints.head_files(folder)])
    files = [*checkpoints.weight_files(folder), *checkpoints.head_files(options.adapter)]
    return checkpoints.tensor_shapes(files) | adapter_shapes(options.adapter)


def _read_head(folder: Path, options: Options, names: Collection[str]) -> dict[str, Tensor]:
    """Return tensors of a head in float32, wherever they lie."""
    if options.adapter is None:
        files = [*checkpoints.weight_files(folder), *checkpoints.head_files(folder)]
        return checkpoints.read_tensors(files, set(names))
    changed = set(names) & set(adapter_shapes(options.adapter))
    files = [*checkpoints.weight_files(folder), *checkpoints.head_files(options.adapter)]
    return checkpoints.read_tensors(files, set(names) - changed) | read_adapter(options.adapter, changed)


def find_head(folder: Path, options: Options) -> StoredHead | None:
    """Return the head that lies among a model's tensors, or beside them, or None.

    Raises:
        ModelLoadError: if there are several, or the rewards are read in a way that its tensors do not tell.
    """
    config = checkpoints.read_config(folder)
    found = stored_head(_all_shapes(folder, options), config)
    # InternLM2's and its like append this token and read there; the head's shape does not tell.
    if found is not None and config.get("reward_token_id") is not None:
        raise ModelLoadError(
            f"{folder} reads its reward at a token of its own (reward_token_id {config['reward_token_id']}), which is "
            "not supported: its rewards would be read at another token"
        )
    return found


def headless(folder: Path, options: Options) -> str:
    """Return why a folder of none of the layouts is not served, and what to do."""
    values = checkpoints.read_config(folder)
    architecture = (values.get("architectures") or ["none"])[0]
    config = _config(folder, options)
    names = _without_place(folder, config, (), options)
    if names:
        return (
            f"{folder} holds {architecture} with tensors that are no part of its backbone ({', '.join(names[:3])}), "
            "and whose use nothing here knows. If one is a linear layer on the last token's state, call it "
            "score.weight [rows, hidden size] and score.bias; of several, with a ReLU between them, score.0.weight, "
            "score.2.weight"
        )
    finding = (
        f"{folder} holds {architecture} without a value head: neither a sequence classifier, nor a general preference "
        "model, nor a folder of this project. A head that is not there would be random numbers, so it is not served"
    )
    if not _may_have_a_row(architecture, config):
        return f"{finding}: give the reward model that was trained from it"
    return (
        f"{finding}: give the reward model that was trained from it. Only if its model card says that the reward is "
        "row 0 of the output embedding, as Llama-3.1-Nemotron-70B-Reward-HF's does, load it with head='lm-head-row-0'"
    )


def _may_have_a_row(architecture: str, config: Any) -> bool:
    return (
        architecture.endswith("ForCausalLM") and config.model_type in _PLAIN_LOGITS and not config.tie_word_embeddings
    )


def _backbone(folder: Path, options: Options, claimed: Collection[str] = ()) -> nn.Module:
    """Return the bare backbone; ``claimed`` are the names of tensors that the head takes."""
    config = _config(folder, options)
    if options.elsewhere:
        refuse_left_over(folder, _without_place(folder, config, claimed, options))
        return AbsentBackbone(config)
    # A file that was cut off is refused here, by its name.
    checkpoints.tensor_shapes(checkpoints.weight_files(folder))
    return _with_weights(AutoModel, folder, config, options, claimed)


def _without_place(folder: Path, config: Any, claimed: Collection[str], options: Options) -> list[str]:
    """Return the tensors that a backbone has no place for, found without loading it."""
    shapes = checkpoints.tensor_shapes(checkpoints.weight_files(folder))
    # transformers renames or joins the tensors of some: then only loading tells.
    with torch.device("meta"):
        bare: Any = AutoModel.from_config(config, trust_remote_code=options.trust_remote_code)
    places = set(bare.state_dict())
    prefix = f"{bare.base_model_prefix}."
    plain = {name: name.removeprefix(prefix) for name in shapes}
    if not places <= set(plain.values()):
        return []
    ignored = [re.compile(pattern) for pattern in bare._keys_to_ignore_on_load_unexpected or ()]  # noqa: SLF001
    names = [
        name for name, short in plain.items() if short not in places and not any(one.search(name) for one in ignored)
    ]
    return left_over(names, claimed, shapes)


def _with_weights(auto: Any, folder: Path, config: Any, options: Options, claimed: Collection[str] = ()) -> nn.Module:
    """Return the model with its weights, every one of them from the folder, and none of the folder's left over."""
    quantised.prepare(folder, config, options.device)
    # A small change is lost where a weight is rounded before it is added.
    read = options if options.adapter is None else replace(options, dtype=torch.float32, device=torch.device("cpu"))
    try:
        with without_adapter(folder) as place, _reported_here():
            model, info = auto.from_pretrained(
                place,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **_arguments(folder, config, read),
            )
            quantised.finish(model, read.dtype)
    except Exception as error:
        raise ModelLoadError(quantised.unloadable(folder, read.device, error)) from error
    # transformers only warns of weights that it made up; those of an adapter's head are read from there.
    from_adapter = set() if options.adapter is None else set(adapter_shapes(options.adapter))
    _refuse_incomplete(folder, info, from_adapter & set(claimed))
    shapes = checkpoints.tensor_shapes(checkpoints.weight_files(folder))
    refuse_left_over(folder, left_over(info["unexpected_keys"], claimed, shapes))
    network: nn.Module = model
    return network if options.adapter is None else _merged(network, config, options, claimed)


@contextmanager
def _reported_here() -> Iterator[None]:
    """Keep transformers from reporting, as harmless, the tensors that are refused here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _merged(model: Any, config: Any, options: Options, claimed: Collection[str]) -> nn.Module:
    """Return a model with its adapter merged into the backbone, in the dtype asked for."""
    assert options.adapter is not None
    if quantised.method_of(config) is not None:
        raise ModelLoadError(
            f"the adapter {options.adapter} changes quantised weights, into which it cannot be merged: name the base "
            "that is not quantised in its adapter_config.json"
        )
    prefix = str(model.base_model_prefix)
    backbone = getattr(model, prefix, model)
    # A classifier's other parameters are its head, which is read from the files in float32.
    others = {
        name for name, _ in model.named_parameters() if backbone is not model and not name.startswith(f"{prefix}.")
    }
    merged = merge(backbone, options.adapter, {*claimed, *others})
    if backbone is not model:
        setattr(model, prefix, merged)
        cast(model, options.dtype)
        return model  # type: ignore[no-any-return]  # transformers' own
    cast(merged, options.dtype)
    return merged


def _config(folder: Path, options: Options) -> Any:
    stated = checkpoints.read_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # strict checks of a configuration raise errors of their own
        if "auto_map" in stated and not options.trust_remote_code:
            raise ModelLoadError(untrusted(folder)) from error
        raise ModelLoadError(f"the config.json of {folder} cannot be used: {reason_of(error)}") from error


def untrusted(source: object) -> str:
    """Return that code which came with a source was not run, and what to do."""
    return (
        f"{source} brings Python code of its own, which was not run: if you trust whoever wrote it, set "
        "trust_remote_code (--model NAME=SOURCE,trust_remote_code=true)"
    )


def _arguments(folder: Path, config: Any, options: Options) -> dict[str, Any]:
    # Gemma 2 caps its attention logits, which scaled-dot-product attention leaves out without a word.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {
        "dtype": options.dtype,
        # Straight to the device where accelerate is installed; else by way of the CPU, moved by the caller.
        "device_map": {"": options.device} if options.device.type != "cpu" and is_accelerate_available() else None,
        # Pickles only where there is nothing else; transformers opens them with ``weights_only``.
        "use_safetensors": checkpoints.weight_files(folder)[0].suffix == ".safetensors",
        "trust_remote_code": options.trust_remote_code,
        "attn_implementation": "eager" if capped else None,
    }


def _refuse_incomplete(folder: Path, info: Any, elsewhere: Collection[str]) -> None:
    if info["mismatched_keys"]:
        raise ModelLoadError(
            f"{folder} has weights of other shapes than its config: {sorted(map(str, info['mismatched_keys']))[:3]}"
        )
    missing: Sequence[str] = sorted(set(info["missing_keys"]) - set(elsewhere))
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} weights ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}): "
            "they would be random numbers, so it is not served"
        )


def _with_head(backbone: nn.Module, spec: ModelSpec, tensors: dict[str, Tensor]) -> PreferenceNetwork:
    width = output_width(backbone.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    value_head = head_module(shapes, width, spec.dimension)
    head = RepresentationHead(width, spec, value_head=value_head, gate_bias="prompt_head.bias" in shapes)
    needed = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if needed != shapes:
        raise ModelLoadError(f"the head's tensors are {shapes}; kind {spec.kind} with this backbone needs {needed}")
    head.load_state_dict(tensors)
    return PreferenceNetwork(backbone, head)
