"""Writing a model as a folder that ``load_model`` and ``paragone serve`` read.

config.json and model.safetensors are the bare backbone's (transformers reads them too), head.safetensors is ours,
paragone.json is the spec, README.md the card.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from paragone_models.files.checkpoints import HEAD_FILE
from paragone_models.files.formats import SPEC_FILE
from paragone_models.network import PreferenceNetwork
from paragone_models.spec import ModelSpec

__all__ = ["save_model"]


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
        network: backbone (a transformers model, adapters merged) and linear head.
        spec: what the model is.
        tokenizer: a transformers tokenizer with its chat template, or None to leave it out.
        card: text of README.md, or None for no card.
        dtype: storage type of the backbone; its own unless given. The head is stored in float32.

    Raises:
        ValueError: if the head is not linear, or its shape does not fit the spec.
    """
    head = network.head
    if not isinstance(head.value_head, nn.Linear) or head.value_head.out_features != spec.dimension:
        raise ValueError(f"only a linear head of {spec.dimension} outputs can be saved, not {head.value_head}")
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
    (target / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    if card is not None:
        (target / "README.md").write_text(card, encoding="utf-8")
    for path in target.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that nobody but their owner can read, and a server is another user
    return target
