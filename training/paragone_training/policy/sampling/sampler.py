"""Who samples a policy's responses: this process, or completions servers; and who has the device meanwhile.

In this process: batched, with a cache of keys and values, token ids in and token ids out. B responses at once, T
tokens, V vocabulary. Each token is drawn with a number of the response's own stream, so that a response does not change
with the batch it is drawn in (beyond rounding), nor with what was drawn before a restart.

Phases take turns where servers are colocated: they are up in the sampling phase, with the weights of every process of
the run in main memory; outside of it they rest, and the run computes.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import DynamicCache

from paragone_evaluation.readers import Prompt
from paragone_training.policy.model.logprobs import Item
from paragone_training.policy.model.weights import Policy, servable
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows.folder import Barrier
from paragone_training.policy.rows.rows import Response, stream

if TYPE_CHECKING:
    from paragone_training.policy.sampling.servers import SamplerServers

__all__ = ["Decoding", "Missing", "Sampled", "Sampler", "Samplers", "sample"]

_SHRINK = 0.5
"""The batch is cut to the unfinished responses when no more than this share is unfinished."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

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
class Missing:
    """A group that could not be sampled, and why."""

    reason: str


Sampled = list[Response] | Missing
"""The responses to one prompt, K of them and without their texts, or why there are none."""


class Sampler(Protocol):
    """Samples the responses of a round, chunk by chunk."""

    def draw_chunks(
        self, chunks: Mapping[int, Sequence[Prompt]], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yield the number and the groups of each chunk as soon as it is complete, in any order.

        Args:
            chunks: prompts with token ids, by the number of their chunk.
            responses: K, to each prompt.
            names: what the random numbers are made of, beside prompt and number.
        """


class _InProcessSampler:
    """Samples with the model that is in memory, one chunk after the other."""

    def __init__(self, policy: Policy, decoding: Decoding) -> None:
        self._policy = policy
        self._decoding = decoding

    def draw_chunks(
        self, chunks: Mapping[int, Sequence[Prompt]], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yield the number and the groups of each chunk, in their order; as ``Sampler`` says."""
        for number, prompts in chunks.items():
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
        policy: the one that answers.
        prompts: with token ids. B
        streams: the random numbers of each response. B
        decoding: how tokens are chosen.
    """
    model, device, end_ids = policy.model, policy.device, policy.end_ids
    ends = torch.tensor(end_ids, device=device)
    # All numbers of a response at once: how many of them are used does not matter to the next one.
    numbers = np.stack([generator.random(decoding.max_new_tokens) for generator in streams])
    uniform = torch.from_numpy(numbers).to(device)
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
        if not alive.any():
            break
        if float(alive.float().mean()) <= _SHRINK:
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, alive, chosen, mask, positions = rows[keep], alive[keep], chosen[keep], mask[keep], positions[keep]
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [
        Response(prompt.id, prompt.text, 0, prompt.token_ids, tuple(ids), "", ids[-1] in end_ids, value)
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


class Samplers:
    """The samplers of a run.

    Args:
        recipe: of the run.
        folder: of the run.
        policy: in memory; takes the weights that are sampled from.
        prompts: with token ids.
        barrier: where the processes of the run wait for each other.
        longest: tokens that a prompt may have.
    """

    def __init__(
        self,
        recipe: PolicyRecipe,
        folder: Path,
        policy: Policy,
        prompts: Sequence[Prompt],
        barrier: Barrier,
        *,
        longest: int,
    ) -> None:
        self._recipe, self._folder, self._policy, self._prompts = recipe, folder, policy, prompts
        self._barrier, self._longest = barrier, longest
        self._state = PartialState()
        self._servers: SamplerServers | None = None
        self._probes: list[Item] = []

    @property
    def noise(self) -> float | None:
        """Nats a token that servers were from the trainer after their last load; None where there are none."""
        return self._servers.noise if self._servers is not None else None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the servers, if the recipe has any. For the main process alone.

        Raises:
            RunError: if the stored responses cannot be read or written.
        """
        section, recipe = self._recipe.servers, self._recipe
        if section is None:
            yield
            return
        # Here, and not above: that module needs this one, and a run without servers needs no HTTP.
        from paragone_training.policy.sampling.completions import stored_probes
        from paragone_training.policy.sampling.servers import SamplerServers

        self._probes = stored_probes(
            self._folder / "probes.parquet",
            self._policy,
            self._prompts,
            source=recipe.policy.source,
            seed=recipe.training.seed,
            max_new_tokens=recipe.sampling.max_new_tokens,
        )
        tokenizer = self._policy.tokenizer
        texts = [tokenizer.decode(list(prompt_ids)) for prompt_ids, _ in self._probes]
        servers = SamplerServers(
            section,
            self._folder,
            self._probes,
            tolerance=recipe.sampling.tolerance,
            longest=self._longest + recipe.sampling.max_new_tokens,
            texts={text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts},
        )
        with servers as self._servers:
            yield
        self._servers = None

    def sampler(self, source: str) -> Sampler:
        """Return the sampler of the policy with the weights of ``source``; servers have them, checked, by then.

        Raises:
            RunError: if servers do not come up, do not take the weights, or are not the policy.
        """
        sampling = self._recipe.sampling
        decoding = Decoding(sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens)
        if self._servers is None:
            self._policy.become(source)
            return _InProcessSampler(self._policy, decoding)
        from paragone_training.policy.sampling.completions import probe_logprobs
        from paragone_training.policy.sampling.servers import FleetSampler, ServedWeights

        # Servers keep their weights between rounds of one iterate, and over its evaluation.
        if not self._servers.holds(source):
            self.end()
            self._policy.become(source)
            expected = probe_logprobs(self._policy, self._probes, self._recipe.training)
            if self._colocated:
                self._policy.park()
            # Another program reads the folder: it needs an absolute path.
            model = servable(source, self._recipe.policy.revision)
            self._servers.take(ServedWeights(source, model, tuple(expected)))
        return FleetSampler(self._servers.fleet, self._servers.background, decoding, self._policy.end_ids)

    def end(self) -> None:
        """Give the device back to this process, where servers share it.

        Raises:
            RunError: if a server cannot be put to sleep.
        """
        if self._servers is not None:
            self._servers.rest()
        self._policy.unpark()

    @contextlib.contextmanager
    def phase(self) -> Iterator[None]:
        """Be in the sampling phase. For all processes of the run, of which the main one samples."""
        if self._colocated:
            if not self._state.is_main_process:
                self._policy.park()
            self._barrier.wait()
        yield
        if self._state.is_main_process:
            self.end()
        if self._colocated:
            self._barrier.wait()
            self._policy.unpark()

    @property
    def _colocated(self) -> bool:
        # The only case in which the device is shared.
        return self._recipe.servers is not None and self._recipe.servers.phases == "colocated"
