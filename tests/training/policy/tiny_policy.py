"""What the tests of the policy loop share: a policy of a few thousand weights, prompts, and a recipe for them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.scratch.decoder import train_tokenizer
from paragone_training.settings import parse

WORDS = "water bottles every year work kids teams fit learn economy. What is it? Go on, tell me"
LOSSES = {
    "sppo": {"eta": 2.0},
    "gpo": {"beta": 0.5},
    "inpo": {"eta": 0.5, "tau": 0.1},
    "egpo": {"step": 2.0, "tau": 0.1},
    "omwu": {"step": 1.0, "tau": 0.1},
    "dpo": {"beta": 0.1},
    "ipo": {"tau": 0.5},
}


def save_policy(folder: Path, *, seed: int = 0, positions: int = 64) -> Path:
    """Write a policy of one layer with random weights."""
    tokenizer = train_tokenizer([WORDS] * 3, 300, max_length=positions)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8.0)  # far from uniform, so that a wrong token or weight shows
        model.get_input_embeddings().weight[tokenizer.eos_token_id].mul_(6.0)  # and some responses end early
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, *, train: int = 6, test: int = 3) -> Path:
    """Write prompts of both splits."""
    rows = [
        {"id": f"p{number}", "prompt": f"What is {number}?", "split": "train" if number < train else "test"}
        for number in range(train + test)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tables(method: str, policy: Path, prompts: Path, url: str | None, **changes: Any) -> dict[str, Any]:
    """Return the tables of a recipe; a change is called ``section__key``."""
    made: dict[str, Any] = {
        "method": method,
        "policy": {"source": str(policy)},
        "data": {"prompts": [str(prompts)]},
        "oracle": {"url": url or "http://127.0.0.1:9"},
        "loss": dict(LOSSES[method]),
        "sampling": {"responses": 3, "max_new_tokens": 8, "batch": 6, "unfinished": "keep"},
        "training": {
            "iterations": 2,
            "pairs_per_step": 4,
            "pairs_per_pass": 2,
            "learning_rate": 0.01,
            "log_steps": 1,
        },
        "targets": {"labels": "sampled"} if method == "dpo" else {},
        "reference": {"policy": "previous"} if method in ("sppo", "gpo") else {},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            made.setdefault(section, {})[key] = value
        else:
            made[section] = value
    return made


def recipe(method: str, policy: Path, prompts: Path, url: str | None = None, **changes: Any) -> PolicyRecipe:
    """Return a small recipe."""
    return parse(PolicyRecipe, tables(method, policy, prompts, url, **changes))
