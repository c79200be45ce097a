"""Language modelling before preferences: a backbone from random weights first learns what text looks like.

A plain loop, not a Trainer: it takes seconds, and a resumed run reads its result from one file beside the checkpoints.

Shapes: B sequences, T padded length, H hidden size.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paragone_evaluation.readers import Pair
from paragone_models.text.reader import Reading, TextReader, conversation
from paragone_training.scratch.decoder import residual_dropout
from paragone_training.scratch.sections import PretrainingSection

__all__ = ["batches_of", "decayed", "padded", "pretrain", "reason_documents"]

logger = logging.getLogger(__name__)

_WARMUP_STEPS = 20


def pretrain(
    backbone: Any, documents: Sequence[Sequence[int]], section: PretrainingSection, *, pad_id: int, seed: int
) -> list[float]:
    """Train a decoder to predict the next token, and return the loss of every step.

    Args:
        backbone: a bare decoder; its input embedding is also its output layer here. Changed in place.
        pad_id: fills up shorter documents; never predicted.
    """
    # The seed decides dropout here, and the order of batches below.
    torch.manual_seed(seed)
    device = next(backbone.parameters()).device
    optimizer = torch.optim.AdamW(
        backbone.parameters(), lr=section.learning_rate, betas=(0.9, 0.95), weight_decay=section.weight_decay
    )
    # Composed once and shuffled every epoch: documents of like length stay together, and padding stays small.
    batches = list(batches_of(documents, section.batch_tokens))
    steps, history = section.epochs * len(batches), list[float]()
    backbone.train()
    with residual_dropout(backbone, share=section.dropout):
        for epoch in range(section.epochs):
            random.Random(f"{seed}/{epoch}").shuffle(batches)  # noqa: S311 - shuffling, not secrets
            for batch in batches:
                step = len(history)
                for group in optimizer.param_groups:
                    group["lr"] = decayed(section.learning_rate, step, steps)
                optimizer.zero_grad()
                loss = _loss(backbone, padded(batch, pad_id).to(device), pad_id)
                loss.backward()
                nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
                optimizer.step()
                history.append(loss.item())
            mean = sum(history[-len(batches) :]) / len(batches)
            logger.info("pretraining epoch %d of %d: %.3f nats a token", epoch + 1, section.epochs, mean)
    return history


def reason_documents(pairs: Iterable[Pair], reader: TextReader) -> list[list[int]]:
    """Return the annotators' reasons as token ids, each after its prompt, as a message of the system.

    Args:
        pairs: training rows; each distinct reason under a prompt counts once, one that does not fit is left out.
    """
    # As the system and not as the assistant: a reason is no answer to the prompt.
    reasons = {(pair.prompt, pair.messages, pair.reason): pair for pair in pairs if pair.reason}
    conversations = [
        conversation(pair.prompt_messages, {"role": "system", "content": pair.reason}) for pair in reasons.values()
    ]
    return [list(result.token_ids) for result in reader.read(conversations) if isinstance(result, Reading)]


def decayed(peak: float, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0: a short linear warm-up, then linearly down to 0."""
    return peak * min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - step / steps)


def padded(sequences: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Return the token ids of at least one sequence, padded on the right, [B, T]."""
    tokens = torch.full((len(sequences), max(map(len, sequences))), pad_id, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens


def batches_of(documents: Sequence[Sequence[int]], budget: int) -> Iterator[list[Sequence[int]]]:
    """Yield the batches of an epoch, of documents of like length.

    Args:
        budget: most tokens of a batch, padding counted; a longer document is a batch of its own.
    """
    batch: list[Sequence[int]] = []
    for document in sorted(documents, key=len):
        if batch and (len(batch) + 1) * len(document) > budget:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def _loss(backbone: Any, tokens: Tensor, pad_id: int) -> Tensor:
    hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state
    # The output layer is computed at known positions alone: the vocabulary is wider than anything else here.
    known = tokens[:, 1:] != pad_id
    # Tied to the input embedding: there is no other output layer, and the head does not speak.
    predicted = hidden[:, :-1][known] @ backbone.get_input_embeddings().weight.T
    return functional.cross_entropy(predicted.float(), tokens[:, 1:][known])
