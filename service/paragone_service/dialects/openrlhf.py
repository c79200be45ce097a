"""OpenRLHF's remote reward model, ``POST /get_reward``, as versions 0.4 to 0.11 ask it.

    {"query": [texts], "prompts"?: [texts], "labels"?: […]}  ->  {"rewards": […], "scores": […], "extra_logs": {…}}

A query is prompt and response in the policy's chat template. With several addresses some versions send empty lists to
all but the first: that is an answer of empty lists.
"""

from typing import Any

from paragone.codes import ErrorCode
from paragone_service.dialects import chats
from paragone_service.dialects.dialect import Dialect, Endpoint, own_error
from paragone_service.dialects.texts import (
    Question,
    chat_item,
    checked_list,
    checked_text,
    continued_item,
    rendered_item,
)
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import RequestItem

__all__ = ["OPENRLHF"]


async def _get_reward(question: Question) -> dict[str, Any]:
    body = question.body
    queries = checked_list(body.get("query"), "query")
    prompts = body.get("prompts")
    if prompts is not None and len(checked_list(prompts, "prompts")) != len(queries):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST, f"{len(prompts)} prompts for {len(queries)} queries: send one for each"
        )
    mode = question.settings.openrlhf
    again = mode == "retemplate" or (mode == "auto" and bool(prompts))
    items = [
        _retemplated(index, checked_text(query, f"query[{index}]"), prompts[index] if prompts else None)
        if again
        else rendered_item(index, checked_text(query, f"query[{index}]"), "query", ends=mode == "raw+eos")
        for index, query in enumerate(queries)
    ]
    if not items:
        return _answer([], [])
    scalars = await question.scalars(question.rater(body.get("model")), items, "query")
    return _answer(scalars.raw, scalars.activated)


def _answer(rewards: list[float], scores: list[float]) -> dict[str, Any]:
    return {"rewards": rewards, "scores": scores, "extra_logs": {"paragone": rewards}}


def _retemplated(index: int, query: str, prompt: object) -> RequestItem:
    """Return the conversation that a query holds, for the model's own template."""
    place = f"query[{index}]"
    if prompt not in (None, ""):  # an empty one tells nothing of the query
        before, found, response = query.partition(checked_text(prompt, f"prompts[{index}]"))
        # Decoded again, the query may have a beginning of sequence or padding before its prompt.
        if found and (not before or chats.without_end(before) == "" or not before.strip()):
            return continued_item(index, found, chats.without_end(response), (f"prompts[{index}]", place))
    turns = chats.turns(query)
    if turns is None or turns[-1]["role"] != "assistant":
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"{place} does not begin with its prompt, and its chat template is not known here: set [dialects] openrlhf "
            '= "raw" to have it read as it is',
            item=index,
        )
    return chat_item(index, turns, place)


OPENRLHF = Dialect("openrlhf", "OpenRLHF", (Endpoint("/get_reward", _get_reward),), own_error, patience_s=150.0)
