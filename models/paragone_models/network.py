"""Backbone and head as one module: what is trained, saved and run.

Shapes: B sequences in a batch, T padded length, R reads, H hidden size, d length of a representation.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from paragone_models.heads import RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.encoding import Read

__all__ = ["AbsentBackbone", "PreferenceNetwork", "gather_reads", "read_plan"]

# Decoders alone: encoders that can also be decoders are in the second list too. What is in neither gets a mask, which
# is never wrong, only slower.
_CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - {"xlnet"}


def read_plan(spec: ModelSpec, prompt_length: int, length: int, *, first_token: bool = False) -> tuple[Read, ...]:
    """Return where the hidden states of one sequence are read.

    The gate reads the prompt's last token, before the response. The response is read at the last token, found by
    length (never by looking for padding), or averaged over the tokens after the prompt.

    Args:
        spec: what the model is.
        prompt_length: tokens of the prompt.
        length: tokens of the whole sequence.
        first_token: read the first token instead, as encoders with a classification token do.

    Raises:
        ValueError: if the prompt is longer than the sequence, or nothing follows a prompt that mean pooling needs.
    """
    if not 0 <= prompt_length <= length:
        raise ValueError(f"prompt_length is {prompt_length}; it must lie between 0 and the {length} tokens in all")
    if first_token:
        response: Read = (0, 1)
    elif spec.pooling == "mean":
        if prompt_length == length:
            raise ValueError(f"mean pooling needs tokens after the prompt, and all {length} belong to it")
        response = (prompt_length, length)
    else:
        response = (length - 1, length)
    if spec.gate == "none":
        return (response,)
    return ((max(prompt_length - 1, 0), max(prompt_length, 1)), response)


def gather_reads(hidden: Tensor, reads: Tensor) -> Tensor:
    """Return the mean hidden state of every span, in float32, each from its own sequence alone.

    Args:
        hidden: last hidden states. [B, T, H]
        reads: half-open spans of positions. [B, R, 2]

    Returns:
        One vector per span, float32. [B, R, H]
    """
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    # Asked before the move to the device: reads come from the CPU, and asking a GPU would wait for it.
    if bool((reads[..., 1] - reads[..., 0] == 1).all()):
        return hidden[rows, reads[..., 0].to(hidden.device)].float()
    # Span by span: the sum over one sequence must not depend on what stands beside it in the batch.
    spans = [
        torch.stack([hidden[row, start:stop].float().mean(dim=0) for start, stop in sequence])
        for row, sequence in enumerate(reads.tolist())
    ]
    return torch.stack(spans)


class AbsentBackbone(nn.Module):
    """Stand for a backbone that runs elsewhere: its configuration, and no weights.

    Args:
        config: its transformers configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


class PreferenceNetwork(nn.Module):
    """A transformers backbone without its own head, and ours on top.

    Args:
        backbone: a bare transformers model that returns ``last_hidden_state``.
        head: what reads it.
    """

    def __init__(self, backbone: nn.Module, head: RepresentationHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration."""
        return self.backbone.config

    @property
    def causal(self) -> bool:
        """True where a position sees only what stands before it, so that padding on the right changes nothing."""
        config = self.config
        return config.model_type in _CAUSAL and not (
            getattr(config, "is_encoder_decoder", False)
            or getattr(config, "use_bidirectional_attention", False)
            or getattr(config, "is_causal", True) is False
        )

    def last_hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the last hidden states of right-padded sequences.

        A causal backbone is run without a mask: what stands to the right cannot reach a real token, and attention keeps
        its fast path.

        Args:
            input_ids: token ids, padded on the right. [B, T]
            attention_mask: 1 for real tokens; needed unless ``causal``. [B, T]

        Returns:
            Hidden states in the backbone's dtype. [B, T, H]

        Raises:
            ValueError: if a backbone that is not causal is given no mask.
        """
        if self.causal:
            attention_mask = None
        elif attention_mask is None:
            raise ValueError(f"a backbone that may look ahead ({self.config.model_type}) needs an attention mask")
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **self._options())
        hidden: Tensor = output.last_hidden_state
        return hidden

    def forward(self, input_ids: Tensor, reads: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the representations of right-padded sequences.

        Args:
            input_ids: token ids, padded on the right. [B, T]
            reads: half-open spans from ``read_plan``. [B, R, 2]
            attention_mask: see ``last_hidden``. [B, T]

        Returns:
            Representations, float32. [B, d]
        """
        hidden = self.last_hidden(input_ids, attention_mask)
        representations: Tensor = self.head(gather_reads(hidden, reads))
        return representations

    def _options(self) -> dict[str, bool]:
        # A key-value cache is memory for nothing here, and with it packing goes wrong in silence.
        return {"use_cache": False} if self.causal else {}
