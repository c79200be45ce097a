"""Tiny random checkpoints in the layouts of publishers, and the states of plain transformers to compute from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tests.models import tiny

SIZES = {
    "vocab_size": 400,
    "hidden_size": tiny.HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": tiny.POSITIONS,
    "initializer_range": 0.3,
}
PROMPT = "Close the main street to cars?"
RESPONSES = ["Families walk through it on every market day.", "no", "Children share the work in a garden."]


def backbone(model_type: str = "llama", **values: Any) -> Any:
    """Return a bare random model of transformers."""
    torch.manual_seed(3)
    return AutoModel.from_config(AutoConfig.for_model(model_type, **{**SIZES, **values})).eval()


def save(
    folder: Path,
    bare: Any,
    heads: dict[str, Tensor],
    *,
    architecture: str,
    template: str | None = None,
    prefix: str = "model.",
    **config: Any,
) -> Path:
    """Write a model as its publisher does: backbone under a prefix, heads beside it, a config that says so."""
    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in bare.state_dict().items()} | heads
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = {**bare.config.to_dict(), "architectures": [architecture], **config}
    (folder / "config.json").write_text(json.dumps(stated, default=str))
    if template is not None:
        tiny.make_tokenizer(template, adds_bos=True).save_pretrained(folder)
    return folder


def states(bare: Any, token_ids: list[int]) -> Tensor:
    """Return transformers' last hidden states of one sequence. [T, H]"""
    with torch.no_grad():
        hidden: Tensor = bare(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
    return hidden


def ids(folder: Path, prompt: str, response: str, **options: Any) -> list[int]:
    """Return the tokens of a conversation by the tokenizer's own chat template."""
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))
