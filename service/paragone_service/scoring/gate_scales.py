"""The gate of a general preference model, on request: its weights of the 2-blocks for the prompt of each response.

A cached representation cannot tell them: every 2-block of it is the normalised vector's times the root of its weight,
and what a block's length owes to which of the two is lost. So prompts are run once more, alone (each distinct one once
a request, nothing is kept), through a queue of their own that takes turns with the responses on the device.

n = responses, k = 2-blocks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem, Reading
from paragone_service.cache.codec import Codec
from paragone_service.cache.tiers import Cache
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.forwards import Forwards
from paragone_service.scoring.request import Call, unless_gone
from paragone_service.scoring.scheduler import Scheduler, waited

__all__ = ["Gate", "GateScales"]


@dataclass(frozen=True)
class GateScales:
    """The gate's weights for a request.

    Attributes:
        scales: one row per response, or why it has none.
        forward_prompts: prompts that were run.
        forward_tokens: their tokens.
    """

    scales: list[NDArray[np.float32] | ServiceError]
    forward_prompts: int
    forward_tokens: int


class Gate:
    """Tell the gate's weights for one hosted model.

    Args:
        name: what the model is called in requests.
        model: the loaded model; it has a gate.
        engine: what runs its backbone.
        device: the thread that its head runs on.
        cache: shared by all models; nothing is kept there, since no prompt has a key.
        metrics: shared by all models.
        max_batch_tokens: budget of a batch.
        max_queue_tokens: how many tokens of prompts may wait.
        clock: in seconds.
    """

    def __init__(
        self,
        name: str,
        model: PreferenceModel,
        engine: Engine,
        device: DeviceThread,
        cache: Cache,
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._clock = clock
        self._codec = Codec(model.spec.blocks)
        forwards = Forwards(
            name,
            model.gate_scales,
            engine,
            device,
            cache,
            self._codec,
            metrics,
            failure=f"the gate of model {name} gave NaN or infinity for a prompt",
        )
        self.scheduler = Scheduler(
            name,
            forwards.run,
            forwards.settle,
            turn=device.turn,
            metrics=metrics,
            shares_prompts=engine.shares_prompts,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            clock=clock,
        )

    async def scales(self, readings: Sequence[Reading], call: Call) -> GateScales:
        """Return the gate's weights for each reading, in order.

        Raises:
            ServiceError: ``overloaded``, if the prompts do not fit into the queue.
            ClientGoneError: if the client left meanwhile.
        """
        prompts: dict[tuple[int, ...], EncodeItem] = {}
        rows = []
        for reading in readings:
            item = self._prompt(reading)
            key = tuple(item.token_ids)
            prompts.setdefault(key, item)
            rows.append(key)
        work = self._outcomes(list(prompts.values()), call)
        outcomes = dict(zip(prompts, await (work if call.gone is None else unless_gone(work, call.gone)), strict=True))
        return GateScales(
            scales=[outcomes[key] for key in rows],
            forward_prompts=len(prompts),
            forward_tokens=sum(map(len, prompts)),
        )

    def _prompt(self, reading: Reading) -> EncodeItem:
        """Return what has to be run for the gate: up to its read, or everything where the backbone looks ahead."""
        gate_read = reading.reads[0]
        tokens = reading.token_ids[: gate_read[1]] if self._model.network.causal else reading.token_ids
        return EncodeItem(tokens, (gate_read, gate_read), gate_read[1])

    async def _outcomes(self, items: Sequence[EncodeItem], call: Call) -> list[NDArray[np.float32] | ServiceError]:
        if not items:
            return []
        tickets = self.scheduler.submit([(None, item, 0) for item in items])
        try:
            await waited(tickets, call.timings, self._clock)
        finally:
            self.scheduler.leave(tickets)
        outcomes = [ticket.outcome.result() for ticket in tickets]
        return [one if isinstance(one, ServiceError) else self._codec.decode([one])[0][0] for one in outcomes]
