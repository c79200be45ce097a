"""A sampling round: responses sampled chunk by chunk; the oracles are asked for a chunk while the next one is sampled.

    FOLDER/samples.parquet            one row per response
    FOLDER/NAME.parquet               one row per prompt: the K×K table of one oracle, both orders
    FOLDER/parts/…                    chunks of an unfinished round

K is the number of responses to a prompt; a chunk is the prompts that are sampled, asked for and kept together. After a
kill, chunks on disk are neither sampled nor asked for again.
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
from paragone_training.policy.model.logprobs import Item, policy_logprobs
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows import Barrier, Response, stream
from paragone_training.policy.sampling.stopping import Stops

if TYPE_CHECKING:
    from paragone_training.policy.sampling.servers import SamplerServers
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future

from paragone_training.errors import RunError
from paragone_training.policy.oracle import Oracle
from paragone_training.policy.rows import Answer, read_answers, read_rows, write_answers, write_rows

__all__ = ["Decoding", "Missing", "Round", "Sampled", "Samplers", "play_round", "sample"]

logger = logging.getLogger(__name__)

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


class _Sampler(Protocol):
    """Samples the responses of a round, chunk by chunk."""

    def draw_chunks(
        self, chunks: Mapping[int, Sequence[Prompt]], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yield the number and the groups of each chunk as soon as it is complete, in any order.

        Args:
            chunks: prompts with token ids, by the number of their chunk.
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
        """Yield the number and the groups of each chunk, in their order; as ``_Sampler`` says."""
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


class Samplers:
    """The samplers of a run.

    Args:
        barrier: where the processes of the run wait for each other.
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
        # Texts of the stored responses show whether a server reads words as the same tokens.
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

    def sampler(self, source: str) -> _Sampler:
        """Return the sampler of the policy with the weights of ``source``; servers have them, checked, by then.

        Raises:
            RunError: if servers do not come up, do not take the weights, or are not the policy.
        """
        sampling = self._recipe.sampling
        decoding = Decoding(
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.max_new_tokens,
            Stops(self._policy.tokenizer, sampling.stop) if sampling.stop else None,
        )
        if self._servers is None:
            self._policy.become(source)
            return _InProcessSampler(self._policy, decoding)
        from paragone_training.policy.sampling.servers import FleetSampler

        # Servers keep their weights between rounds of one iterate, and over its evaluation.
        if not self._servers.holds(source):
            self.end()
            self._policy.become(source)
            expected = policy_logprobs(self._policy, self._probes, self._recipe.training)
            if self._colocated:
                self._policy.park()
            # Another program reads the folder: it needs an absolute path.
            model = self._policy.servable(source)
            self._servers.take(source, model, expected)
        # Made anew each time: taking weights gives a new fleet, in which no server counts as lost.
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
            # The weights of the other processes leave the device too, before a server wants its memory.
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


@dataclass
class Round:
    """A round that is on disk.

    Attributes:
        answers: of the first oracle; empty without one.
        loading_s: seconds until the sampler had the policy's weights, a server's start included; 0 if nothing was left.
        waiting_s: seconds of waiting for oracles after the last sample.
    """

    responses: list[Response]
    answers: list[Answer]
    loading_s: float = 0.0
    sampling_s: float = 0.0
    waiting_s: float = 0.0


def play_round(
    folder: Path,
    prompts: Sequence[Prompt],
    sampler: Callable[[], _Sampler],
    oracles: Mapping[str, Oracle],
    *,
    responses: int,
    batch: int,
    names: tuple[object, ...],
    text_of: Callable[[Sequence[int]], str],
    against: Mapping[str, Sequence[str]] | None = None,
) -> Round:
    """Sample responses, ask the oracles, leave both on disk, and return them.

    Args:
        sampler: makes the sampler; called only where something is left to sample.
        oracles: by the names of their files.
        responses: K.
        batch: responses of a chunk, about.
        names: what the random numbers are made of.
        text_of: a response's text, as oracles are to read it.
        against: other responses that join the group of a prompt, behind its own, by prompt id.

    Raises:
        RunError: if an oracle is gone, replaced, or answered nothing at all.
    """
    # A file of the whole round is there only when every chunk is in it.
    samples = folder / "samples.parquet"
    files = {name: folder / f"{name}.parquet" for name in oracles}
    if samples.exists() and all(path.exists() for path in files.values()):
        shutil.rmtree(folder / "parts", ignore_errors=True)
        answers = read_answers(next(iter(files.values()))) if files else []
        return Round(read_rows(samples, Response), answers)
    # Whole groups only: an oracle compares the K responses to one prompt with each other.
    size = max(batch // responses, 1)
    chunks = [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
    parts = _Parts(folder / "parts", prompts, oracles, against or {})
    # Chunks are numbered from the start of the round, so that a restart finds the same ones on disk.
    left = {number: chunk for number, chunk in enumerate(chunks) if not parts.restore(number)}
    loading_s = sampling_s = 0.0
    if left:
        began = time.monotonic()
        # Only now, because taking the weights may start servers; a round that is on disk needs none.
        ready = sampler()
        loading_s, began = time.monotonic() - began, time.monotonic()
        for number, groups in ready.draw_chunks(left, responses=responses, names=names):
            parts.add(number, _whole_groups(left[number], groups, text_of))
            # An oracle that is gone stops the run here, not after hours of sampling.
            parts.collect(wait=False)
        sampling_s = time.monotonic() - began
    began = time.monotonic()
    parts.collect(wait=True)
    waiting_s = time.monotonic() - began
    rows = parts.finish(samples, files)
    return Round(rows, parts.answers_of(next(iter(files))) if files else [], loading_s, sampling_s, waiting_s)


def _whole_groups(
    chunk: Sequence[Prompt], groups: Sequence[Sampled], text_of: Callable[[Sequence[int]], str]
) -> list[Response]:
    """Return the rows of the groups that were sampled completely, with their texts."""
    rows = []
    for prompt, group in zip(chunk, groups, strict=True):
        if isinstance(group, Missing):
            logger.warning("prompt %s is left out of this round: %s", prompt.id, group.reason)
            continue
        # Decoded once for the whole run.
        rows += [replace(row, text=text_of(row.token_ids)) for row in group]
    return rows


class _Parts:
    """The chunks of a round in memory and on disk, and the tables that oracles are asked for.

    A chunk's samples are written before its tables are asked for, and its tables as soon as they come: whatever moment
    a run is killed at, it asks again at most for what was in flight.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[Prompt],
        oracles: Mapping[str, Oracle],
        against: Mapping[str, Sequence[str]],
    ) -> None:
        self._folder, self._oracles, self._against = folder, oracles, against
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._rows: dict[int, list[Response]] = {}
        self._answers: dict[str, dict[int, list[Answer]]] = {name: {} for name in oracles}
        self._pending: dict[tuple[str, int], Future[list[Answer]]] = {}

    def restore(self, number: int) -> bool:
        """Return whether a chunk is on disk; if so its tables are read, or asked for."""
        if not self._part("samples", number).exists():
            return False
        self._rows[number] = read_rows(self._part("samples", number), Response)
        self._ask(number)
        return True

    def add(self, number: int, rows: list[Response]) -> None:
        """Write the samples of a chunk, and ask for its tables."""
        write_rows(self._part("samples", number), rows, Response)
        self._rows[number] = rows
        self._ask(number)

    def collect(self, *, wait: bool) -> None:
        """Write the tables that have come; with ``wait``, all of them. An oracle's error is raised here."""
        for name, number in list(self._pending):
            # In the order of asking; answers that are behind a slow one are written when it has come.
            if wait or self._pending[name, number].done():
                answers = self._pending.pop((name, number)).result()
                self._answers[name][number] = answers
                self._write(self._part(name, number), name, {number: answers})

    def finish(self, samples: Path, files: Mapping[str, Path]) -> list[Response]:
        """Write the files of the whole round, remove the chunks, and return the responses."""
        rows = [row for number in sorted(self._rows) for row in self._rows[number]]
        if not rows:
            shutil.rmtree(self._folder)
            raise RunError(
                "no group of the round was sampled completely: see the log for each, raise the limits and resume"
            )
        for name, path in files.items():
            if not path.exists():
                self._write(path, name, self._answers[name])
            # One broken prompt is left out; a round without any table means that the oracle cannot do its work.
            if all(answer.failure is not None for answer in self.answers_of(name)):
                raise RunError(f"the oracle gave no whole table: {path} says why of each prompt")
        # Last, since a round whose samples are whole does not look for chunks any more.
        if not samples.exists():
            write_rows(samples, rows, Response)
        shutil.rmtree(self._folder)
        return rows

    def answers_of(self, name: str) -> list[Answer]:
        """Return the tables of an oracle, in the order of the prompts."""
        return [answer for number in sorted(self._answers[name]) for answer in self._answers[name][number]]

    def _ask(self, number: int) -> None:
        # Each oracle by itself: the judge may lack what the oracle has already.
        for name, oracle in self._oracles.items():
            path = self._part(name, number)
            if path.exists():
                self._answers[name][number] = read_answers(path)
            elif groups := list(self._groups(self._rows[number])):
                self._pending[name, number] = oracle.submit(groups)
            else:
                self._answers[name][number] = []
                self._write(path, name, {})

    def _groups(self, rows: Sequence[Response]) -> Iterator[tuple[Prompt, Sequence[str]]]:
        # Rows of a chunk are in the order of its prompts, and a group that could not be sampled has none.
        texts: dict[str, list[str]] = {}
        for row in rows:
            texts.setdefault(row.prompt_id, []).append(row.text)
        for prompt_id, own in texts.items():
            yield self._prompts[prompt_id], [*own, *self._against.get(prompt_id, ())]

    def _part(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:05d}.parquet"

    def _write(self, path: Path, name: str, answers: Mapping[int, Sequence[Answer]]) -> None:
        # In every row, so that a file says by itself which model it is from.
        identity = self._oracles[name].identity
        model, fingerprint = (identity.model, identity.fingerprint) if identity else ("", "")
        rows = [(number, model, fingerprint, answer) for number in sorted(answers) for answer in answers[number]]
        write_answers(path, rows)
