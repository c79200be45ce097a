"""The hidden states of texts, for a head to be fitted to them: read and run as scoring reads and runs them.

They pass a queue of their own, which takes turns with the model's others on its devices, a batch at a time; so a fit
does not hold up those who ask. Nothing is cached: a hidden state is a thousand times as large as a representation.

n = responses, R = reads, H = hidden size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.network import output_width
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem, Reading, read_plan
from paragone_service.cache.tiers import Codec
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.model_io import open_queue
from paragone_service.scoring.request import Call, RequestItem, as_conversations
from paragone_service.scoring.tickets import Job, wait_for

__all__ = ["hidden_states"]


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
        ServiceError: for the first response that cannot be read, or whose states are not finite; ``quota_exceeded``.
        ClientGoneError: if the client left meanwhile.
    """
    rows = [(item, response) for item in items for response in item.responses]
    readings = await hosted.read(as_conversations(rows), call)
    jobs = []
    for (item, _), reading in zip(rows, readings, strict=True):
        if isinstance(reading, TextError):
            call.problems.add(item.index, ServiceError(ErrorCode(reading.code), str(reading)))
        else:
            jobs.append(_job(reading, spec, hosted.model))
    tokens = sum(len(job.item.token_ids) for job in jobs)
    if call.spending is not None:
        await call.spending.tokens(tokens)
    return await hosted.unless_gone(_run(hosted, jobs, call), call), tokens


def _job(reading: Reading, spec: ModelSpec, model: PreferenceModel) -> Job:
    length = len(reading.token_ids)
    reads = read_plan(spec, reading.prompt_length, length, first_token=model.first_token)
    return Job(None, EncodeItem(reading.token_ids, reads, reading.prompt_length), reading.dropped_tokens, reading.shown)


async def _run(hosted: HostedModel, jobs: Sequence[Job], call: Call) -> NDArray[np.float32]:
    reads, width = len(jobs[0].item.reads), output_width(hosted.model.network.config)
    codec, resources = Codec(reads * width), hosted.resources
    failure = f"the backbone of model {hosted.name} gave NaN or infinity for a response"
    queue = open_queue(resources.head(hosted.name, _as_they_are, codec, failure=failure), resources)
    queue.start()
    try:
        tickets = queue.submit(jobs, client=call.client, deadline=call.deadline)
        try:
            await wait_for(tickets, call.timings, resources.clock)
        finally:
            queue.leave(tickets)
    finally:
        await queue.close()
    values = []
    for ticket in tickets:
        outcome = ticket.outcome.result()
        if isinstance(outcome, ServiceError):
            raise outcome
        values.append(outcome)
    return codec.decode(values).vectors.reshape(len(jobs), reads, width)


@torch.inference_mode()
def _as_they_are(model: PreferenceModel, hidden: Tensor) -> Tensor:  # noqa: ARG001 (a head asks its model)
    return hidden.flatten(1)
