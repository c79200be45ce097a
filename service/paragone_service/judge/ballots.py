"""What a judge said of one showing of two responses: its key, its bytes in a cache, and the log-odds of two of them.

    mark u8 | version u8 | votes u16 | first f64 | second f64 | deflated JSON of the rationales

Of votes, ``first`` and ``second`` are how many the two shown responses got; of log-probabilities, the logarithms of
their mean probabilities; of grades, ``first`` is the mean grade. Little-endian.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from paragone_models.symmetrise import Symmetrise, symmetrised

__all__ = ["Ballot", "BallotCodec", "ballot_key", "counted", "jeffreys", "log_odds", "pack"]

_HEAD = struct.Struct("<BBHdd")
_MARK = 0x4A
_VERSION = 1
_LONGEST_RATIONALE = 16_384
_MOST_INFLATED = 4_000_000


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes of one showing.

    Attributes:
        votes: how many answers it is made of.
        first: what the response that was shown first got.
        second: what the other one got.
        packed: the rationales, deflated.
    """

    votes: int
    first: float
    second: float
    packed: bytes = b""

    @property
    def rationales(self) -> list[str]:
        """What the judge said for each vote."""
        if not self.packed:
            return []
        texts = json.loads(zlib.decompressobj().decompress(self.packed, _MOST_INFLATED))
        return [str(text) for text in texts]


def pack(rationales: Sequence[str]) -> bytes:
    """Return rationales in few bytes; of a long one its end is kept, where the verdict stands."""
    texts = [text if len(text) <= _LONGEST_RATIONALE else "…" + text[-_LONGEST_RATIONALE:] for text in rationales]
    return zlib.compress(json.dumps(texts).encode())


class BallotCodec:
    """Read and write ballots."""

    @staticmethod
    def encode(ballot: Ballot) -> bytes:
        """Return the bytes of a ballot."""
        return _HEAD.pack(_MARK, _VERSION, ballot.votes, ballot.first, ballot.second) + ballot.packed

    @staticmethod
    def decode(value: bytes) -> Ballot:
        """Return the ballot of a value that is known to be sound."""
        _, _, votes, first, second = _HEAD.unpack_from(value)
        return Ballot(votes, first, second, value[_HEAD.size :])

    def sound(self, values: Sequence[bytes]) -> list[bool]:
        """Return for each value whether it is a ballot of this version with finite numbers."""
        return [self._is_sound(value) for value in values]

    @staticmethod
    def _is_sound(value: bytes) -> bool:
        if len(value) < _HEAD.size:
            return False
        mark, version, votes, first, second = _HEAD.unpack_from(value)
        return mark == _MARK and version == _VERSION and votes > 0 and math.isfinite(first) and math.isfinite(second)

    @staticmethod
    def outdated(value: bytes) -> bool:
        """Return whether this looks like a ballot of an earlier version."""
        return len(value) >= _HEAD.size and value[0] == _MARK and 0 < value[1] < _VERSION


def ballot_key(space: bytes, conversations: Sequence[bytes], principle: str | None) -> bytes:
    """Return the key of a showing.

    Args:
        space: the judge's namespace.
        conversations: 16 bytes for the prompt with each response, in the order in which they are shown.
        principle: what is judged by, if the request says.
    """
    whole = hashlib.blake2b(b"J", digest_size=16, usedforsecurity=False)
    for digest in conversations:
        whole.update(digest)
    if principle is not None:
        whole.update(b"P" + principle.encode())
    return space + whole.digest()


def log_odds(forward: Ballot, backward: Ballot | None, *, kind: str, symmetrise: Symmetrise) -> float:
    """Return the log-odds of the first response over the second, before temperature.

        votes     log(n1 + ½) − log(n2 + ½), with the votes of both orders counted together
        logprobs  of both orders by ``symmetrise``
        grades    the difference of the two mean grades, in points

    ½ is added to votes (the mean of a Beta posterior under Jeffreys' prior), so that three votes of three are no
    certainty. Swapping the responses flips exactly the sign.

    Args:
        forward: of the showing in which the first response comes first; of grades, its own.
        backward: of the other order, or None; of grades, the second response's.
        kind: votes, logprobs or grades.
        symmetrise: see ``paragone_models.symmetrise``; one order alone needs none.
    """
    if kind == "grades":
        assert backward is not None
        return forward.first - backward.first
    if kind == "votes":
        first, second = counted(forward, backward)
        return math.log(first + 0.5) - math.log(second + 0.5)
    if backward is None:
        return forward.first - forward.second
    forwards, backwards = (np.array(order.first - order.second) for order in (forward, backward))
    return float(symmetrised(forwards, backwards, symmetrise))


def counted(forward: Ballot, backward: Ballot | None) -> tuple[float, float]:
    """Return the votes for the first response and for the second, of both orders together."""
    if backward is None:
        return forward.first, forward.second
    return forward.first + backward.second, forward.second + backward.first


def jeffreys(first: float, second: float) -> tuple[float, float]:
    """Return the 95 % interval of a probability after votes for and against, under Jeffreys' prior Beta(½, ½).

    It ends at 0 where there is no vote for, and at 1 where there is none against. Source: Brown, Cai, DasGupta,
    Interval Estimation for a Binomial Proportion, Statistical Science 16 (2001), §3.1.3.
    """
    low, high = betaincinv(first + 0.5, second + 0.5, [0.025, 0.975])
    return (float(low) if first > 0 else 0.0, float(high) if second > 0 else 1.0)
