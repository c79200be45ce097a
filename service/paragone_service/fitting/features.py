"""The hidden states of texts, for a head to be fitted to them: read and run as scoring reads and runs them.

They pass a queue of their own, which takes turns with the model's others on its devices, a batch at a time; so a fit
does not hold up those who ask. Nothing is cached: a hidden state is a thousand times as large as a representation.

n = responses, R = reads, H = hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.network import output_width
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import Reading, read_plan
from paragone_service.cache.tiers import Codec
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.model_io import compact, open_queue
from paragone_service.scoring.request import Call, RequestItem, as_conversations
from paragone_service.scoring.tickets import Job, Ticket, wait_for

__all__ = ["hidden_states"]

_BLOCK = 1_024
"""Responses that are read, and later run, at a time: what a reading holds beside its tokens is many times as large."""
_MOST_BYTES = 1 << 30
"""Of hidden states; a fit copies them in double precision."""


async def hidden_states(
    hosted: HostedModel, spec: ModelSpec, items: Sequence[RequestItem], call: Call
) -> tuple[NDArray[np.float32], int]:
    """Return the hidden states of all responses at the reads of a head, in order, and the tokens that were run.

    Args:
        spec: of the head.
        items: with responses that came in full.

    Returns:
        The states, [n, R, H], and a count.

    Raises:
        ServiceError: ``invalid_request``, if they would take too much memory; for the first response that cannot be
            read, or whose states are not finite; ``quota_exceeded``.
        ClientGoneError: if the client left meanwhile.
    """
    rows = [(item, response) for item in items for response in item.responses]
    states = _room(len(rows), hosted.model, spec)
    jobs = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        readings = await hosted.read(as_conversations(block), call)
        for (item, _), reading in zip(block, readings, strict=True):
            if isinstance(reading, TextError):
                call.problems.add(item.index, ServiceError(ErrorCode(reading.code), str(reading)))
            else:
                jobs.append(_job(reading, spec, hosted.model))
    tokens = sum(len(job.item.token_ids) for job in jobs)
    if call.spending is not None:
        await call.spending.tokens(tokens)
    await hosted.unless_gone(_run(hosted, jobs, states, call), call)
    return states, tokens


def _room(responses: int, model: PreferenceModel, spec: ModelSpec) -> NDArray[np.float32]:
    """Return the array that the states go into, or refuse one that is too large. [n, R, H]."""
    reads = len(read_plan(spec, 1, 2, first_token=model.first_token))
    width = output_width(model.network.config)
    size = responses * reads * width * np.dtype(np.float32).itemsize
    if size > _MOST_BYTES:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"the hidden states of {responses} responses take {size / 1e6:.3g} MB, over the limit of "
            f"{_MOST_BYTES / 1e6:.3g} MB: send fewer pairs, or fit the head with `paragone train head`",
        )
    return np.empty((responses, reads, width), np.float32)


def _job(reading: Reading, spec: ModelSpec, model: PreferenceModel) -> Job:
    reads = read_plan(spec, reading.prompt_length, len(reading.token_ids), first_token=model.first_token)
    item = compact(replace(reading.item, reads=reads))
    return Job(None, item, reading.dropped_tokens, reading.shown)


async def _run(hosted: HostedModel, jobs: Sequence[Job], states: NDArray[np.float32], call: Call) -> None:
    """Fill in the states of all jobs."""
    codec, resources = Codec(states[0].size), hosted.resources
    failure = f"the backbone of model {hosted.name} gave NaN or infinity for a response"
    queue = open_queue(resources.head(hosted.name, _as_they_are, codec, failure=failure), resources)
    queue.start()
    try:
        for start in range(0, len(jobs), _BLOCK):
            tickets = queue.submit(jobs[start : start + _BLOCK], client=call.client, deadline=call.deadline)
            try:
                await wait_for(tickets, call.timings, resources.clock)
            finally:
                queue.leave(tickets)
            values = _values(tickets)
            states[start : start + _BLOCK] = codec.decode(values).vectors.reshape(len(values), *states.shape[1:])
    finally:
        await queue.close()


def _values(tickets: Sequence[Ticket]) -> list[bytes]:
    values = []
    for ticket in tickets:
        outcome = ticket.outcome.result()
        if isinstance(outcome, ServiceError):
            raise outcome
        values.append(outcome)
    return values


@torch.inference_mode()
def _as_they_are(model: PreferenceModel, hidden: Tensor) -> Tensor:  # noqa: ARG001 (a head asks its model)
    return hidden.flatten(1)
