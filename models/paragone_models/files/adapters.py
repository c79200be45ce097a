"""Adapters: small files that change a backbone's weights, merged into them at load.

An adapter lies in a folder of its own and names its base, or beside the base's weights. It is merged in float32, and
the sum is cast. A merged backbone is an ordinary one, so that every way to run it computes with the same weights.
"""

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.checkpoints import ADAPTER_CONFIG
from paragone_models.files.heads import is_harmless, refuse_left_over
from paragone_models.files.sources import Resolved, resolve

__all__ = ["adapter_shapes", "base_of", "cast", "find_adapter", "merge", "read_adapter", "without_adapter"]

_PREFIX = "base_model.model."


def find_adapter(folder: Path) -> Path | None:
    """Return the folder if it holds an adapter, or None.

    Raises:
        ModelLoadError: if adapters cannot be applied here.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    if importlib.util.find_spec("peft") is None:
        raise ModelLoadError(f"{folder} has an adapter, and peft is not installed: pip install peft")
    return folder


def base_of(where: Resolved) -> Resolved:
    """Return the files of the model that an adapter changes: those beside it, or those that it names.

    Raises:
        ModelLoadError: if its base is not named or not found.
    """
    if checkpoints.has_weights(where.folder):
        return where
    settings = _settings(where.folder)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelLoadError(
            f"{where.source} is an adapter, and its {ADAPTER_CONFIG} names no base_model_name_or_path: write the "
            "folder or Hugging Face id of its base there"
        )
    # As it was written on the machine of the training; moved together, the two folders lie side by side.
    beside = [folder for folder in (where.folder / base, where.folder.parent / base) if folder.is_dir()]
    if not Path(base).is_absolute() and beside:
        return resolve(str(beside[0]), None)
    try:
        return resolve(base, settings.get("revision"))
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{where.source} is an adapter, and its base cannot be had: {error}; correct base_model_name_or_path in "
            f"its {ADAPTER_CONFIG}"
        ) from error


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelLoadError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ModelLoadError(f"{folder / ADAPTER_CONFIG} does not hold a JSON object")
    return settings


def adapter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's tensors, by the names that they have in the model it was trained on."""
    return {_stripped(name): shape for name, shape in _stored(folder).items()}


def read_adapter(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Return some of an adapter's tensors in float32, by the names that they have in the model it was trained on."""
    stored = {_stripped(name): name for name in _stored(folder)}
    tensors = checkpoints.read_tensors(checkpoints.adapter_files(folder), {stored[name] for name in names})
    return {name: tensors[stored[name]] for name in names}


def _stored(folder: Path) -> dict[str, tuple[int, ...]]:
    return checkpoints.tensor_shapes(checkpoints.adapter_files(folder))


def _stripped(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Yield a folder with the same files but the adapter's, which transformers would apply by rules of its own."""
    if not (folder / ADAPTER_CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="paragone-base-") as place:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                Path(place, path.name).symlink_to(path.resolve())
        yield Path(place)


def merge(backbone: nn.Module, folder: Path, head: Collection[str]) -> nn.Module:
    """Return a bare backbone with an adapter merged into its weights.

    Args:
        backbone: in float32.
        folder: of the adapter.
        head: names of tensors that the head takes.

    Raises:
        ModelLoadError: if the adapter cannot be merged, lacks a tensor or has one that would not be applied.
    """
    import peft

    config: Any = peft.PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise ModelLoadError(
            f"{folder} is an adapter of type {config.peft_type}, which adds tokens and changes no weight: it cannot be "
            "merged, and is not served"
        )
    # What it was trained on has another name and class than the bare backbone here, and both are settled.
    config = replace(config, auto_mapping=None, task_type=None, base_model_name_or_path=None)
    modules = [name for name, _ in backbone.named_modules()]
    saved = [part for part in config.modules_to_save or () if any(name.split(".")[-1] == part for name in modules)]
    config.modules_to_save = saved or None
    with warnings.catch_warnings():
        # peft asks transformers by a name that it has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        changed = peft.get_peft_model(backbone, config)
    given = _for_bare(folder, backbone, head)
    _refuse_mismatch(folder, changed, given)
    peft.set_peft_model_state_dict(changed, given)
    merged: nn.Module = changed.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged


def _for_bare(folder: Path, backbone: Any, head: Collection[str]) -> dict[str, Tensor]:
    """Return the adapter's tensors by the names that they have on a bare backbone, without those of heads."""
    stored = _stored(folder)
    prefix = f"{backbone.base_model_prefix}."
    names = [name for name in stored if _stripped(name) not in head and not is_harmless(_stripped(name))]
    wrapped = any(name.removeprefix(_PREFIX).startswith(prefix) for name in names)
    tensors = checkpoints.read_tensors(checkpoints.adapter_files(folder), set(names))
    return {
        _PREFIX + (name.removeprefix(_PREFIX).removeprefix(prefix) if wrapped else name.removeprefix(_PREFIX)): tensor
        for name, tensor in tensors.items()
    }


def _refuse_mismatch(folder: Path, changed: Any, given: Mapping[str, Tensor]) -> None:
    import peft

    expected = set(peft.get_peft_model_state_dict(changed, save_embedding_layers=False))
    places = expected | set(changed.state_dict())
    refuse_left_over(f"the adapter {folder}", [name for name in given if name not in places])
    if missing := sorted(expected - set(given)):
        raise ModelLoadError(
            f"the adapter {folder} lacks {len(missing)} tensors ({', '.join(missing[:3])}): its {ADAPTER_CONFIG} asks "
            "for them, and they would be random numbers"
        )


def cast(model: Any, dtype: torch.dtype) -> None:
    """Cast a model's weights as loading in that dtype would have: no buffers, and not what a model keeps in float32."""
    kept = list(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept += getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, parameter in model.named_parameters():
        if not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)
