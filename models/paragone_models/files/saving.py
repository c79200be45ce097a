"""Write a model: as a folder that ``load_model`` and ``paragone serve`` read, or its bare backbone for another server.

In a folder of ours config.json and model.safetensors are the bare backbone's (transformers reads them too),
head.safetensors is ours, paragone.json is the spec, README.md the card.

A bare backbone is copied file by file under the names that the bare transformers model has, so that no model has to fit
into memory. Nothing is guessed: the names must be exactly those of the bare model.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.backbones import home_of
from paragone_models.files.checkpoints import HEAD_FILE
from paragone_models.files.families.own import SPEC_FILE
from paragone_models.files.hashes import TOKENIZER_FILES
from paragone_models.files.heads import head_module, left_over, refuse_left_over, stored_head
from paragone_models.files.sources import resolve
from paragone_models.network import PreferenceNetwork, output_width
from paragone_models.rotary import depending_on_length
from paragone_models.spec import ModelSpec

__all__ = ["export_backbone", "is_storable", "read_refusal", "save_model"]


def save_model(
    folder: str | Path,
    network: PreferenceNetwork,
    spec: ModelSpec,
    tokenizer: Any | None,
    *,
    card: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model and return its folder.

    Args:
        folder: created where needed; files of the same names are replaced.
        network: backbone (a transformers model, adapters merged) and head of linear layers.
        tokenizer: a transformers tokenizer with its chat template, or None to leave it out.
        card: text of README.md, or None for no card.
        dtype: storage type of the backbone; its own unless given. The head is stored in float32.

    Raises:
        ValueError: if the head cannot be told from its tensors, or its shape does not fit the spec.
    """
    # A head with a pooler has no place in the layout.
    head = network.head
    if not is_storable(head.value_head, output_width(network.config), spec.dimension):
        raise ValueError(
            f"only a head of linear layers to {spec.dimension} numbers can be saved, not {head.value_head}"
        )
    if (head.prompt_head is not None) != (spec.gate == "softmax"):
        raise ValueError(f"the spec's gate is {spec.gate}, and the head has {'a' if head.prompt_head else 'no'} gate")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    backbone: Any = network.backbone
    state = backbone.state_dict()
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    backbone.save_pretrained(target, state_dict=state)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, target / HEAD_FILE, metadata={"format": "pt"})
    # The backbone is here now, wherever the spec's was.
    (target / SPEC_FILE).write_text(replace(spec, backbone=None).to_json(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    if card is not None:
        (target / "README.md").write_text(card, encoding="utf-8")
    for path in target.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that nobody but their owner can read, and a server is another user
    return target


def is_storable(head: nn.Module, width: int, dimension: int) -> bool:
    """Return whether a head from one width of states to so many numbers can be told from its tensors."""
    shapes = {f"value_head.{name}": tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    try:
        return repr(head_module(shapes, width, dimension)) == repr(head)
    except ModelLoadError:
        return False


_INDEX = "model.safetensors.index.json"
_CLASSES = ("id2label", "label2id", "num_labels", "problem_type")


def read_refusal(network: PreferenceNetwork, spec: ModelSpec, *, first_token: bool) -> str | None:
    """Return why the reads of a model cannot come from a server that returns last hidden states, or None if they can.

    In a causal backbone the state at any position is the last state of the sequence that ends there, so the gate's read
    is one more sequence, the prompt. A mean over positions would take every position's state.

    Args:
        first_token: True for encoders that are read at their first token.
    """
    if first_token or not network.causal:
        return f"a {network.config.model_type} backbone looks ahead, and such a server reads the last token only"
    if spec.rules.has_steps:
        return "it reads the end of each step, and such a server returns the hidden state of the last token only"
    if spec.pooling != "last":
        return f"its pooling is {spec.pooling}, and such a server returns the hidden state of the last token only"
    if ropes := depending_on_length(network.config):
        return (
            f"its rotary positions depend on a text's length ({', '.join(ropes)}), and such a server takes one set of "
            "angles for all lengths"
        )
    return None


def export_backbone(source: str, folder: str | Path, *, revision: str | None = None) -> Path:
    """Write the bare backbone of a model, and its tokenizer, and return the folder.

    Args:
        source: a built-in, a folder or a Hugging Face id, of any layout that ``load_model`` reads.
        folder: created where needed; it must be empty.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelLoadError: if the source cannot be found, its code comes with it, its tensors are not those of the bare
            model and a head, some would be left behind, or the folder is not empty.
    """
    where, _ = home_of(resolve(source, revision))
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelLoadError(f"{target} is there and not an empty folder: give another one")
    if (where.folder / checkpoints.ADAPTER_CONFIG).is_file():
        raise ModelLoadError(
            f"{source} has an adapter, which an export would leave behind: merge it (peft's merge_and_unload) and save "
            "the whole model first"
        )
    values = checkpoints.read_config(where.folder)
    # A server of another program would run without that code, and compute something else.
    if "auto_map" in values:
        raise ModelLoadError(f"{source} brings Python code of its own, which an export would leave behind")
    try:
        config = AutoConfig.from_pretrained(where.folder)
        with torch.device("meta"):
            bare: Any = AutoModel.from_config(config)
    except (ValueError, OSError, KeyError) as error:
        raise ModelLoadError(f"{source}: {str(error).splitlines()[0]}") from error
    files = checkpoints.weight_files(where.folder)
    shapes = checkpoints.tensor_shapes(files)
    renamed = _renamed(source, shapes, bare)
    head = stored_head(shapes, values)
    refuse_left_over(
        source, left_over(set(shapes) - set(renamed), frozenset() if head is None else head.claimed, shapes)
    )
    target.mkdir(parents=True, exist_ok=True)
    places = _copy(files, renamed, target)
    if set(places.values()) != {"model.safetensors"}:
        (target / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2) + "\n")
    config_without_classes = {name: value for name, value in values.items() if name not in _CLASSES}
    config_without_classes["architectures"] = [type(bare).__name__]
    (target / "config.json").write_text(json.dumps(config_without_classes, indent=2) + "\n", encoding="utf-8")
    for pattern in TOKENIZER_FILES:
        for path in where.tokenizer_folder.glob(pattern):
            shutil.copyfile(path, target / path.name)
    return target


def _renamed(source: str, shapes: dict[str, tuple[int, ...]], bare: Any) -> dict[str, str]:
    """Return the bare model's name of each tensor to copy, by its name in the files."""
    needed = {name: tuple(tensor.shape) for name, tensor in bare.state_dict().items()}
    prefix = f"{bare.base_model_prefix}."
    # A model with a head has its backbone under a prefix; a bare one has none.
    prefixed = any(name.startswith(prefix) for name in shapes)
    renamed = {name: name.removeprefix(prefix) for name in shapes if not prefixed or name.startswith(prefix)}
    renamed = {name: short for name, short in renamed.items() if short in needed}
    if missing := sorted(set(needed) - set(renamed.values())):
        raise ModelLoadError(f"{source} lacks {len(missing)} tensors of its backbone: {', '.join(missing[:3])}")
    for name, short in renamed.items():
        if shapes[name] != needed[short]:
            raise ModelLoadError(f"{source}: {name} has shape {shapes[name]}; its backbone needs {needed[short]}")
    return renamed


def _copy(files: list[Path], renamed: dict[str, str], target: Path) -> dict[str, str]:
    """Copy tensors file by file, and return the new file of each."""
    places: dict[str, str] = {}
    for path in files:
        tensors: dict[str, Tensor] = {}
        with checkpoints.opened(path) as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                if name in renamed:
                    tensors[renamed[name]] = stored.get_tensor(name)
        if tensors:
            save_file(tensors, target / path.name, metadata={"format": "pt"})
            (target / path.name).chmod(0o644)
            places |= dict.fromkeys(tensors, path.name)
    return places
