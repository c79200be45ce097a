"""How a server is asked for scores: our own routes, and those of the servers that people run today.

Each dialect turns single responses into one request, and counts the scores that came back: a server that answers with
anything else is not measured but refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DIALECTS", "Asked", "Dialect"]


@dataclass(frozen=True)
class Asked:
    """One response to be scored.

    Attributes:
        prompt: text.
        response: text.
        rendered: both as the model's template writes them, for servers that take whole texts.
    """

    prompt: str
    response: str
    rendered: str


@dataclass(frozen=True)
class Dialect:
    """A way of asking.

    Attributes:
        path: of the route.
        body: makes a request's JSON of responses and the model's name there, or None.
        scores: how many scores an answer holds.
    """

    path: str
    body: Callable[[Sequence[Asked], str | None], dict[str, Any]]
    scores: Callable[[Any], int]


def _named(body: dict[str, Any], model: str | None) -> dict[str, Any]:
    return {"model": model, **body} if model else body


def _listed(*path: str) -> Callable[[Any], int]:
    def count(answer: Any) -> int:
        for name in path:
            if not isinstance(answer, Mapping) or name not in answer:
                return -1
            answer = answer[name]
        return len(answer) if isinstance(answer, list) else -1

    return count


DIALECTS: Mapping[str, Dialect] = {
    "paragone": Dialect(
        "/v1/rewards",
        lambda asked, model: _named(
            {"items": [{"prompt": one.prompt, "response": one.response} for one in asked]}, model
        ),
        _listed("rewards"),
    ),
    "openrlhf": Dialect(
        "/get_reward", lambda asked, _model: {"query": [one.rendered for one in asked]}, _listed("rewards")
    ),
    "vllm": Dialect(
        "/classify", lambda asked, model: _named({"input": [one.rendered for one in asked]}, model), _listed("data")
    ),
    "tei": Dialect(
        "/predict",
        lambda asked, _model: {"inputs": [[one.rendered] for one in asked]},
        lambda answer: len(answer) if isinstance(answer, list) else -1,
    ),
}
"""By name; every request holds single responses, in the shape that the server's own clients send."""
