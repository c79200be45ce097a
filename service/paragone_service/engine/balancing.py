"""One engine of several places: each batch is spread over them, and what one loses another runs.

A place is whatever runs a batch: a server, or a device. Siblings go to the place that a hash of their prompt names,
where its keys and values are, unless that place has more than its share of the tokens on the way; then to the next one
in the prompt's own order, so that a hot prompt has as few homes as it needs. All replicas of the service agree on that.
A place that fails is away until a real call to it succeeds; meanwhile its work, which has no effects, runs elsewhere.
What is of the batch (want of memory) is of no place, and a batch that two places failed has failed.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from paragone_service.engine.contract import EncodeItem, EngineOutOfMemoryError, EngineUnavailableError, Health

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BalancedEngine", "Place", "PlaceSlowError"]

logger = logging.getLogger("paragone.service")

_CALLS = 2
"""Calls that a place has at once: the second is on its way while the first one runs."""
_SHARE = 1.25
"""Of the mean load of all places, how much one may have before siblings leave it."""
_FAMILY_SHARE = 4
"""Siblings are parted where they have more than this part of a batch's tokens for each place."""
_MOST_TRIES = 3
"""Places that one batch may be tried at: it may be the batch that kills them."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_CHECK_S = 0.9
_FRESH_S = 10.0


class PlaceSlowError(EngineUnavailableError):
    """Say that a place was too slow: another one is not tried, because all would come to stand still."""


class Place(Protocol):
    """Run batches somewhere."""

    name: str
    """For people, and for the hash: it must be the same for all replicas."""

    async def encode(self, items: Sequence[EncodeItem]) -> "Tensor":
        """Return the hidden states of a batch, [n, R, H]; raise as an engine does."""
        ...

    async def check(self) -> None:
        """Make a real call.

        Raises:
            EngineUnavailableError: if batches would fail; the message says why.
        """
        ...

    async def mend(self) -> None:
        """Do what may help a place whose check has just failed; nothing, if that is up to somebody else."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


@dataclass(eq=False)
class _Seat:
    """What is known of a place.

    Attributes:
        tokens: on the way to it, or waiting for it.
        away: why it gets nothing; empty while it serves.
        succeeded: when it last did, by the clock.
    """

    place: Place
    calls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CALLS))
    tokens: int = 0
    away: str = ""
    succeeded: float = float("-inf")
    mending: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class _Family:
    """Siblings of one batch, or some of many."""

    prompt: bytes
    numbers: Sequence[int]
    tokens: int


class BalancedEngine:
    """Run a model's backbone at several places.

    Args:
        name: of the engine, as ``ModelInfo.engine`` says it.
        places: at least one.
        shares_prompts: whether a place computes the prompt of siblings in one call once.

    Attributes:
        places: how many there are.
    """

    def __init__(
        self,
        name: str,
        places: Sequence[Place],
        *,
        shares_prompts: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.shares_prompts = shares_prompts
        self.places = len(places)
        self._seats = [_Seat(place) for place in places]
        self._clock = clock

    async def encode(self, items: Sequence[EncodeItem]) -> "Tensor":
        """Return the hidden state of every read of every item, [n, R, H].

        Raises:
            EngineUnavailableError: if no place is left that could run a part of them.
            EngineOutOfMemoryError: if a part was too large for its place.
            Exception: whatever else a place raises.
        """
        return await self._spread(items, frozenset())

    async def health(self) -> Health:
        """Return whether a place serves: it did a moment ago, or does now, asked with a real call."""
        now = self._clock()
        serving = [seat for seat in self._seats if not seat.away]
        # What runs there now tells more than a check, which would wait behind it.
        if any(seat.tokens or now - seat.succeeded < _FRESH_S for seat in serving):
            return Health(healthy=True, detail=self._who_is_away())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_S):
                await asyncio.gather(*map(self._check, serving))
        well = any(not seat.away and seat.succeeded >= now for seat in self._seats)
        return Health(healthy=well, detail=self._who_is_away() or ("" if well else f"{self.name} does not answer"))

    async def close(self) -> None:
        """Close every place."""
        mending = [seat.mending for seat in self._seats if seat.mending is not None]
        for task in mending:
            task.cancel()
        await asyncio.gather(*mending, return_exceptions=True)
        await asyncio.gather(*(seat.place.close() for seat in self._seats))

    async def _spread(self, items: Sequence[EncodeItem], tried: Collection[_Seat]) -> "Tensor":
        """Run items at places that were not tried yet, in parts."""
        seats = self._candidates(tried)
        parts = _assigned(_families(items, len(seats), shares_prompts=self.shares_prompts), seats)
        if len(parts) == 1:
            (seat,) = parts
            return await self._run(seat, items, tried)
        # All are waited for, also where one fails: what still runs must not run on with nobody to hear of it.
        results = await asyncio.gather(
            *(self._run(seat, [items[number] for number in numbers], tried) for seat, numbers in parts.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return _merged(results, list(parts.values()))  # type: ignore[arg-type]  # none of them is an exception

    def _candidates(self, tried: Collection[_Seat]) -> list[_Seat]:
        left = [seat for seat in self._seats if seat not in tried]
        serving = [seat for seat in left if not seat.away]
        # With nobody left that serves, one that is away may be back before its next check.
        if not tried and not serving:
            return [min(left, key=lambda seat: seat.tokens)]
        if not serving:
            raise EngineUnavailableError(self._who_is_away())
        return serving

    async def _run(self, seat: _Seat, items: Sequence[EncodeItem], tried: Collection[_Seat]) -> "Tensor":
        """Run items at one place; what it cannot run for now, others do."""
        tokens = sum(len(item.token_ids) for item in items)
        seat.tokens += tokens
        was_away = seat.away
        try:
            async with seat.calls:
                if seat.away and not was_away:
                    raise EngineUnavailableError(seat.away)  # it failed while this waited for its turn
                states = await seat.place.encode(items)
        except (EngineOutOfMemoryError, ValueError):
            raise  # of the batch, and not of the place
        except EngineUnavailableError as error:
            self._send_away(seat, str(error))
            if isinstance(error, PlaceSlowError) or len(tried) + 1 == min(len(self._seats), _MOST_TRIES):
                raise
        except Exception as error:
            # Place or batch: a second place tells. One in ruins fails fast, and would get the most until it is checked.
            self._send_away(seat, f"{type(error).__name__}: {error}")
            if tried or len(self._seats) == 1:
                raise
            logger.exception("%s at %s failed a batch; another place runs it once more", self.name, seat.place.name)
        else:
            self._welcome(seat)
            return states
        finally:
            seat.tokens -= tokens
        return await self._spread(items, {*tried, seat})

    def _welcome(self, seat: _Seat) -> None:
        if seat.away:
            logger.info("%s at %s is back", self.name, seat.place.name)
        seat.away, seat.succeeded = "", self._clock()

    def _send_away(self, seat: _Seat, reason: str) -> None:
        if not seat.away:
            logger.warning("%s at %s is away: %s", self.name, seat.place.name, reason)
        seat.away = reason or "it failed"
        if seat.mending is None or seat.mending.done():
            seat.mending = asyncio.get_running_loop().create_task(self._mend(seat))

    async def _check(self, seat: _Seat) -> None:
        try:
            await seat.place.check()
        except EngineUnavailableError as error:
            self._send_away(seat, str(error))
        else:
            self._welcome(seat)

    async def _mend(self, seat: _Seat) -> None:
        """Try a place that is away until it serves."""
        pause_s = _FIRST_PAUSE_S
        while seat.away:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                await seat.place.check()
            except EngineUnavailableError as error:
                seat.away = str(error) or seat.away
                await seat.place.mend()
            except Exception:
                # A place that answers nonsense is as good as none; it must not end the trying.
                logger.exception("%s at %s cannot be checked", self.name, seat.place.name)
            else:
                self._welcome(seat)

    def _who_is_away(self) -> str:
        return "; ".join(f"{seat.place.name}: {seat.away}" for seat in self._seats if seat.away)


def _families(items: Sequence[EncodeItem], places: int, *, shares_prompts: bool) -> list[_Family]:
    """Return the siblings of a batch, largest families first, none much larger than a place's share of it."""
    from paragone_models.forward import by_prompt

    total = sum(len(item.token_ids) for item in items)
    most = max(1, total // (places * _FAMILY_SHARE)) if places > 1 else total
    families: list[_Family] = []
    for prompt, numbers in by_prompt(items).items():
        start, tokens = 0, 0
        for place, number in enumerate(numbers):
            shared = items[number].prompt_length if shares_prompts and place > start else 0
            cost = len(items[number].token_ids) - shared
            if tokens and tokens + cost > most:
                families.append(_Family(prompt, numbers[start:place], tokens))
                start, tokens, cost = place, 0, len(items[number].token_ids)
            tokens += cost
        families.append(_Family(prompt, numbers[start:], tokens))
    return sorted(families, key=lambda family: -family.tokens)


def _assigned(families: Sequence[_Family], seats: Sequence[_Seat]) -> dict[_Seat, list[int]]:
    """Return which items each place runs: a hash of the prompt with bounded loads."""
    loads = {seat: float(seat.tokens) for seat in seats}
    parts: dict[_Seat, list[int]] = {}
    most = _SHARE * (sum(loads.values()) + sum(family.tokens for family in families)) / len(seats)
    for family in families:
        # The least loaded place may always have it: else a family of one batch alone would fit nowhere.
        bound = max(most, min(loads.values()) + family.tokens)
        seat = next(seat for seat in _by_preference(family.prompt, seats) if loads[seat] + family.tokens <= bound)
        loads[seat] += family.tokens
        parts.setdefault(seat, []).extend(family.numbers)
    return parts


def _by_preference(prompt: bytes, seats: Sequence[_Seat]) -> list[_Seat]:
    """Return the places in a prompt's own order (rendezvous hashing): one that comes or goes moves its own alone."""
    if len(seats) == 1:
        return list(seats)
    return sorted(
        seats, key=lambda seat: hashlib.blake2b(prompt, digest_size=8, key=seat.place.name.encode()[-64:]).digest()
    )


def _merged(results: Sequence["Tensor"], parts: Sequence[Sequence[int]]) -> "Tensor":
    import torch

    states = torch.empty(sum(map(len, parts)), *results[0].shape[1:], dtype=results[0].dtype)
    for result, numbers in zip(results, parts, strict=True):
        states[torch.tensor(numbers)] = result.cpu()
    return states
