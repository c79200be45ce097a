"""InternLM2's reward models: Llama's computation under other names, and a reward at a token appended to the text.

Queries, keys and values are one matrix there, grouped by key head: G query heads, then a key, then a value. Everything
else is renamed. So the backbone runs as a Llama of transformers, without code of the publisher.

Source: the checkpoints' layout and configuration, and their ``get_score``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.families.backbone import LONGEST, chosen_kind, with_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.heads import left_over, refuse_left_over
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["INTERNLM2"]

_HEAD = "v_head.weight"
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_RENAMED = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def _read(place: Checkpoint) -> Loaded:
    """Read such a model as one reward, at the token that config.json names.

    Raises:
        ModelLoadError: if a tensor is missing, of another shape or left over; it names no reward token; or it is
            quantised, has an adapter, or is to run elsewhere.
    """
    folder, options = place.folder, place.options
    own = chosen_kind(place.kind, ("bradley-terry",), f"{folder} has one reward")
    token = place.stated.get("reward_token_id")
    if not isinstance(token, int):
        raise ModelLoadError(f"{folder} names no reward_token_id in its config.json: nothing tells where to read")
    ways = {
        "quantised weights": "quantization_config" in place.stated,
        "an adapter": options.adapter is not None,
        "an engine that runs its backbone elsewhere": options.elsewhere,
    }
    for way, asked in ways.items():
        if asked:
            raise ModelLoadError(f"{folder} is an InternLM2 model, which is not read with {way}: give plain weights")
    config = _config(place)
    head = checkpoints.read_tensors(checkpoints.weight_files(folder), {_HEAD})
    spec = ModelSpec(
        kind=own, dimension=1, max_length=min(positions_of(config) or LONGEST, LONGEST), reward_token=token
    )
    return Loaded(with_head(_backbone(place, config), spec, {"value_head.weight": head[_HEAD]}), spec)


def _config(place: Checkpoint) -> Any:
    stated = place.stated
    scaling = stated.get("rope_scaling") or {}
    rope: dict[str, Any] = {"rope_type": scaling.get("type", "default"), "rope_theta": stated.get("rope_theta", 10000)}
    if rope["rope_type"] != "default":
        rope["factor"] = scaling.get("factor", 1.0)
    if rope["rope_type"] not in ("default", "linear", "dynamic"):
        raise ModelLoadError(
            f"{place.folder} scales its rotary positions by {rope['rope_type']}: InternLM2 is read with linear or "
            "dynamic scaling"
        )
    values = {name: stated[name] for name in _SAME if stated.get(name) is not None}
    return LlamaConfig(**values, attention_bias=bool(stated.get("bias", False)), rope_parameters=rope)


def _backbone(place: Checkpoint, config: Any) -> LlamaModel:
    """Return a Llama with the checkpoint's weights, every one of them used."""
    with torch.device("meta"):
        model = LlamaModel(config)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    files = checkpoints.weight_files(place.folder)
    shapes = checkpoints.tensor_shapes(files)
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for path in files:
        for name, tensor in _tensors(path):
            own = _renamed(name, tensor, config)
            if own and own.keys() <= needed.keys():
                tensors |= {inner: part.to(place.options.dtype) for inner, part in own.items()}
            else:
                others.append(name)
    refuse_left_over(place.folder, left_over(others, {_HEAD, "output.weight"}, shapes))
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != needed:
        wrong = sorted(name for name in needed if found.get(name) != needed[name])
        raise ModelLoadError(
            f"{place.folder} lacks weights, or has them of other shapes than its config says, for {len(wrong)} tensors "
            f"of a Llama ({', '.join(wrong[:3])}): it is not served"
        )
    model.load_state_dict(tensors, assign=True)
    model.rotary_emb = LlamaRotaryEmbedding(config)  # computed, and not in the files
    return model


def _tensors(path: Path) -> list[tuple[str, Tensor]]:
    with checkpoints.opened(path) as file:
        return [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118 (no mapping)


def _renamed(name: str, tensor: Tensor, config: Any) -> Mapping[str, Tensor]:
    """Return a tensor by the name, or names, that Llama's parts have; none if it is no part of a backbone."""
    short = name.removeprefix("model.")
    if short == "tok_embeddings.weight":
        return {"embed_tokens.weight": tensor}
    if not short.startswith("layers."):
        return {short: tensor} if short == "norm.weight" else {}
    _, number, rest = short.split(".", 2)
    part, _, kind = rest.rpartition(".")
    if part == "attention.wqkv":
        return {f"layers.{number}.self_attn.{one}.{kind}": rows for one, rows in _split(tensor, config).items()}
    return {f"layers.{number}.{_RENAMED[part]}.{kind}": tensor} if part in _RENAMED else {}


def _split(joined: Tensor, config: Any) -> Mapping[str, Tensor]:
    """Return queries, keys and values of a joined matrix, or bias."""
    keys, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // keys
    if joined.shape[0] != keys * (group + 2) * size:
        return {"wqkv": joined}  # refused by its name
    heads = joined.reshape(keys, group + 2, size, *joined.shape[1:])
    parts = {"q_proj": heads[:, :group], "k_proj": heads[:, group : group + 1], "v_proj": heads[:, group + 1 :]}
    return {name: part.reshape(-1, *joined.shape[1:]).contiguous() for name, part in parts.items()}


INTERNLM2 = Family(
    "InternLM2's reward models (internlm2-…-reward)",
    found_by="`model_type` internlm2 and a tensor `v_head.weight`",
    becomes="`bradley-terry`, temperature 1: at the token `reward_token_id`, appended to each text. Its tokenizer "
    "brings code, which `trust_remote_code` allows; the model runs none",
    finds=lambda place: place.stated.get("model_type") == "internlm2" and _HEAD in place.shapes,
    reads=_read,
)
