"""A pairwise model of this server as a source of comparisons: each order of a pair is one sequence of its queue.

What is cached is the number of one order, under a key of prompt and both responses.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import ModelInfo, ModelLimits
from paragone_models.symmetrise import symmetrised
from paragone_models.text.pairs import PairText
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.source import Compared, Duel
from paragone_service.scoring.describing import described
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Problems, RequestItem, prompt_messages, response_messages

__all__ = ["PairwiseModel"]

Messages = tuple[dict[str, Any], ...]


class PairwiseModel:
    """Compare by a hosted model of kind ``pairwise``.

    Args:
        hosted: the model, which its registry starts, watches and closes.
    """

    takes_principles = False

    def __init__(self, hosted: HostedModel) -> None:
        self.name = hosted.name
        self.header: Mapping[str, Any] = hosted.header
        self._hosted = hosted
        how = hosted.model.spec.symmetrise
        assert how is not None  # the spec sees to it
        self._how = how

    def start(self) -> None:
        """Do nothing: the hosted model is started by its registry."""

    async def close(self) -> None:
        """Do nothing: the hosted model is closed by its registry."""

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether a forward succeeded within the last seconds, running one if none did."""
        return await self._hosted.alive(within_s=within_s, timeout_s=timeout_s)

    def described(self, limits: ModelLimits) -> ModelInfo:
        """Return what ``/v1/models`` says of it."""
        return described(self._hosted, limits)

    async def compare(self, duels: Sequence[Duel], call: Call) -> Compared:
        """Return the log-odds of each duel, from both orders unless it is told to read one; see ``PairSource``."""
        orders = 1 if self._how == "none" else 2
        problems = Problems("duels", report=True)
        # One object for each text, however many duels it is in: keys and sizes are then made once.
        asked = {id(duel.prompt): duel.prompt for duel in duels}
        prompts = {key: prompt_messages(prompt) for key, prompt in asked.items()}
        given = {id(response): response for duel in duels for response in (duel.first, duel.second)}
        responses = {key: tuple(response_messages(response)) for key, response in given.items()}
        items = [
            _item(number, prompts[id(duel.prompt)], responses[id(duel.first)], responses[id(duel.second)], orders)
            for number, duel in enumerate(duels)
        ]
        for number, duel in enumerate(duels):
            if duel.tools:
                problem = f"model {self.name} reads no tools: leave them out"
                problems.add(number, ServiceError(ErrorCode.UNSUPPORTED_CONTENT, problem))
        sound = [item for item in items if item.index not in problems.errors]
        represented = await self._hosted.represent(sound, dataclasses.replace(call, problems=problems, ids=False))
        numbers = represented.vectors[:, 0].astype(np.float64).reshape(-1, orders)
        logits = np.full(len(duels), np.nan)
        for item, both in zip(represented.items, numbers, strict=True):
            if item in problems.errors:
                continue
            logit = float(symmetrised(both[0], both[-1], self._how)) / self._hosted.model.spec.temperature
            if np.isfinite(logit):
                logits[item] = logit
            else:
                problems.add(item, ServiceError(ErrorCode.NON_FINITE_SCORE, "the log-odds are no finite number"))
        return Compared(logits, represented.usage, problems.errors)


def _item(number: int, prompt: Messages, first: Messages, second: Messages, orders: int) -> RequestItem:
    texts = (PairText(prompt, first, second), PairText(prompt, second, first))
    return RequestItem(number, None, None, texts[:orders])
