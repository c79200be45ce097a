"""A chat server that does what a test tells it, in the JSON of OpenAI's clients."""

import asyncio
import json
import math

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def completion(text, *, finish_reason="stop", logprobs=None, prompt_tokens=10, completion_tokens=3, **message):
    """Return the body of an answer.

    Args:
        logprobs: of the tokens, each a text and its alternatives' probabilities by text.
    """
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    if logprobs is not None:
        choice["logprobs"] = {
            "content": [
                {
                    "token": token,
                    "logprob": 0.0,
                    "top_logprobs": [{"token": one, "logprob": math.log(p)} for one, p in alternatives.items()],
                }
                for token, alternatives in logprobs
            ]
        }
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"id": "c-1", "object": "chat.completion", "model": "scripted", "choices": [choice], "usage": usage}


class Scripted:
    """A server whose answers are functions of the body: a completion, or a response as it is.

    Attributes:
        first: answers to give first, one a call.
        answer: the function that answers when there are none of these.
        bodies: what came.
        most: the most calls that were under way at a time.
        gate: calls wait for it.
    """

    def __init__(self, answer=lambda _: completion("A")):
        self.answer = answer
        self.first = []
        self.bodies = []
        self.headers = []
        self.most = self._now = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.well = True
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/moved/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"data": []}, status_code=200 if self.well else 503)

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await self.gate.wait()
            answer = self.first.pop(0) if self.first else self.answer
            given = answer(body) if callable(answer) and not isinstance(answer, Response) else answer
            return given if isinstance(given, Response) else JSONResponse(given)
        finally:
            self._now -= 1


def status(code, **headers):
    return Response(b"{}", status_code=code, headers={name.replace("_", "-"): value for name, value in headers.items()})
