"""What routes ask of a model that reads both responses at once, whether it runs here or elsewhere.

Such a model has no representation of one response. A table of K responses costs it K(K−1)/2 comparisons, each of them
in one order or in both; what it answers is symmetrised, so a comparison is asked for once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from paragone.codes import ErrorCode
from paragone.wire import Criterion, ModelInfo, ModelLimits, Prompt, Rationale, Response, Usage
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Call

__all__ = ["Compared", "Detail", "Duel", "PairSource", "check_unchanged"]


@dataclass(frozen=True, slots=True)
class Duel:
    """One comparison that a request needs.

    Attributes:
        item: index of the item that it belongs to, as it was sent.
        first: the response whose win is measured.
        principle: what to judge by, if the request says.
        criteria: several such principles, each with a name and a weight.
    """

    item: int
    prompt: Prompt
    tools: list[dict[str, JsonValue]] | None
    first: Response
    second: Response
    principle: str | None = None
    criteria: Sequence[Criterion] = ()


@dataclass(frozen=True, slots=True)
class Detail:
    """What a comparison says beside its log-odds.

    Attributes:
        interval: in which its probability lies, where that was estimated from votes.
        criteria: the log-odds by each criterion, temperature applied.
        rationales: what was said, if the call wants it.
        spread: by how much members of an ensemble differ, the standard deviation of their log-odds.
        abstained: whether an ensemble takes them for too little to say who is preferred.
    """

    interval: tuple[float, float] | None = None
    criteria: Mapping[str, float] = field(default_factory=dict)
    rationales: Sequence[Rationale] = ()
    spread: float | None = None
    abstained: bool = False


@dataclass(frozen=True)
class Compared:
    """The answers to the n duels of a request.

    Attributes:
        logits: log-odds of each first response over its second, float64, temperature applied; NaN where there is an
            error. Exactly the negative of what the swapped duel has, of a model that is symmetrised. [n]
        errors: why a duel has no answer, by its number.
        usage: what they cost.
        details: what else a duel's answer says, by its number.
    """

    logits: NDArray[np.float64]
    usage: Usage
    errors: Mapping[int, ServiceError] = field(default_factory=dict)
    details: Mapping[int, Detail] = field(default_factory=dict)


@runtime_checkable
class PairSource(Protocol):
    """A hosted model that compares.

    Attributes:
        name: what it is called in requests.
        takes_principles: whether duels may say what they are to be judged by, and have reasons.
    """

    name: str
    takes_principles: bool

    @property
    def header(self) -> Mapping[str, Any]:
        """What every answer says of the model: model, identity, fingerprint, calibrated."""

    def start(self) -> None:
        """Take requests; needs a running event loop."""

    async def close(self) -> None:
        """Stop, and let go of what it holds."""

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether it answered within the last seconds, asking it something small if it did not."""

    def described(self, limits: ModelLimits) -> ModelInfo:
        """Return what ``/v1/models`` says of it."""

    async def compare(self, duels: Sequence[Duel], call: Call) -> Compared:
        """Return the log-odds of each duel; what fails has its error there, and no number.

        Raises:
            ServiceError: if the request as a whole is refused: overload, a deadline, a quota.
            ClientGoneError: if the client left meanwhile.
        """


def check_unchanged(header: Mapping[str, Any], source: PairSource) -> Mapping[str, Any]:
    """Return what a source was when it was asked first, refusing an answer of what it was and what it became.

    Raises:
        ServiceError: ``engine_unavailable``, if a member of an ensemble was exchanged meanwhile.
    """
    if source.header != header:
        raise ServiceError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"a member of model {source.name} was exchanged while it was asked: send the request again",
            retry_after_s=1,
        )
    return header
