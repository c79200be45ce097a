"""The gate of a model, on request: its weights of the 2-blocks, or attributes, for the prompt of each response.

A cached representation cannot tell them: a 2-block of it is the normalised vector's times the root of its weight, and
what a block's length owes to which of the two is lost. So prompts are run once more, alone (each distinct one once
a request, nothing is kept), through a queue of their own that takes turns with the responses on the device.

k = 2-blocks, or attributes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem, Reading
from paragone_service.cache.tiers import Codec
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.model_io import Resources, open_queue
from paragone_service.scoring.reading import ReadingThread
from paragone_service.scoring.request import Call, RequestItem, as_conversations
from paragone_service.scoring.tickets import Job, wait_for

__all__ = ["Gate", "GateScales"]

_Seen = tuple[tuple[int, ...], bytes | None]
"""What a gate sees of a prompt: its tokens, and the key of what is not in them."""


@dataclass(frozen=True)
class GateScales:
    """The gate's weights for a request.

    Attributes:
        by_item: of each item without a problem, by its index. [k] each
        forward_prompts: prompts that were run.
    """

    by_item: Mapping[int, NDArray[np.float32]]
    forward_prompts: int
    forward_tokens: int


class Gate:
    """Compute the gate's weights for one hosted model.

    Args:
        model: the loaded model; it has a gate.
        resources: the model's; nothing is cached, since no prompt has a key.
    """

    def __init__(self, name: str, model: PreferenceModel, resources: Resources, reading: ReadingThread) -> None:
        self._causal = model.network.causal
        self._clock = resources.clock
        self._reading = reading
        self._codec = Codec(model.network.head.gate_size)
        failure = f"the gate of model {name} gave NaN or infinity for a prompt"
        head = resources.head(name, PreferenceModel.gate_scales, self._codec, failure=failure)
        self.scheduler = open_queue(head, resources)

    async def scales(self, items: Sequence[RequestItem], call: Call) -> GateScales:
        """Return the gate's weights for the items that have no problem yet.

        Each item is read with its own response, because a long one may cut the prompt that the gate reads.

        Raises:
            ServiceError: for the first item that has no weights, unless the call reports errors; ``overloaded``, if
                the prompts do not fit into the queue.
        """
        # What has an error already gets no answer, so its prompt would be run for nothing.
        items = [item for item in items if item.index not in call.problems.errors]
        readings = await self._reading.read(as_conversations([(item, item.responses[0]) for item in items]), call)
        prompts: dict[_Seen, EncodeItem] = {}
        by_item: dict[int, _Seen] = {}
        for item, reading in zip(items, readings, strict=True):
            if isinstance(reading, TextError):
                call.problems.add(item.index, ServiceError(ErrorCode(reading.code), str(reading)))
                continue
            prompt = self._prompt(reading)
            key = by_item[item.index] = (tuple(prompt.token_ids), prompt.content_key)
            prompts.setdefault(key, prompt)  # by tokens and not by text: a cut may make two prompts of one
        outcomes = dict(zip(prompts, await self._outcomes(list(prompts.values()), call), strict=True))
        scales: dict[int, NDArray[np.float32]] = {}
        for index, key in by_item.items():
            outcome = outcomes[key]
            if isinstance(outcome, ServiceError):
                call.problems.add(index, outcome)
            else:
                scales[index] = self._codec.decode([outcome]).vectors[0]
        return GateScales(scales, len(prompts), sum(map(len, prompts)))

    def _prompt(self, reading: Reading) -> EncodeItem:
        """Return what has to be run for the gate: up to its read, or everything where the backbone looks ahead."""
        gate_read = reading.reads[0]
        item = reading.item
        tokens = item.token_ids[: gate_read[1]] if self._causal else item.token_ids
        # The gate's read stands for both reads of the plan: every item of a batch must have the same number of them.
        return replace(item, token_ids=tokens, reads=(gate_read, gate_read), prompt_length=gate_read[1])

    async def _outcomes(self, prompts: Sequence[EncodeItem], call: Call) -> list[bytes | ServiceError]:
        if not prompts:
            return []
        if call.spending is not None and prompts:
            await call.spending.tokens(sum(len(prompt.token_ids) for prompt in prompts))
        tickets = self.scheduler.submit(
            [Job(None, prompt, 0) for prompt in prompts],
            client=call.client,
            deadline=call.deadline,
            rested=call.rested,
        )
        try:
            await wait_for(tickets, call.timings, self._clock)
        finally:
            self.scheduler.leave(tickets)
        return [ticket.outcome.result() for ticket in tickets]
