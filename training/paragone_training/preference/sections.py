"""The sections of a recipe: every setting, its meaning and its default."""

from dataclasses import dataclass
from typing import Literal

from paragone_models.spec import Pooling

__all__ = [
    "BackboneSection",
    "DataSection",
    "LexicalSection",
    "LoraSection",
    "LossSection",
    "ModelSection",
    "OutputSection",
    "PretrainingSection",
    "TeacherSection",
    "TokenizerSection",
    "TrainingSection",
]


@dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        kind: ``bradley-terry``, ``general-preference`` or ``hybrid``; those that rate have a section of their own.
        dimension: length d of a representation: 1 for a reward, even for a general preference model, odd for a hybrid.
        gate: weigh each 2-block by a softmax over the prompt's last hidden state.
        normalise: L2-normalise general preference vectors.
        temperature: what logits are divided by; unless given 1 for a reward, 0.1 where there is a vector.
        pooling: read the ``last`` token, or the ``mean`` over the response.
        max_length: longest conversation in tokens; longer ones lose their prompt from the left.
        domain: what the model will know, in words, for its card and ``/v1/models``.
        demonstration: the model shows the software; nobody should rely on its judgement.
    """

    kind: str
    dimension: int = 1
    gate: bool = False
    normalise: bool = True
    temperature: float | None = None
    pooling: Pooling = "last"
    max_length: int = 2048
    domain: str | None = None
    demonstration: bool = False


@dataclass(frozen=True)
class BackboneSection:
    """What reads the text: a checkpoint (``source``), or a decoder of Qwen3's shape from random weights.

    Attributes:
        source: Hugging Face id or folder; None builds one from the sizes below.
        revision: branch, tag or commit of the source.
        attention: transformers' attention implementation.
        hidden_size: width.
        layers: depth.
        heads: attention heads.
        intermediate_size: width of the feed-forward layers.
    """

    source: str | None = None
    revision: str | None = None
    attention: str = "sdpa"
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 384


@dataclass(frozen=True)
class TokenizerSection:
    """Where tokens come from.

    Attributes:
        source: folder or id of a tokenizer; None takes the backbone's, or trains one for a from-scratch backbone.
        vocabulary_size: of a tokenizer that is trained.
    """

    source: str | None = None
    vocabulary_size: int = 4096


@dataclass(frozen=True)
class PretrainingSection:
    """Language modelling before preferences, for from-scratch backbones.

    Attributes:
        epochs: passes over the texts; 0 leaves it out.
        reasons: also learn from the annotators' reasons.
        learning_rate: peak; linear warm-up and decay.
        batch_tokens: padded tokens a step.
        dropout: as in ``TrainingSection``.
        weight_decay: of AdamW.
    """

    epochs: int = 0
    reasons: bool = True
    learning_rate: float = 2e-3
    batch_tokens: int = 2048
    dropout: float = 0.1
    weight_decay: float = 0.05


@dataclass(frozen=True)
class LexicalSection:
    """Learning to tell a text's words and length before preferences, without any label, for from-scratch backbones.

    Attributes:
        steps: optimiser steps.
        coordinates: how many principal directions of the training texts' log word counts are told, beside the length.
        learning_rate: peak.
        batch_responses: texts a step, a third of them real.
        token_noise: share of tokens replaced by others in half of the made-up texts.
        imprint: write each token's directions and length into coordinates of its embedding beforehand, this many times
            as large as the others; 0 leaves the embedding alone.
    """

    steps: int = 400
    coordinates: int = 24
    learning_rate: float = 2e-3
    batch_responses: int = 40
    token_noise: float = 0.15
    imprint: float = 3.0


@dataclass(frozen=True)
class TeacherSection:
    """A linear teacher on word counts and length, distilled before the preferences, for from-scratch backbones.

    Attributes:
        steps: optimiser steps of distillation.
        learning_rate: peak.
        batch_responses: texts a step; every pair of them is labelled by the teacher.
        penalty: strength of the teacher's L2 penalty.
        token_noise: share of tokens replaced by others in half of the made-up texts.
        imprint: write each token's weight and length into two coordinates of its embedding beforehand, this many times
            as large as the others; 0 leaves the embedding alone.
    """

    steps: int = 400
    learning_rate: float = 2e-3
    batch_responses: int = 40
    penalty: float = 500.0
    token_noise: float = 0.15
    imprint: float = 3.0


@dataclass(frozen=True)
class DataSection:
    """Which rows.

    Attributes:
        train: pair files (.jsonl or .jsonl.gz), relative to the recipe.
        evaluate: pair files for the held-out rows; the training files unless given.
        train_split: rows whose ``split`` is this are trained on; rows without a split always are.
        evaluate_split: rows whose ``split`` is this are evaluated on.
        allow_test_rows: train on rows marked ``test`` all the same.
        limit: only the first so many training pairs; 0 takes all.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...] = ()
    train_split: str = "train"
    evaluate_split: str = "test"
    allow_test_rows: bool = False
    limit: int = 0


@dataclass(frozen=True)
class LossSection:
    """What is minimised, per pair.

    Attributes:
        name: ``regular`` (hard labels), ``margin`` (asks for a lead of ``strength`` logits), ``scaled`` (a pair counts
            ``strength`` times), ``soft`` (cross-entropy with a probability read off the strength), ``score`` (half the
            squared distance to that probability's log-odds) or ``regression`` (squared error of ratings, for that
            kind alone).
        margin: lead asked for by the ``regular`` loss, subtracted before the temperature divides.
        certainty: the ``soft`` label of the strongest preference; strength s has the label 1/2 + s/6, at most this.
        ties: keep pairs of strength 0 (``soft`` and ``score`` can learn from them) or drop them.
    """

    name: Literal["regular", "margin", "scaled", "soft", "score", "regression"] = "regular"
    margin: float = 0.0
    certainty: float = 0.95
    ties: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True)
class TrainingSection:
    """How it is minimised.

    Attributes:
        epochs: passes over the pairs.
        learning_rate: peak.
        schedule: transformers' name of the learning-rate schedule.
        warmup_steps: steps, or below 1 the share of all steps.
        weight_decay: of AdamW.
        betas: of AdamW.
        max_gradient_norm: gradients are clipped to this.
        batch_responses: responses a forward pass holds at most; as few prompts as fit share it.
        accumulation: forward passes a step.
        bf16: mixed precision.
        gradient_checkpointing: recompute activations, to save memory.
        seed: of everything random.
        dropout: on the embedding and on what attention and feed-forward layers add; for from-scratch backbones.
        head_dropout: on the hidden states that the head reads.
        token_noise: share of tokens replaced by random ones.
        average_decay: train an exponential moving average of the weights beside them and save that; 0 saves the last.
        checkpoints: how many to keep.
        log_steps: steps between two log lines.
    """

    epochs: int = 1
    learning_rate: float = 1e-5
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = 1.0
    batch_responses: int = 16
    accumulation: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    dropout: float = 0.0
    head_dropout: float = 0.0
    token_noise: float = 0.0
    average_decay: float = 0.0
    checkpoints: int = 1
    log_steps: int = 10


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters in place of full fine-tuning; merged when the model is saved.

    Attributes:
        rank: of each adapter.
        alpha: the adapter is scaled by alpha / rank.
        dropout: on the adapters' input.
        targets: names of the layers that get one; all linear layers of the backbone unless given.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputSection:
    """What is written, and where.

    Attributes:
        folder: of the model, relative to the working directory; ``runs/NAME-OF-THE-RECIPE`` unless given.
        checkpoints: where checkpoints go; ``checkpoints`` in the model's folder unless given.
        dtype: the backbone's storage type.
        tokenizer: another folder for the tokenizer, to share it between models; the model's own unless given.
        notes: a paragraph for the model's card, or None.
    """

    folder: str | None = None
    checkpoints: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tokenizer: str | None = None
    notes: str | None = None
