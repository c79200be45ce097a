"""Drawing responses with the model in memory: each from random numbers of its own, whatever is drawn beside it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from paragone_evaluation.readers import Prompt
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.rows import Response, stream
from paragone_training.policy.sampling.stopping import Stops

__all__ = ["Chunk", "Decoding", "InProcessSampler", "Missing", "Sampled", "sample"]

# The batch is cut to the unfinished responses when no more than this share is unfinished.
_SHRINK = 0.5


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        top_p: smallest share of probability that is drawn from.
        top_k: most tokens that are drawn from; 0 is all.
        max_new_tokens: longest response, its end token included.
        stops: texts that end a response too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stops: Stops | None = None


@dataclass(frozen=True)
class Missing:
    """A group that could not be sampled, and why."""

    reason: str


# The responses to one prompt, K of them and without their texts, or why there are none.
Sampled = list[Response] | Missing

# Its number in the round, and its prompts with their token ids.
Chunk = tuple[int, Sequence[Prompt]]


class InProcessSampler:
    """Samples with the model that is in memory, one chunk after the other."""

    def __init__(self, policy: Policy, decoding: Decoding) -> None:
        self._policy = policy
        self._decoding = decoding

    def draw_chunks(
        self, chunks: Iterable[Chunk], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yield the number and the groups of each chunk, in their order.

        A chunk is a batch: its responses are the same bit for bit, whichever process draws it.

        Args:
            chunks: prompts with token ids, by the number of their chunk.
            names: what the random numbers are made of, beside prompt and number.
        """
        for number, prompts in chunks:
            places = [(prompt, place) for prompt in prompts for place in range(responses)]
            streams = [stream(*names, prompt.id, place) for prompt, place in places]
            rows = sample(self._policy, [prompt for prompt, _ in places], streams, self._decoding)
            rows = [replace(row, number=place) for row, (_, place) in zip(rows, places, strict=True)]
            yield number, [rows[start : start + responses] for start in range(0, len(rows), responses)]


@torch.no_grad()
def sample(
    policy: Policy, prompts: Sequence[Prompt], streams: Iterable[np.random.Generator], decoding: Decoding
) -> list[Response]:
    """Return one response to each prompt, without its text.

    Args:
        prompts: with token ids. B
        streams: the random numbers of each response. B
    """
    model, device, end_ids = policy.model, policy.device, policy.end_ids
    ends = torch.tensor(end_ids, device=device)
    # All numbers of a response at once: how many of them are used does not matter to the next one.
    numbers = np.stack([generator.random(decoding.max_new_tokens) for generator in streams])
    uniform = torch.from_numpy(numbers).to(device)
    # On the left, so that the newest token of every response stands in the last column.
    tokens, mask = _left_padded([prompt.token_ids for prompt in prompts], policy.tokenizer.pad_token_id, device)
    rows = torch.arange(len(prompts), device=device)
    written: list[list[int]] = [[] for _ in prompts]
    logprob = [0.0] * len(prompts)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache: Any = DynamicCache(config=model.config)
    # Padding on the left has no position of its own: a response is the same whatever stands beside it.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model.eval()
    for step in range(decoding.max_new_tokens):
        # Only the last position predicts a new token, and the vocabulary is wide.
        with policy.passes():
            output = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].float()
        chosen = _choose(logits, uniform[rows, step], decoding)
        # At temperature 1 whatever the decoding is: the trainer's log-probabilities are compared with these.
        values = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=1)
        for row, token, value, goes in zip(
            rows.tolist(), chosen.tolist(), values.tolist(), alive.tolist(), strict=True
        ):
            if goes:
                written[row].append(token)
                logprob[row] += value
        # Finished rows stay in the batch, unread, until enough of them make a smaller batch worth while.
        alive &= ~torch.isin(chosen, ends)
        if decoding.stops is not None:
            going = zip(rows.tolist(), alive.tolist(), strict=True)
            stopped = [goes and decoding.stops.completed(written[row]) for row, goes in going]
            alive &= ~torch.tensor(stopped, device=device)
        if not alive.any():
            break
        if float(alive.float().mean()) <= _SHRINK:
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, alive, chosen, mask, positions = rows[keep], alive[keep], chosen[keep], mask[keep], positions[keep]
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    stops = decoding.stops
    return [
        Response(
            prompt.id,
            prompt.text,
            0,
            prompt.token_ids,
            tuple(ids),
            "",
            ids[-1] in end_ids or (stops is not None and stops.cut(ids) is not None),
            value,
        )
        for prompt, ids, value in zip(prompts, written, logprob, strict=True)
    ]


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _choose(logits: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """Return one token per row by inverting the distribution function, of sorted tokens where some are cut off; [B]."""
    scaled = logits / decoding.temperature
    if decoding.top_p == 1.0 and not decoding.top_k:
        cumulative = scaled.softmax(dim=1).double().cumsum(dim=1)
        return _inverted(cumulative, uniform)
    # Sorted in a stable way: tokens of equal logits keep their order, and a restart draws the same.
    ordered, tokens = scaled.sort(dim=1, descending=True, stable=True)
    shares = ordered.softmax(dim=1).double()
    if decoding.top_k:
        shares[:, decoding.top_k :] = 0.0
        shares /= shares.sum(dim=1, keepdim=True)
    # A token is kept where those before it have less than top_p together: at least one always is.
    shares[(shares.cumsum(dim=1) - shares) >= decoding.top_p] = 0.0
    return tokens.gather(1, _inverted(shares.cumsum(dim=1), uniform)[:, None])[:, 0]


def _inverted(cumulative: Tensor, uniform: Tensor) -> Tensor:
    # The last entry is 1 up to rounding; numbers are scaled to it, so that none lies beyond.
    height = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, height, right=True)[:, 0]
    # A number within rounding of the end would fall behind the last token that has a share.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())[:, 0]
    return torch.minimum(token, last)
