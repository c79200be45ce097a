"""From a backbone to a packed engine: the forward pass through the model's own code, and a check of the whole thing.

What the configuration promises is tried once before it is believed: a few sequences, packed and one by one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paragone_models.encoding import EncodeItem
from paragone_models.packing.attention import packed
from paragone_models.packing.packer import Forward, Packer
from paragone_models.packing.pieces import attend_pieces
from paragone_models.packing.prompts import PromptStore
from paragone_models.packing.run import Attend, Run

__all__ = ["disagreement", "through_model"]

_STEM, _TAILS, _OTHER = 24, (3, 9), 7
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.1


def through_model(backbone: nn.Module, attend: Attend = attend_pieces) -> Forward:
    """Return a forward pass that runs the model's own code, with our attention in it.

    Args:
        backbone: a bare transformers decoder that ``support.refusal`` has nothing against.
        attend: the attention.
    """
    config: Any = backbone.config

    def forward(run: Run, tokens: Tensor, positions: Tensor) -> Tensor:
        # With a key-value cache, packing goes wrong in silence.
        with packed(config):
            output = backbone(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                paragone_run=run,
                paragone_attend=attend,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    return forward


def disagreement(backbone: nn.Module, forward: Forward) -> str | None:
    """Return how packed passes differ from running sequences one by one, or None if they agree.

    Args:
        backbone: the model.
        forward: the packed forward pass on trial.
    """
    config: Any = backbone.config
    parameter = next(backbone.parameters())
    items = _trial(config.vocab_size)
    store = PromptStore(1 << 40)
    packer = Packer(forward, parameter.device, config.hidden_size, store=store, max_tokens=1 << 20)
    with torch.inference_mode():
        alone = torch.stack([_alone(backbone, item, parameter.device) for item in items])
    if not bool(torch.isfinite(alone).all()):
        return "its hidden states are not finite"
    tolerance = _TOLERANCE.get(parameter.dtype, _COARSE)
    for way in ("packed", "from stored keys"):
        error = float((packer.encode(items) - alone).norm() / alone.norm())
        if not error <= tolerance:
            return f"run {way} its hidden states are off by {error:.1e} of their size"
    return None


def _trial(vocabulary: int) -> list[EncodeItem]:
    generator = np.random.default_rng(0)
    stem, *tails, other = (generator.integers(0, vocabulary, length).tolist() for length in (_STEM, *_TAILS, _OTHER))
    sequences = [*(stem + tail for tail in tails), other]
    return [EncodeItem(tokens, ((len(tokens) - 1, len(tokens)),), len(tokens) - 1) for tokens in sequences]


def _alone(backbone: nn.Module, item: EncodeItem, device: torch.device) -> Tensor:
    output = backbone(input_ids=torch.tensor([list(item.token_ids)], device=device), use_cache=False)
    hidden: Tensor = output.last_hidden_state[0, -1:].float()
    return hidden
