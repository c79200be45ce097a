"""A model that compares by a fixed rule, for what is to be seen without a model."""

import asyncio

import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import ModelInfo, Usage
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.source import Compared


class Longest:
    """Prefer the longer response, a letter a nat, or by another rule; fail where both have ``fail``, or one ``broken``.

    Attributes:
        asked: the number of comparisons of each call.
        code: of what fails.
        gate: calls wait for it.
    """

    name = "longest"
    takes_principles = False

    def __init__(self, rule=lambda first, second: float(len(first) - len(second))):
        self.rule = rule
        self.header = {"model": "longest", "identity": "0" * 64, "fingerprint": "0" * 16, "calibrated": False}
        self.asked = []
        self.code = ErrorCode.ENGINE_FAILED
        self.gate = asyncio.Event()
        self.gate.set()

    def start(self):
        pass

    async def close(self):
        pass

    async def alive(self, *, within_s, timeout_s):  # noqa: ARG002 (the protocol's)
        return True

    def described(self, limits):
        return ModelInfo(
            id=self.name,
            kind="pairwise",
            source="test",
            identity="0" * 64,
            fingerprint="0" * 16,
            numerics={},
            limits=limits,
            temperature=1,
            calibrated=False,
            attributes=[],
            dimension=None,
            demonstration=True,
            engine="local",
            pooling="last",
            special_tokens="escape",
            reasoning="keep",
        )

    async def compare(self, duels, call):  # noqa: ARG002 (the protocol's)
        self.asked.append(len(duels))
        await self.gate.wait()
        logits = np.array([self.rule(_text(duel.first), _text(duel.second)) for duel in duels])
        failing = [at for at, duel in enumerate(duels) if _fails(_text(duel.first), _text(duel.second))]
        logits[failing] = np.nan
        error = ServiceError(self.code, "no verdict")
        usage = Usage(forward_responses=len(duels), forward_tokens=2 * len(duels), cached_responses=0, truncated=0)
        return Compared(logits, usage, dict.fromkeys(failing, error))


def _text(response):
    return response if isinstance(response, str) else response.content


def _fails(first, second):
    return ("fail" in first and "fail" in second) or "broken" in first or "broken" in second
