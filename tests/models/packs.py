"""What the tests of packing share: tiny decoders of every family, random trees of sequences, one-by-one answers."""

import random
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from paragone_models.packing.packer import Forward, Packer, PromptStore
from paragone_models.text.reader import EncodeItem

VOCABULARY = 97
HIDDEN = 32
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Windows shorter than the sequences, caps low enough to matter.
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 20, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 20, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 20},
    "mixtral": {"num_local_experts": 4, "sliding_window": 24},
    "olmo3": {"sliding_window": 20},
    "phi3": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "starcoder2": {"sliding_window": 24},
}


def decoder(model_type: str, **changes: Any) -> Any:
    """Return a small decoder with weights large enough that what a token attends to matters."""
    config = AutoConfig.for_model(model_type, **{**SHAPE, **SPECIAL.get(model_type, {}), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation="eager").eval().requires_grad_(requires_grad=False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
            if parameter.dim() == 1 and "gemma" not in model_type:
                parameter.add_(1.0)
    return model


def random_items(seed: int, count: int = 10) -> list[EncodeItem]:
    """Return sequences that share runs of all lengths, also whole sequences, with reads anywhere.

    Prompt lengths are random too: what is shared must not depend on them.
    """
    rng = random.Random(seed)
    runs = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60))] for _ in range(3)]
    items = []
    for _ in range(count):
        tokens: list[int] = []
        for _ in range(rng.randrange(1, 4)):
            tokens += rng.choice(runs)[: rng.randrange(1, 60)]
        tokens += [rng.randrange(VOCABULARY) for _ in range(rng.randrange(30))]
        items.append(item(tokens, rng.randrange(len(tokens) + 1), spans=seed % 2 == 0))
    return items + items[:1]


def item(tokens: list[int], prompt_length: int, *, spans: bool = False) -> EncodeItem:
    """Return an item with a gate's read and the last token's, or with a span in between."""
    length = len(tokens)
    gate = (max(prompt_length - 1, 0), max(prompt_length, 1))
    reads = ((gate[0] // 2, gate[1]), (length - 1, length)) if spans else (gate, (length - 1, length))
    return EncodeItem(tokens, reads, prompt_length)


def siblings(prompt: int, responses: list[int], seed: int = 0) -> list[EncodeItem]:
    """Return responses of these lengths to one prompt, read at their last token."""
    rng = random.Random(seed)
    draw = lambda length: [rng.randrange(VOCABULARY) for _ in range(length)]  # noqa: E731
    stem = draw(prompt)
    sequences = [stem + draw(length) for length in responses]
    return [EncodeItem(tokens, ((len(tokens) - 1, len(tokens)),), prompt) for tokens in sequences]


def packer(forward: Forward, *, max_tokens: int = 4096, max_bytes: int = 0, deterministic: bool = False) -> Packer:
    return Packer(
        forward,
        torch.device("cpu"),
        HIDDEN,
        store=PromptStore(max_bytes),
        max_tokens=max_tokens,
        deterministic=deterministic,
    )


@torch.inference_mode()
def one_by_one(model: Any, items: list[EncodeItem]) -> Tensor:
    """Return the reads of each sequence, run alone through the model's own eager attention. [n, R, H]"""
    states = []
    for one in items:
        hidden = model(input_ids=torch.tensor([list(one.token_ids)]), use_cache=False).last_hidden_state[0].float()
        states.append(torch.stack([hidden[start:stop].mean(0) for start, stop in one.reads]))
    return torch.stack(states)


def error(states: Tensor, reference: Tensor) -> float:
    """Return the largest difference, in parts of the largest value."""
    return float((states - reference).abs().max() / reference.abs().max())


def reference_flex(
    query: Tensor, key: Tensor, value: Tensor, *, score_mod: Any, block_mask: Any, scale: float, enable_gqa: bool
) -> Tensor:
    """Return what flex attention computes, by plain products, which a CPU can differentiate."""
    group = query.shape[1] // key.shape[1]
    assert enable_gqa == (group > 1)
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    rows, keys = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    none = torch.tensor(0)
    logits = query @ key.transpose(2, 3) * scale
    if score_mod is not None:
        logits = score_mod(logits, none, none, rows, keys)
    logits = logits.masked_fill(~block_mask.mask_mod(none, none, rows, keys), -torch.inf)
    return torch.softmax(logits, -1) @ value
