"""slime's and miles' remote reward, ``--rm-url``: one sample a request, and the body of the answer is the reward.

    {"prompt": a text or messages, "response": a text, "label"?: …}  ->  -0.83

They try every error again, up to ten times; the path is the user's, and ours is ``/rm``.
"""

from paragone.codes import ErrorCode
from paragone_service.dialects import chats
from paragone_service.dialects.dialect import Dialect, Endpoint, own_error
from paragone_service.dialects.texts import Question, checked_text, continued_item, exchange_item
from paragone_service.http.errors import ServiceError

__all__ = ["SLIME"]

_NAMES = ("prompt", "response")


async def _rm(question: Question) -> float:
    prompt, response = question.body.get("prompt"), question.body.get("response")
    if isinstance(prompt, str):
        item = continued_item(0, prompt, checked_text(response, "response"), _NAMES)
    elif isinstance(prompt, list):
        # slime keeps the policy's end of turn at the end of its responses.
        response = chats.without_end(checked_text(response, "response"))
        item = exchange_item(0, prompt, response, _NAMES)
    else:
        raise ServiceError(ErrorCode.INVALID_REQUEST, "prompt must be a text or a list of messages")
    scalars = await question.scalars(question.rater(question.body.get("model")), [item], "samples")
    return scalars.raw[0]


SLIME = Dialect("slime", "slime", (Endpoint("/rm", _rm),), own_error, patience_s=100.0)
