"""NVIDIA's reward models behind ``POST /v1/chat/completions``, as its catalogue and NIM answer it.

    {"model", "messages": [..., {"role": "assistant", ...}]}  ->  the reply "reward:-0.83", and in ``logprobs`` the same

The last message is what is scored. A model that rates replies "helpfulness:3.1,correctness:3.4,…": each name is a token
of ``choices[0].logprobs.content``, and the number its ``logprob``.
"""

from typing import Any

from paragone.codes import ErrorCode
from paragone_service.dialects.dialect import Dialect, Endpoint, api_error
from paragone_service.dialects.texts import Question, chat_item
from paragone_service.dialects.vllm_pooling import answer_head
from paragone_service.http.errors import ServiceError

__all__ = ["CHAT_REWARDS"]


async def _completion(question: Question) -> dict[str, Any]:
    body = question.body
    if body.get("stream") is True:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST, "this model gives one reward and writes no text: send stream = false"
        )
    model = question.rater(body.get("model"))
    item = chat_item(0, body.get("messages"), tools=body.get("tools"))
    scalars = await question.scalars(model, [item], "messages", ratings=True)
    names = model.attributes
    numbers = zip(names, scalars.attributes[0].tolist(), strict=True) if names else [("reward", scalars.raw[0])]
    scores = list(numbers)
    content = [{"token": name, "logprob": score, "bytes": None, "top_logprobs": []} for name, score in scores]
    message = {"role": "assistant", "content": ",".join(f"{name}:{score}" for name, score in scores)}
    choice = {"index": 0, "message": message, "logprobs": {"content": content}, "finish_reason": "length"}
    usage = {"prompt_tokens": scalars.tokens, "completion_tokens": 1, "total_tokens": scalars.tokens + 1}
    return {**answer_head("chatcmpl", model.name, "chat.completion"), "choices": [choice], "usage": usage}


CHAT_REWARDS = Dialect(
    "chat-rewards",
    "clients of NVIDIA's reward models",
    (Endpoint("/v1/chat/completions", _completion),),
    api_error,
)
