"""Backbone and head as one module: what is trained, saved and run.

The head turns hidden states at the read positions into a representation, always in float32.

Shapes: B sequences of a batch, T padded length, R reads each, H hidden size, d length of a representation, k 2-blocks.
"""

import copy
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from paragone_models.gated import GatedRatings, WeighedRatings
from paragone_models.images import Image, ImageReader
from paragone_models.pairwise import MarkerHead
from paragone_models.rotary import hidden_by_angles
from paragone_models.spec import ModelSpec

__all__ = [
    "AbsentBackbone",
    "AnyHead",
    "PreferenceNetwork",
    "RepresentationHead",
    "StepsHead",
    "gather_reads",
    "output_width",
]

# Decoders alone: encoders that can also be decoders are in the second list too. What is in neither gets a mask, which
# is never wrong, only slower.
_CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - {"xlnet"}


class RepresentationHead(nn.Module):
    """Turn hidden states into rewards, ratings or general preference vectors.

    A general preference vector is L2-normalised where the spec says so, then each 2-block is multiplied by the square
    root of its gate weight, so that the skew form of two responses to one prompt carries the weight once:

        representation[2l:2l+2] = sqrt(lambda_l) * v[2l:2l+2] / |v|,  lambda = softmax(prompt_head(h_prompt))

    Source: Zhang et al. (arXiv 2410.02197), §4.1 and Theorem 4.5, with the gate of the published checkpoints.

    Args:
        value_head: the module from one hidden state to d numbers; a linear layer without bias unless given.
        gate_bias: whether the gate has a bias.
    """

    def __init__(
        self, hidden_size: int, spec: ModelSpec, *, value_head: nn.Module | None = None, gate_bias: bool = False
    ) -> None:
        super().__init__()
        self.spec = spec
        self.value_head = value_head or nn.Linear(hidden_size, spec.dimension, bias=False)
        self._blocks = spec.blocks  # a model loaded with other options gets another spec, of the same shape
        gated = spec.gate == "softmax"
        self.prompt_head = nn.Linear(hidden_size, self._blocks, bias=gate_bias) if gated else None
        if value_head is None:
            for head in (self.value_head, self.prompt_head):
                if isinstance(head, nn.Linear):
                    nn.init.normal_(head.weight, std=1 / (hidden_size + 1))

    @property
    def gate_size(self) -> int:
        """Number of weights that the gate gives, 0 where there is none."""
        return 0 if self.prompt_head is None else self._blocks

    @property
    def reads(self) -> int:
        """Number of reads a sequence needs: the response's, after the prompt's where there is a gate."""
        return 1 if self.prompt_head is None else 2

    def gate_scales(self, hidden: Tensor) -> Tensor:
        """Return the gate's weight of each 2-block; they sum to 1.

        Args:
            hidden: hidden states at the reads, the prompt's first. [B, R, H]

        Returns:
            Weights lambda, float32. [B, k]

        Raises:
            ValueError: if the head has no gate, or the number of reads is not its own.
        """
        if self.prompt_head is None:
            raise ValueError(f"this {self.spec.kind} head has no gate, and so no scales")
        self._check_reads(hidden)
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return torch.softmax(self.prompt_head(hidden[:, 0].float()), dim=-1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the representation of each sequence.

        Args:
            hidden: hidden states at the reads of ``read_plan``: the gate's prompt state first. [B, R, H]

        Returns:
            Representations, float32. [B, d]

        Raises:
            ValueError: if the number of reads is not the head's.
        """
        self._check_reads(hidden)
        # Mixed precision stops here: a bf16 head has only 128 distinct scores between 16 and 32.
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            values: Tensor = self.value_head(hidden[:, -1].float())
            if not self._blocks:
                return values
            start = values.shape[1] - 2 * self._blocks
            scalar, vector = values[:, :start], values[:, start:]
            if self.spec.normalise:
                vector = functional.normalize(vector, dim=-1, eps=1e-12)
            if self.prompt_head is not None:
                # The root in log space: a weight that underflows to 0 would give sqrt an infinite gradient.
                root = torch.exp(0.5 * torch.log_softmax(self.prompt_head(hidden[:, 0].float()), dim=-1))
                vector = vector * root.repeat_interleave(2, dim=-1)
            return torch.cat([scalar, vector], dim=-1)

    def _check_reads(self, hidden: Tensor) -> None:
        if hidden.dim() != 3 or hidden.shape[1] != self.reads:
            raise ValueError(f"hidden must be [n, {self.reads}, H], not of shape {tuple(hidden.shape)}")


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


def output_width(config: Any) -> int:
    """Return the width H of a backbone's last hidden states; OPT's small ones are projected, and differ inside."""
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


class StepsHead(nn.Module):
    """Turn the hidden state at the end of each step into the log-odds that the step is right.

        z_i = (W h_i + b)[1] - (W h_i + b)[0], so that sigmoid(z_i) is the softmax of the second class

    Source: the model cards of Qwen2.5-Math-PRM.

    Args:
        value_head: from one hidden state to the logits of wrong and right.
    """

    def __init__(self, spec: ModelSpec, value_head: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.value_head = value_head
        self.prompt_head: nn.Module | None = None
        self.gate_size = 0

    @property
    def reads(self) -> int:
        """Number of reads a sequence needs at the least: one for each step."""
        return 1

    def gate_scales(self, hidden: Tensor) -> Tensor:  # noqa: ARG002 (as of every head)
        """Raise ValueError: there is no gate."""
        raise ValueError(f"this {self.spec.kind} head has no gate, and so no scales")

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the log-odds of each read.

        Args:
            hidden: hidden states at the reads. [B, R, H]

        Returns:
            Log-odds, float32. [B, R]

        Raises:
            ValueError: if there is no read.
        """
        if hidden.dim() != 3 or not hidden.shape[1]:
            raise ValueError(f"hidden must be [n, steps, H], not of shape {tuple(hidden.shape)}")
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            logits: Tensor = self.value_head(hidden.float())
            return logits[..., 1] - logits[..., 0]


AnyHead = RepresentationHead | GatedRatings | WeighedRatings | StepsHead | MarkerHead
"""What turns the hidden states at the reads into a representation."""


class AbsentBackbone(nn.Module):
    """Stand for a backbone that runs elsewhere: its configuration, and no weights."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


class PreferenceNetwork(nn.Module):
    """A transformers backbone without its own head, and ours on top.

    Args:
        backbone: a bare transformers model that returns ``last_hidden_state``.

    Attributes:
        separator: id of the token that ends the first text of a pair, where an encoder tells the two apart by token
            types; None where it does not.
        images: makes patches of images, for a backbone with a vision tower; None where none are read.
    """

    def __init__(self, backbone: nn.Module, head: AnyHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.separator: int | None = None
        self.images: ImageReader | None = None

    def on(self, device: str | torch.device, moved: MutableMapping[int, Tensor] | None = None) -> "PreferenceNetwork":
        """Return a copy on a device, which shares every tensor that lies there already.

        Args:
            moved: tensors on that device by the ``id`` of what they were copied from; what is copied now is added.
        """
        tensors = {} if moved is None else moved
        for tensor in (*self.parameters(), *self.buffers()):
            if id(tensor) not in tensors:
                there = tensor.to(device)
                if isinstance(tensor, nn.Parameter) and not isinstance(there, nn.Parameter):
                    there = nn.Parameter(there, requires_grad=False)
                tensors[id(tensor)] = there
        # Modules have state of a pass, and a configuration that packing changes: each copy has its own. What makes
        # patches has none.
        shared: dict[int, Any] = {**tensors, id(self.images): self.images}
        return copy.deepcopy(self, shared).to(device)

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration."""
        return self.backbone.config

    @property
    def causal(self) -> bool:
        """True where a position sees only what stands before it, so that padding on the right changes nothing."""
        config = self.config
        # The type alone does not tell: some decoders are configured to look ahead.
        return config.model_type in _CAUSAL and not (
            getattr(config, "is_encoder_decoder", False)
            or getattr(config, "use_bidirectional_attention", False)
            or getattr(config, "is_causal", True) is False
        )

    def last_hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the last hidden states of right-padded sequences.

        A causal backbone is run without a mask: what stands to the right cannot reach a real token, and attention keeps
        its fast path. Where rotary angles depend on the length of a pass, sequences of different angles are run apart.

        Args:
            input_ids: token ids, padded on the right. [B, T]
            attention_mask: 1 for real tokens; needed unless ``causal``, and else taken as all real. [B, T]

        Returns:
            Hidden states in the backbone's dtype. [B, T, H]

        Raises:
            ValueError: if a backbone that is not causal is given no mask.
        """
        return hidden_by_angles(self.backbone, self._pass, input_ids, attention_mask)

    def _pass(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the last hidden states of one pass through the backbone."""
        if self.causal:
            attention_mask = None
        elif attention_mask is None:
            raise ValueError(f"a backbone that may look ahead ({self.config.model_type}) needs an attention mask")
        # A key-value cache is memory for nothing here, and with it packing goes wrong in silence.
        options: dict[str, Any] = {"use_cache": False} if self.causal else {}
        if self.separator is not None:
            ends = (input_ids == self.separator).long()
            options["token_type_ids"] = (ends.cumsum(1) > ends).long()  # 1 behind the first one
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **options)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def last_hidden_of(
        self, input_ids: Tensor, attention_mask: Tensor | None, images: Sequence[Sequence[Image]]
    ) -> Tensor:
        """Return the last hidden states of right-padded sequences with images in them.

        Each distinct image passes the vision tower once, and its states go where its tokens are.

        Args:
            input_ids: token ids, padded on the right. [B, T]
            attention_mask: 1 for real tokens; without it all are. [B, T]
            images: those of each sequence, in the order of their tokens.

        Returns:
            Hidden states in the backbone's dtype. [B, T, H]
        """
        assert self.images is not None  # whoever loads a network without them refuses images
        backbone: Any = self.backbone
        parameter = next(backbone.parameters())
        # By what was sent: siblings have one prompt, and its images.
        distinct = {image.key: image for own in images for image in own}
        numbers = {key: number for number, key in enumerate(distinct)}
        order = [numbers[image.key] for own in images for image in own]
        patches, grids = self.images.patches(list(distinct.values()))
        grids = grids.to(parameter.device)
        seen = backbone.get_image_features(patches.to(parameter.device, parameter.dtype), grids, return_dict=True)
        seen.pooler_output = [seen.pooler_output[number] for number in order]
        output = backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_encoder_outputs={"image": seen},
            image_grid_thw=grids[order],
            mm_token_type_ids=(input_ids == self.images.token).int(),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def forward(self, input_ids: Tensor, reads: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the representations of right-padded sequences.

        Args:
            input_ids: token ids, padded on the right. [B, T]
            reads: half-open spans from ``read_plan``. [B, R, 2]
            attention_mask: 1 for real tokens; needed unless ``causal``. [B, T]

        Returns:
            Representations, float32. [B, d]
        """
        hidden = self.last_hidden(input_ids, attention_mask)
        representations: Tensor = self.head(gather_reads(hidden, reads))
        return representations
