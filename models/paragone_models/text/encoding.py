"""The unit of work of every engine: one sequence of tokens and the places where its hidden states are read."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["EncodeItem", "Read"]

Read = tuple[int, int]
"""Half-open span of positions; the value read is the mean of the last hidden states at start, …, stop - 1."""


@dataclass(frozen=True, slots=True)
class EncodeItem:
    """One sequence for an engine.

    Attributes:
        token_ids: the whole conversation, no padding.
        reads: spans whose mean hidden state is wanted, in the order of the read plan.
        prompt_length: tokens of the prompt alone, before the response's header. A hint about what siblings share:
            sharing itself goes by the longest common token prefix.
        content_key: names content that is not in the tokens (an image, say); None for text.
    """

    token_ids: Sequence[int]
    reads: tuple[Read, ...]
    prompt_length: int
    content_key: bytes | None = None

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        if length == 0:
            raise ValueError("token_ids is empty: a sequence needs at least one token")
        for start, stop in self.reads:
            if not 0 <= start < stop <= length:
                raise ValueError(f"read ({start}, {stop}) does not lie inside the {length} tokens of its sequence")
