"""The contract of an engine: it runs a backbone, never a head.

Token ids go in, hidden states at the read positions come out. Heads, gates and comparators are ours, in float32,
outside the engine, so that every engine serves every kind of model with the same code. An engine may be this process
(``local``) or another server (``vllm``); it decides itself how it packs, pads or shares prefixes within one call.

n = items of a call, R = reads of the model's read plan, H = hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from paragone_models.text.reader import EncodeItem

# For type checkers alone: an engine that asks another server need not load torch to be named.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EncodeItem", "Engine", "EngineOutOfMemoryError", "EngineUnavailableError", "Health"]


class EngineOutOfMemoryError(Exception):
    """Say that a call did not fit into the device's memory and that a smaller one may."""


class EngineUnavailableError(Exception):
    """Say that the engine is out of reach or too busy for now; the same call may work in some seconds."""


@dataclass(frozen=True, slots=True)
class Health:
    """What an engine knows of itself, without running anything on the device.

    Attributes:
        healthy: False once it cannot work any more, or is out of reach.
        detail: why, for people; empty while healthy.
    """

    healthy: bool
    detail: str = ""


class Engine(Protocol):
    """Run the backbone of one model. One call at a time; the scheduler sees to it."""

    name: str
    """What ``ModelInfo.engine`` says: local, triton or vllm."""
    shares_prompts: bool
    """Whether one call computes the prompt of its siblings once; their prompt then counts once towards a batch."""

    async def encode(self, items: Sequence[EncodeItem]) -> "Tensor":
        """Return the hidden state of every read of every item, [n, R, H], in the order given.

        It must not block the event loop, and is never cancelled half-way. Every item has the same number R of reads.

        Raises:
            EngineOutOfMemoryError: if the call was too large for the device; the scheduler splits it.
            EngineUnavailableError: if it is away for now; the waiting requests are told to come back.
            Exception: anything else fails the responses of this call, and only them.
        """
        ...

    async def health(self) -> Health:
        """Return what the engine knows of itself; it must answer within about a second."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections, after the last call."""
        ...
