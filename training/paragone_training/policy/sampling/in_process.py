"""Drawing responses in this process: batched, with a cache of keys and values, token ids in and token ids out.

B responses at once, T tokens, V vocabulary. Each token is drawn with a number of the response's own stream, so that a
response does not change with the batch it is drawn in (beyond rounding), nor with what was drawn before a restart.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from paragone_evaluation.readers import Prompt
from paragone_training.policy.model.weights import Policy

__all__ = ["Draw", "Drawn", "InProcessSampler", "Missing", "Sample", "Sampler", "draw", "seed_of", "stream"]

_SHRINK = 0.5
"""The batch is cut to the unfinished responses when no more than this share is unfinished."""


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn.

    Attributes:
        temperature: what logits are divided by.
        top_p: smallest share of probability that is drawn from.
        top_k: most tokens that are drawn from; 0 is all.
        max_new_tokens: longest response, its end token included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512


@dataclass(frozen=True)
class Sample:
    """One response.

    Attributes:
        token_ids: as drawn, with the end token where there is one.
        finished: True where it has an end token.
        logprob: sum over its tokens under the policy at temperature 1, in nats, as the sampler computed it; None where
            a sampler does not say.
    """

    token_ids: tuple[int, ...]
    finished: bool
    logprob: float | None


@dataclass(frozen=True)
class Missing:
    """A group that could not be drawn.

    Attributes:
        reason: why, for logs.
    """

    reason: str


Drawn = list[Sample] | Missing
"""The responses to one prompt, K of them, or why there are none."""


def stream(*names: object) -> np.random.Generator:
    """Return the source of a response's random numbers.

    Args:
        names: what makes it this one: seed, iteration, prompt, number.
    """
    return np.random.Generator(np.random.PCG64(_hashed(*names)))


def seed_of(*names: object) -> int:
    """Return the seed that a server draws a response with: 53 bits, which every JSON reader keeps.

    Args:
        names: what makes it this one: seed, iteration, prompt, number.
    """
    return _hashed(*names) % 2**53


def _hashed(*names: object) -> int:
    digest = hashlib.blake2b("\0".join(map(str, names)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


class Sampler(Protocol):
    """Draws the responses of a round, chunk by chunk."""

    def draw_chunks(
        self, chunks: Mapping[int, Sequence[Prompt]], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Drawn]]]:
        """Yield the number and the groups of each chunk as soon as it is complete, in any order.

        Args:
            chunks: prompts with token ids, by the number of their chunk.
            responses: K, to each prompt.
            names: what the random numbers are made of, beside prompt and number.
        """


class InProcessSampler:
    """Draws with the model that is in memory, one chunk after the other.

    Args:
        policy: has the weights that are drawn from.
        settings: how tokens are drawn.
    """

    def __init__(self, policy: Policy, settings: Draw) -> None:
        self._policy = policy
        self._settings = settings

    def draw_chunks(
        self, chunks: Mapping[int, Sequence[Prompt]], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Drawn]]]:
        """Yield the number and the groups of each chunk, in their order.

        Args:
            chunks: prompts with token ids, by the number of their chunk.
            responses: K, to each prompt.
            names: what the random numbers are made of, beside prompt and number.
        """
        for number, prompts in chunks.items():
            streams = [stream(*names, prompt.id, place) for prompt in prompts for place in range(responses)]
            asked = [prompt.token_ids for prompt in prompts for _ in range(responses)]
            drawn = draw(self._policy, asked, streams, self._settings)
            yield number, [drawn[start : start + responses] for start in range(0, len(drawn), responses)]


@torch.no_grad()
def draw(
    policy: Policy, prompts: Sequence[Sequence[int]], streams: Iterable[np.random.Generator], settings: Draw
) -> list[Sample]:
    """Return one response to each prompt.

    Args:
        policy: who answers.
        prompts: token ids. B
        streams: the random numbers of each response. B
        settings: how tokens are drawn.
    """
    device, ends = policy.device, torch.tensor(policy.end_ids, device=policy.device)
    numbers = np.stack([one.random(settings.max_new_tokens) for one in streams])
    uniform = torch.from_numpy(numbers).to(device)
    tokens, mask = _left_padded(prompts, policy.tokenizer.pad_token_id, device)
    rows = torch.arange(len(prompts), device=device)
    written: list[list[int]] = [[] for _ in prompts]
    logprob = [0.0] * len(prompts)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache: Any = DynamicCache(config=policy.model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    policy.model.eval()
    for step in range(settings.max_new_tokens):
        logits = (
            policy.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        chosen = _choose(logits, uniform[rows, step], settings)
        values = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=1)
        for row, token, value, goes in zip(
            rows.tolist(), chosen.tolist(), values.tolist(), alive.tolist(), strict=True
        ):
            if goes:
                written[row].append(token)
                logprob[row] += value
        # Finished rows stay in the batch, unread, until enough of them make a smaller batch worth while.
        alive &= ~torch.isin(chosen, ends)
        if not alive.any():
            break
        if float(alive.float().mean()) <= _SHRINK:
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, alive, chosen, mask, positions = rows[keep], alive[keep], chosen[keep], mask[keep], positions[keep]
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [Sample(tuple(ids), ids[-1] in policy.end_ids, value) for ids, value in zip(written, logprob, strict=True)]


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _choose(logits: Tensor, uniform: Tensor, settings: Draw) -> Tensor:
    """Return one token per row by inverting the distribution function, of sorted tokens where some are cut off; [B]."""
    scaled = logits / settings.temperature
    if settings.top_p == 1.0 and not settings.top_k:
        cumulative = scaled.softmax(dim=1).double().cumsum(dim=1)
        return _inverted(cumulative, uniform)
    ordered, tokens = scaled.sort(dim=1, descending=True, stable=True)
    shares = ordered.softmax(dim=1).double()
    if settings.top_k:
        shares[:, settings.top_k :] = 0.0
        shares /= shares.sum(dim=1, keepdim=True)
    # A token is kept where those before it have less than top_p together: at least one always is.
    shares[(shares.cumsum(dim=1) - shares) >= settings.top_p] = 0.0
    return tokens.gather(1, _inverted(shares.cumsum(dim=1), uniform)[:, None])[:, 0]


def _inverted(cumulative: Tensor, uniform: Tensor) -> Tensor:
    wanted = uniform[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    # A number within rounding of the end would fall behind the last token that has a share.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())[:, 0]
    return torch.minimum(found, last)
