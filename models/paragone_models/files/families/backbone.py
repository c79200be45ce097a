"""Read a backbone: every weight of it from the folder, and none of the folder's left over.

What is common to all families: their configuration, the shapes of their tensors, an adapter on top, and the head.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_accelerate_available

from paragone_models.errors import ModelLoadError, reason_of
from paragone_models.files import checkpoints, quantised
from paragone_models.files.adapters import adapter_shapes, cast, merge, read_adapter, without_adapter
from paragone_models.files.heads import head_module, left_over, refuse_left_over, stored_head
from paragone_models.kinds import KindName
from paragone_models.network import AbsentBackbone, PreferenceNetwork, RepresentationHead, output_width
from paragone_models.spec import ModelSpec

__all__ = [
    "LONGEST",
    "Options",
    "all_shapes",
    "bare_backbone",
    "chosen_kind",
    "config_of",
    "read_backbone",
    "read_head",
    "untrusted",
    "with_head",
    "with_weights",
    "without_place",
]

LONGEST = 16384
"""Tokens of a conversation, unless a model or its caller says otherwise."""


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


def read_backbone(folder: Path, options: Options) -> nn.Module:
    """Return a bare backbone, without the head that may lie beside it: another one belongs to it.

    Raises:
        ModelLoadError: if a tensor is missing, of the wrong shape or left over.
    """
    if options.backbone is not None:
        return options.backbone
    own = stored_head(all_shapes(folder, options), checkpoints.read_config(folder))
    return bare_backbone(folder, options, () if own is None else own.claimed)


def all_shapes(folder: Path, options: Options) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors: of its weights, of heads beside them, and of its adapter, which wins."""
    if options.adapter is None:
        return checkpoints.tensor_shapes([*checkpoints.weight_files(folder), *checkpoints.head_files(folder)])
    files = [*checkpoints.weight_files(folder), *checkpoints.head_files(options.adapter)]
    return checkpoints.tensor_shapes(files) | adapter_shapes(options.adapter)


def read_head(folder: Path, options: Options, names: Collection[str]) -> dict[str, Tensor]:
    """Return tensors of a head in float32, wherever they lie."""
    if options.adapter is None:
        files = [*checkpoints.weight_files(folder), *checkpoints.head_files(folder)]
        return checkpoints.read_tensors(files, set(names))
    changed = set(names) & set(adapter_shapes(options.adapter))
    files = [*checkpoints.weight_files(folder), *checkpoints.head_files(options.adapter)]
    return checkpoints.read_tensors(files, set(names) - changed) | read_adapter(options.adapter, changed)


def bare_backbone(folder: Path, options: Options, claimed: Collection[str] = ()) -> nn.Module:
    """Return the bare backbone; ``claimed`` are the names of tensors that the head takes."""
    config = config_of(folder, options)
    if options.elsewhere:
        refuse_left_over(folder, without_place(folder, config, claimed, options))
        return AbsentBackbone(config)
    # A file that was cut off is refused here, by its name.
    checkpoints.tensor_shapes(checkpoints.weight_files(folder))
    return with_weights(AutoModel, folder, config, options, claimed)


def without_place(folder: Path, config: Any, claimed: Collection[str], options: Options) -> list[str]:
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


def with_weights(auto: Any, folder: Path, config: Any, options: Options, claimed: Collection[str] = ()) -> nn.Module:
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


def config_of(folder: Path, options: Options) -> Any:
    """Return transformers' configuration of a folder.

    Raises:
        ModelLoadError: if it cannot be read, or needs code that is not trusted.
    """
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


def chosen_kind(kind: str, possible: Sequence[KindName], finding: str) -> KindName:
    """Return the kind asked for, or the first of the possible ones if it is ``auto``."""
    for name in possible:
        if kind in ("auto", name):
            return name
    raise ModelLoadError(f"{finding}, which is {possible[0]}, not {kind}")


def with_head(backbone: nn.Module, spec: ModelSpec, tensors: dict[str, Tensor]) -> PreferenceNetwork:
    """Return a backbone with a head of linear layers on it.

    Args:
        tensors: of the head, by the names of ``RepresentationHead``, float32.

    Raises:
        ModelLoadError: if they do not fit the spec and the backbone.
    """
    width = output_width(backbone.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    value_head = head_module(shapes, width, spec.dimension)
    head = RepresentationHead(width, spec, value_head=value_head, gate_bias="prompt_head.bias" in shapes)
    needed = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if needed != shapes:
        raise ModelLoadError(f"the head's tensors are {shapes}; kind {spec.kind} with this backbone needs {needed}")
    head.load_state_dict(tensors)
    return PreferenceNetwork(backbone, head)
