"""What the benchmarks of training share: decoders of a stated shape, and a watch on the steps of a Trainer.

Imports torch and transformers alone, so that a peer's interpreter can read it too.
"""

import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

# hidden size, width of the MLP, layers, query heads, key heads, head size, vocabulary
DECODERS = {
    "7M": ("qwen3", 256, 768, 6, 4, 4, 64, 8192),
    "30M": ("qwen3", 512, 1536, 10, 8, 4, 64, 8192),
    "1B": ("llama", 2048, 8192, 16, 32, 8, 64, 128256),
    "8B": ("llama", 4096, 14336, 32, 32, 8, 128, 128256),
}


def decoder_config(size: str, *, positions: int = 8192) -> Any:
    """Return the configuration of a decoder; 1B and 8B have the shapes of Llama 3."""
    model_type, hidden, width, layers, heads, key_heads, head_dim, vocabulary = DECODERS[size]
    return AutoConfig.for_model(
        model_type, hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, head_dim=head_dim, max_position_embeddings=positions, vocab_size=vocabulary,
        pad_token_id=0, bos_token_id=None, eos_token_id=1, tie_word_embeddings=size != "8B",
    )  # fmt: skip


def decoder(size: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Return a causal language model of that shape with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(decoder_config(size), dtype=dtype)


class Watch(TrainerCallback):
    """Measure from the start of the first step to the end of the last; what is before and after does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = now() - self._began


def now() -> float:
    """Return the clock once the device has done what it was given, in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
