"""Which rows of a file without splits are held out: the one rule of training and evaluation.

A prompt is held out if the number that its text hashes to lies within the share, so the same prompts are held out by
every command, in any order of the rows, and stay held out when rows are added. A larger share holds out these and more.
Where the file groups its rows, a group's question takes the place of the prompt: what belongs together stays together.
"""

import hashlib
import math

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.rows import Content, text_key

__all__ = ["FEWEST_PROMPTS", "HELD_OUT", "check_holdout", "is_held_out"]

HELD_OUT = "test"
"""The split of the rows that are held out."""

FEWEST_PROMPTS = 5
"""Prompts that must be held out, and be left to learn from, so that agreement is more than a few cases."""

_MOST_EXPECTED = 0.5


def is_held_out(prompt: Content, share: float) -> bool:
    """Return whether the rows of a prompt, or of a group's question, are in the held-out share.

    >>> is_held_out("Tea or coffee?", 0.5), is_held_out("Tea or coffee?", 0.1)
    (False, False)
    """
    digest = hashlib.sha256(text_key(prompt).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def check_holdout(share: float, *, held_out: int, left: int) -> None:
    """Refuse a share that leaves too few prompts on one side.

    Args:
        held_out, left: prompts with rows that can be used.

    Raises:
        DataError: as described; it names a share that would do, where there is one.
    """
    if min(held_out, left) >= FEWEST_PROMPTS:
        return
    # Twice the fewest, because chance decides how many of so few prompts a share takes.
    enough = math.ceil(20 * 2 * FEWEST_PROMPTS / max(held_out + left, 1)) / 20
    remedy = f"take holdout = {enough:g}" if enough <= _MOST_EXPECTED else "hold nothing out of so few"
    raise DataError(
        f"holdout = {share:g} holds out {held_out} of {held_out + left} prompts and leaves {left}; each side needs at "
        f"least {FEWEST_PROMPTS}: {remedy}, or name a file of other rows to evaluate on"
    )
