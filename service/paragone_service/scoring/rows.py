"""From a request to the cache keys of its rows, whether a response came in full or is named by its id.

Rows are responses in the order of the request, n of them; an item is a pair, an item or a group of the request.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from paragone.codes import ErrorCode
from paragone.wire import Response
from paragone_service.cache.ids import Handles
from paragone_service.cache.keys import conversation_keys, prompt_digest
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Asked, Call, Named, items_of, placed

__all__ = ["Rows", "rows_of", "unknown_ids"]

_ITEMS_A_BREATH = 512


@dataclass(frozen=True)
class Rows:
    """The rows of a request.

    Attributes:
        keys: the cache key of each. [n]
        items: the index of the item that each belongs to. [n]
        prompts: the digest of each one's prompt, if ids are wanted, else empty; None for an id that is not ours. [n]
        named: the rows that are named by an id, with their item's index and the id.
        problems: why an item can have no answer, by its index; empty unless the call reports errors.
    """

    keys: list[bytes] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    prompts: list[bytes | None] = field(default_factory=list)
    named: dict[int, tuple[int, str]] = field(default_factory=dict)
    problems: dict[int, ServiceError] = field(default_factory=dict)


async def rows_of(asked: Sequence[Asked], call: Call, space: bytes, handles: Handles) -> Rows:
    """Return the rows of a request; long requests let others breathe in between.

    Args:
        asked: the request.
        call: how it wants to be answered.
        space: the model's namespace in the cache.
        handles: what reads the model's ids.

    Raises:
        ServiceError: ``invalid_request`` for the first item whose id is of another prompt than its other response,
            unless the call reports errors.
    """
    rows = Rows(items=items_of(asked))
    for item, one in enumerate(asked):
        if one.named:
            _add_named(rows, item, one, call, space, handles)
        else:
            assert one.prompt is not None
            full = cast("Sequence[Response]", one.responses)
            rows.keys.extend(conversation_keys(space, one.prompt, one.tools, full))
            if call.ids:
                rows.prompts.extend([prompt_digest(one.prompt, one.tools)] * len(one.responses))
        if item % _ITEMS_A_BREATH == _ITEMS_A_BREATH - 1:
            await asyncio.sleep(0)
    return rows


def _add_named(rows: Rows, item: int, one: Asked, call: Call, space: bytes, handles: Handles) -> None:
    own = None if one.prompt is None else prompt_digest(one.prompt, one.tools)
    prompts: list[bytes | None] = []
    for response in one.responses:
        if isinstance(response, Named):
            handle = handles.read(response.id)
            rows.named[len(rows.keys)] = (item, response.id)
            rows.keys.append(handle.key)
            prompts.append(handle.prompt)
        else:
            assert one.prompt is not None
            rows.keys.extend(conversation_keys(space, one.prompt, one.tools, [response]))
            prompts.append(own)
    if call.ids:
        rows.prompts.extend(prompts)
    if len({prompt for prompt in prompts if prompt is not None}) > 1:
        error = ServiceError(
            ErrorCode.INVALID_REQUEST,
            "its two responses answer different prompts: an id is for the prompt and the tools that it was given for",
        )
        if not call.report:
            raise placed(error, call, item)
        rows.problems[item] = error


def unknown_ids(unknown: Iterable[tuple[int, str]], call: Call) -> dict[int, ServiceError]:
    """Return the error of each item that has unknown ids, by its index; each error lists all of its item's.

    Args:
        unknown: the ids that lead to nothing, each with its item's index, in the order of the request.
        call: how the request wants to be answered.

    Raises:
        ServiceError: ``unknown_id`` for the whole request, with all of them, unless the call reports errors.
    """
    by_item: dict[int, list[str]] = {}
    for item, name in unknown:
        by_item.setdefault(item, []).append(name)
    if by_item and not call.report:
        everything = dict.fromkeys(name for names in by_item.values() for name in names)
        raise placed(_unknown(list(everything)), call, min(by_item))
    return {item: _unknown(names) for item, names in by_item.items()}


def _unknown(ids: Sequence[str]) -> ServiceError:
    many = f"{len(ids)} ids are" if len(ids) > 1 else "1 id is"
    return ServiceError(
        ErrorCode.UNKNOWN_ID,
        f"{many} not known here, or not any more: send the responses in full (the error's ids says which)",
        ids=ids,
    )
