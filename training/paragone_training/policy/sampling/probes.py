"""Eight stored responses that a sampler proves with, after each load, that it has the policy's weights.

    RUN/probes.parquet     prompts and responses of the initial policy, drawn once in this process

R responses. A server that kept old weights is near the old log-probabilities, and a tolerance alone may not see it
where training moves slowly; so both are compared.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paragone_evaluation.readers import Prompt
from paragone_training.policy.errors import SamplerMismatchError
from paragone_training.policy.model.logprobs import frozen_logprobs, response_logprobs
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.rows.files import read_table, write_table
from paragone_training.policy.sampling.in_process import Draw, draw, stream
from paragone_training.policy.sections import PolicyTrainingSection

__all__ = ["Probe", "check_probes", "probe_logprobs", "stored_probes"]

logger = logging.getLogger(__name__)

_COUNT = 8
_LONGEST = 64
_MUCH_NEARER = 0.25
"""Old weights explain a server's log-probabilities if its distance to them is below this share of the other."""
_GROWTH = 10.0
_NOTICED = 1e-4
"""Nats a token, below which growth of a server's distance is rounding."""

_PROBES = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("token_ids", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class Probe:
    """One stored response.

    Attributes:
        prompt_ids: token ids of its prompt.
        token_ids: its own, at least one.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


def stored_probes(
    path: Path, policy: Policy, prompts: Sequence[Prompt], *, source: str, seed: int, max_new_tokens: int
) -> list[Probe]:
    """Return the stored responses, and draw and store them the first time.

    Args:
        path: of probes.parquet.
        policy: takes the initial weights if they have to be drawn.
        prompts: with token ids.
        source: of the initial weights.
        seed: of the random numbers.
        max_new_tokens: of the recipe.

    Raises:
        RunError: if the file cannot be read or written.
    """
    if not path.exists():
        policy.become(source)
        asked = [prompts[place % len(prompts)].token_ids for place in range(_COUNT)]
        # One token less than a response may have: servers that score a text draw one behind it.
        settings = Draw(max_new_tokens=max(min(_LONGEST, max_new_tokens - 1), 1))
        drawn = draw(policy, asked, [stream(seed, "probe", place) for place in range(_COUNT)], settings)
        columns = {"prompt_ids": [list(ids) for ids in asked], "token_ids": [list(one.token_ids) for one in drawn]}
        write_table(path, columns, _PROBES)
    table = read_table(path)
    return [
        Probe(tuple(prompt), tuple(own)) for prompt, own in zip(table["prompt_ids"], table["token_ids"], strict=True)
    ]


def probe_logprobs(policy: Policy, probes: Sequence[Probe], training: PolicyTrainingSection) -> list[float]:
    """Return the trainer's log-probabilities of the stored responses, in nats. [R].

    Args:
        policy: with the weights that are asked.
        probes: R.
        training: chunk and precision.
    """
    return frozen_logprobs(
        response_logprobs(policy.model, training),
        [(probe.prompt_ids, probe.token_ids) for probe in probes],
        pad_id=policy.tokenizer.pad_token_id,
        batch=len(probes),
        bf16=training.bf16,
    )


def check_probes(
    url: str,
    served: Sequence[float],
    expected: Sequence[float],
    probes: Sequence[Probe],
    *,
    tolerance: float,
    before: Sequence[float] | None,
    usual: float | None,
) -> float:
    """Return how far a server's log-probabilities are from the trainer's, in nats a token; refuse other weights.

    Args:
        url: of the server, for messages.
        served: its log-probabilities of the stored responses. [R]
        expected: the trainer's. [R]
        probes: R.
        tolerance: nats a token that they may be apart.
        before: the trainer's under the weights that the server had before, or None. [R]
        usual: the distance after the first load, or None; one that grew is warned about.

    Raises:
        SamplerMismatchError: if it is too far, or the weights before explain it much better.
    """
    off = _distances(served, expected, probes)
    rows = ", ".join(f"{mine:.4f}/{theirs:.4f}" for mine, theirs in zip(served, expected, strict=True))
    largest = max(off)
    if not largest <= tolerance:
        raise SamplerMismatchError(
            f"the log-probabilities of {url} are up to {largest:.3g} nats a token from the trainer's, and "
            f"sampling.tolerance is {tolerance:g}: it has other weights, or another dtype (server/trainer: {rows})"
        )
    if before is not None and list(before) != list(expected):
        old = sum(_distances(served, before, probes))
        if old < _MUCH_NEARER * sum(off):
            raise SamplerMismatchError(
                f"{url} still has the weights of the policy before: it is {old / len(probes):.2g} nats a token from "
                f"those and {sum(off) / len(probes):.2g} from the new ones (server/trainer: {rows})"
            )
    if usual is not None and largest > max(_GROWTH * usual, _NOTICED):
        logger.warning(
            "%s is %.2g nats a token from the trainer after this load and was %.2g after the first one: part of the "
            "weights may not have been taken; a lower sampling.tolerance stops the run",
            url,
            largest,
            usual,
        )
    return largest


def _distances(served: Sequence[float], wanted: Sequence[float], probes: Sequence[Probe]) -> list[float]:
    return [
        abs(mine - theirs) / len(probe.token_ids) for mine, theirs, probe in zip(served, wanted, probes, strict=True)
    ]
