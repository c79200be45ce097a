"""The servers that teams have, each asked as its own clients ask it.

| dialect | request |
|---|---|
| ``paragone`` | ``/v1/rewards``, conversations; ``/v1/preferences`` where the model only compares |
| ``openrlhf`` | ``/get_reward``, rendered texts |
| ``slime`` | ``/rm``, a prompt and a response |
| ``vllm-classify``, ``vllm-pooling`` | ``/classify`` with ``use_activation: false``, ``/pooling``; rendered texts |
| ``vllm-chat`` | ``/classify``, messages |
| ``sglang`` | ``/classify``, rendered texts |
| ``embeddings`` | ``/v1/embeddings``, rendered texts: verl's way to SGLang |
| ``tei`` | ``/predict`` with ``raw_scores: true``, rendered texts |
| ``infinity`` | ``/classify`` with ``raw_scores: true``, rendered texts |
| ``chat`` | ``/v1/chat/completions``, messages: NVIDIA's reward models |
"""

import json
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from paragone.addresses import without_userinfo
from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.verification.golden import Text

__all__ = ["DIALECTS", "PREFERENCES", "Asked", "Dialect", "RefusalError", "Server", "hosted_source"]

_TIMEOUT_S = 300.0
_LOOK_S = 10.0
_REFUSALS = (400, 413, 422)
"""Statuses that say what is wrong with a text, and not with the server or the address."""


class RefusalError(EvaluationError):
    """The server answers that it does not take these texts: one is over its limit, say."""


@dataclass(frozen=True)
class Asked:
    """A text as a server may be asked about it: the conversation, and rendered by the model's template.

    Attributes:
        other: the response that its own is compared with, where the model only compares.
    """

    text: Text
    rendered: str
    other: ResponseText = ""


@dataclass(frozen=True)
class Dialect:
    """How a kind of server is asked.

    Attributes:
        path: where it is asked; a URL with a path of its own is taken as it is.
        body: of a request about texts, with the name of the model.
        read: the numbers of an answer.
        batches: whether one request may be about several texts.
        renders: whether the server renders the conversation itself.
    """

    path: str
    body: Callable[[Sequence[Asked], str], dict[str, Any]]
    read: Callable[[Any], list[Any]]
    batches: bool = True
    renders: bool = False


def _inputs(more: Mapping[str, Any]) -> Callable[[Sequence[Asked], str], dict[str, Any]]:
    return lambda asked, model: {"model": model, "input": [one.rendered for one in asked], **more}


def _rows(answer: Any) -> list[Any]:
    return sorted(answer["data"], key=lambda row: row.get("index", 0))


def _last(value: Any) -> Any:
    """Return the last number of nested lists."""
    while isinstance(value, list):
        value = value[-1]
    return value


def _score(value: Any) -> Any:
    return _score(value[0]) if isinstance(value, list) else value["score"]


def _chat_reward(answer: Any) -> list[Any]:
    choice = answer["choices"][0]
    content = (choice.get("logprobs") or {}).get("content")
    if content:
        return [content[0]["logprob"]]
    return [float(str(choice["message"]["content"]).rpartition(":")[2])]


def _plain_reward(answer: Any) -> list[Any]:
    if isinstance(answer, dict):
        return [next(answer[name] for name in ("reward", "score", "rewards") if name in answer)]
    return [answer]


def _texts(asked: Sequence[Asked], model: str) -> dict[str, Any]:  # noqa: ARG001 (all bodies are made alike)
    return {"text": [one.rendered for one in asked]}


def _prompt(text: Text) -> dict[str, Any]:
    return {"prompt": text.prompt, **({"tools": list(text.tools)} if text.tools else {})}


PREFERENCES = Dialect(
    "/v1/preferences",
    lambda asked, model: {
        "model": model,
        "pairs": [{**_prompt(one.text), "first": one.text.response, "second": one.other} for one in asked],
    },
    lambda answer: [row["logit"] for row in answer["preferences"]],
    renders=True,
)
"""How a server of ours is asked about models that only compare: log-odds."""

DIALECTS: Mapping[str, Dialect] = {
    "paragone": Dialect(
        "/v1/rewards",
        lambda asked, model: {
            "model": model, "items": [{**_prompt(one.text), "response": one.text.response} for one in asked]
        },
        lambda answer: [row["reward"] for row in answer["rewards"]],
        renders=True,
    ),
    "openrlhf": Dialect(
        "/get_reward", lambda asked, _: {"query": [one.rendered for one in asked]}, lambda answer: answer["rewards"]
    ),
    "slime": Dialect(
        "/rm",
        lambda asked, _: {"prompt": asked[0].text.prompt, "response": asked[0].text.response, "label": ""},
        _plain_reward, batches=False, renders=True,
    ),
    "vllm-classify": Dialect(
        "/classify", _inputs({"use_activation": False}), lambda answer: [_last(row["probs"]) for row in _rows(answer)]
    ),
    "vllm-pooling": Dialect("/pooling", _inputs({}), lambda answer: [_last(row["data"]) for row in _rows(answer)]),
    "vllm-chat": Dialect(
        "/classify",
        lambda asked, model: {"model": model, "messages": asked[0].text.messages, "use_activation": False},
        lambda answer: [_last(row["probs"]) for row in _rows(answer)], batches=False, renders=True,
    ),
    "sglang": Dialect(
        "/classify", _texts,
        lambda answer: [_last(row["embedding"]) for row in (answer if isinstance(answer, list) else [answer])],
    ),
    "embeddings": Dialect(
        "/v1/embeddings", _inputs({"encoding_format": "float"}),
        lambda answer: [_last(row["embedding"]) for row in _rows(answer)],
    ),
    "tei": Dialect(
        "/predict",
        # Not "truncate": a text over the server's limit is to be refused, and named.
        lambda asked, _: {"inputs": [[one.rendered] for one in asked], "raw_scores": True},
        lambda answer: [_score(row) for row in answer],
    ),
    "infinity": Dialect(
        "/classify", _inputs({"raw_scores": True}), lambda answer: [_score(row) for row in _rows({"data": [
            {"score": _score(row)} for row in answer["data"]]})],
    ),
    "chat": Dialect(
        "/v1/chat/completions", lambda asked, model: {"model": model, "messages": asked[0].text.messages},
        _chat_reward, batches=False, renders=True,
    ),
}  # fmt: skip
"""How servers are asked, by the names that ``--dialect`` takes."""


class Server:
    """A server that gives a number for each text; its ``url`` is without a user and password, for people.

    Args:
        model: its name for the model.
    """

    def __init__(self, url: str, dialect: Dialect, *, model: str, api_key: str | None = None) -> None:
        self.dialect = dialect
        path = urllib.parse.urlsplit(url).path.rstrip("/")
        self._address = url if path else url.rstrip("/") + dialect.path
        self.url = without_userinfo(self._address)
        self._model = model
        self._headers = _headers(api_key)

    def ask(self, asked: Sequence[Asked], *, together: bool) -> list[float]:
        """Return a number for each text.

        Args:
            together: in one request; otherwise each in one of its own, one after the other.

        Raises:
            RefusalError: if the server does not take the texts.
            EvaluationError: if it cannot be reached, fails, or answers something else than numbers.
        """
        groups = [list(asked)] if together else [[one] for one in asked]
        with httpx2.Client(timeout=_TIMEOUT_S) as http:
            return [number for group in groups for number in self._numbers(http, group)]

    def _numbers(self, http: httpx2.Client, group: Sequence[Asked]) -> list[float]:
        name = group[0].text.name if len(group) == 1 else f"{len(group)} texts"
        try:
            answer = http.post(self._address, json=self.dialect.body(group, self._model), headers=self._headers)
        except httpx2.InvalidURL:
            # The reason may be a part of the password.
            raise EvaluationError(
                f"{self.url} cannot be read: write http://HOST:PORT, with a path or without"
            ) from None
        except httpx2.HTTPError as error:
            raise EvaluationError(f"{self.url}: {error or type(error).__name__}: is a server running there?") from error
        if not answer.is_success:
            kind = RefusalError if answer.status_code in _REFUSALS else EvaluationError
            raise kind(f"{self.url} answers {answer.status_code} about {name}: {answer.text[:300]}")
        try:
            numbers = [float(number) for number in self.dialect.read(json.loads(answer.content))]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
            raise EvaluationError(
                f"{self.url} answers about {name} in another shape than this dialect has ({answer.text[:200]!r}): "
                f"choose another --dialect of {', '.join(DIALECTS)}"
            ) from error
        if len(numbers) != len(group):
            raise EvaluationError(f"{self.url} answers {len(numbers)} numbers about {len(group)} texts")
        return numbers


def hosted_source(url: str, name: str, *, api_key: str | None = None) -> str | None:
    """Return where a server of ours has a model from that it hosts under this name; None from any other server."""
    parts = urllib.parse.urlsplit(url)
    try:
        with httpx2.Client(timeout=_LOOK_S) as http:
            answer = http.get(f"{parts.scheme}://{parts.netloc}/v1/models", headers=_headers(api_key))
        models = json.loads(answer.content)["models"]
        return next((str(model["source"]) for model in models if model["id"] == name), None)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError):
        return None  # whatever it is, it says nothing of the model


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}
