"""Sections of recipes for networks from random weights: sizes, tokenizer, and what comes before the preferences."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from paragone_training.settings import Rate, Section, Share

__all__ = ["BackboneSection", "LexicalSection", "PretrainingSection", "TeacherSection", "TokenizerSection"]


class BackboneSection(Section):
    """What reads the text: a checkpoint (`source`), or a decoder of Qwen3's shape from random weights."""

    source: str | None = None
    """Hugging Face id or folder; without it, a decoder of the sizes below is built."""
    revision: str | None = None
    """Branch, tag or commit of the source."""
    attention: str = "sdpa"
    """transformers' attention implementation."""
    config_dropout: bool = False
    """Train with the dropout that the source's config.json asks for; else nothing of it is dropped."""
    hidden_size: PositiveInt = 128
    """Width, a multiple of `heads`."""
    layers: PositiveInt = 4
    """Depth."""
    heads: PositiveInt = 4
    """Attention heads."""
    intermediate_size: PositiveInt = 384
    """Width of the feed-forward layers."""


class TokenizerSection(Section):
    """Where tokens come from."""

    source: str | None = None
    """Folder or id of a tokenizer. Without it, the backbone's is taken, or one is trained on the training rows."""
    vocabulary_size: int = Field(default=4096, ge=300)
    """Tokens of a byte-level BPE that is trained."""


class PretrainingSection(Section):
    """Language modelling before preferences, for backbones from random weights."""

    epochs: NonNegativeInt = 0
    """Passes over the texts; 0 leaves it out."""
    reasons: bool = True
    """Also learn from the annotators' reasons."""
    learning_rate: Rate = 2e-3
    """Peak; linear warm-up and decay."""
    batch_tokens: PositiveInt = 2048
    """Tokens of a step, padding counted."""
    dropout: Share = 0.1
    """As in `[training]` of a preference recipe."""
    weight_decay: float = 0.05
    """Of AdamW."""


class LexicalSection(Section):
    """A start without labels, for backbones from random weights: learn to tell a text's words and length."""

    steps: PositiveInt = 400
    """Optimiser steps."""
    coordinates: PositiveInt = 24
    """How many principal directions of the training texts' log word counts are learnt, beside the length."""
    learning_rate: Rate = 2e-3
    """Peak."""
    batch_responses: int = Field(default=40, ge=3)
    """Texts of a step, a third of them real."""
    token_noise: Share = 0.15
    """Share of tokens replaced by others in half of the made-up texts."""
    imprint: NonNegativeFloat = 3.0
    """First write each token's directions and length into its embedding, this many times as large as its other
    coordinates; 0 leaves the embedding alone."""


class TeacherSection(Section):
    """A linear teacher on word counts and length, distilled before the pairs or ratings, from random weights only."""

    steps: PositiveInt = 400
    """Optimiser steps of distillation."""
    learning_rate: float = 2e-3
    """Peak."""
    batch_responses: int = Field(default=40, ge=2)
    """Texts of a step; the teacher labels every pair of them."""
    penalty: float = 500.0
    """Strength of the teacher's L2 penalty."""
    token_noise: float = 0.15
    """Share of tokens replaced by others in half of the made-up texts."""
    imprint: NonNegativeFloat = 3.0
    """First write each token's weight and length into its embedding, this many times as large as its other
    coordinates; 0 leaves the embedding alone."""
