"""The rows of a request: a key for each of its responses, and what is wrong with ids that stand for some of them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from paragone.codes import ErrorCode
from paragone.wire import Response
from paragone_models.text.pairs import PairText
from paragone_models.text.rendered import Rendered
from paragone_service.cache.keys import Ids, conversation_keys, prompt_digest, text_key
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Call, Problems, RequestItem, ResponseId, Row, Steps

__all__ = ["add_unknown_ids", "rows_of"]

_ITEMS_BEFORE_A_BREAK = 512


async def rows_of(items: Sequence[RequestItem], call: Call, ids: Ids) -> list[Row]:
    """Return the rows of a request.

    Raises:
        ServiceError: ``invalid_request`` for the first item whose id is of another prompt than its other response,
            unless the call reports errors.
    """
    rows: list[Row] = []
    parts: dict[int, bytes] = {}
    for number, item in enumerate(items, start=1):
        if item.has_ids:
            rows += _rows_with_ids(item, call, ids)
        elif item.prompt is None:
            texts = cast("Sequence[Rendered | PairText]", item.responses)
            rows += [Row(item.index, place, text_key(ids.space, text, parts)) for place, text in enumerate(texts)]
        else:
            responses = [one.texts if isinstance(one, Steps) else one for one in item.responses]
            full = cast("Sequence[Response | tuple[str, ...]]", responses)
            index, prompt = item.index, prompt_digest(item.prompt, item.tools, item.principle) if call.ids else None
            own = len(full) if item.own is None else item.own
            for position, key in enumerate(conversation_keys(ids.space, item.prompt, item.tools, full, item.principle)):
                rows.append(Row(index, position, key, prompt, reference=None if position < own else position - own))
        if number % _ITEMS_BEFORE_A_BREAK == 0:
            # Hashing ten thousand pairs takes a while, and this is the thread that serves everybody.
            await asyncio.sleep(0)
    return rows


def _rows_with_ids(item: RequestItem, call: Call, ids: Ids) -> list[Row]:
    own = None if item.prompt is None else prompt_digest(item.prompt, item.tools)
    rows = []
    for position, response in enumerate(item.responses):
        if isinstance(response, ResponseId):
            prompt, key = ids.read(response.id)
            rows.append(Row(item.index, position, key, prompt, response.id))
        else:
            assert item.prompt is not None  # the wire types see to it
            assert not isinstance(response, Rendered | PairText | Steps)
            (key,) = conversation_keys(ids.space, item.prompt, item.tools, [response])
            rows.append(Row(item.index, position, key, own))
    # A foreign id has no prompt. It is reported as unknown later on, as an id is whose representation is gone: the
    # difference would tell that somebody else's id is one.
    if len({row.prompt for row in rows if row.prompt is not None}) > 1:
        error = ServiceError(
            ErrorCode.INVALID_REQUEST,
            "its two responses answer different prompts: an id is for the prompt and the tools that it was given for",
        )
        call.problems.add(item.index, error)
    return rows


def add_unknown_ids(rows: Sequence[Row], problems: Problems) -> Mapping[bytes, ServiceError]:
    """Add a problem for each item that has unknown ids, and return the errors by the rows' keys.

    Args:
        rows: those whose ids lead to nothing, in the order of the request.

    Raises:
        ServiceError: ``unknown_id``, unless the call reports errors. It lists the unknown ids of all items, so that a
            client need not find them out one request after the other.
    """
    by_item: dict[int, list[str]] = {}
    for row in rows:
        assert row.id is not None
        by_item.setdefault(row.item, []).append(row.id)
    every_id = list(dict.fromkeys(unknown for ids in by_item.values() for unknown in ids))
    errors = {item: _unknown_id(ids) for item, ids in by_item.items()}
    for item, error in errors.items():
        problems.add(item, error, refusal=_unknown_id(every_id))
    return {row.key: errors[row.item] for row in rows}


def _unknown_id(ids: Sequence[str]) -> ServiceError:
    many = f"{len(ids)} ids are" if len(ids) > 1 else "1 id is"
    return ServiceError(
        ErrorCode.UNKNOWN_ID,
        f"{many} not known here, or not any more: send the responses in full (the error's ids says which)",
        ids=ids,
    )
