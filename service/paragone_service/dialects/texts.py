"""From the texts of a dialect's request to one number each: what every dialect shares.

Nobody here has a list of pairs: a client sends rendered texts, tokens, or conversations, and reads a scalar for each.
They are represented like the native routes' responses, with the same cache, queue, deadline and quota.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from paragone.codes import ErrorCode
from paragone.wire import Message, Truncation
from paragone_models.errors import TextError
from paragone_models.text.reader import Reading
from paragone_models.text.rendered import Rendered
from paragone_service.dialects import chats
from paragone_service.dialects.raters import Instead, PairRater, Rater, Scalars, VectorRater
from paragone_service.dialects.settings import DialectSettings
from paragone_service.http.bodies import MAX_ITEMS
from paragone_service.http.calls import call_of
from paragone_service.http.counting import check_counts
from paragone_service.http.errors import ServiceError, from_validation
from paragone_service.http.middleware import SCOPE_ASKED
from paragone_service.registry import Registry
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Problems, RequestItem, as_conversations

__all__ = [
    "Question",
    "chat_item",
    "check_repeated",
    "checked_flag",
    "checked_list",
    "checked_text",
    "continued_item",
    "exchange_item",
    "rendered_item",
]

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
_MESSAGE_FIELDS = frozenset(Message.model_fields)
_LARGEST_ID = 2**31 - 1
_MOST_REPEATED = 64 * 10**6
"""Characters of a query that is the prompt of each document: as many as a body may have by default, which a request of
the native routes would have sent."""


class Question:
    """One request in a dialect.

    Attributes:
        body: its JSON object, or its bytes.
        path: the parts of its address that the route names.
        settings: of the dialects.
        patience_s: for how long its client waits.
        headers: those of the answer; filled in on the way.
    """

    def __init__(
        self, request: Request, body: Any, registry: Registry, settings: DialectSettings, patience_s: float
    ) -> None:
        self.request = request
        self.body = body
        self.path: Mapping[str, str] = request.path_params
        self.registry = registry
        self.settings = settings
        self.patience_s = patience_s
        self.headers: dict[str, str] = {}

    def rater(self, name: object = None) -> Rater:
        """Return what gives numbers under a name from elsewhere; no name stands for a model too.

        Raises:
            ServiceError: ``unknown_model``; ``invalid_request`` for what is no text.
        """
        known = self._known(name)
        source = self.registry.pair_source(known)
        return VectorRater(self.registry.find(known)) if source is None else PairRater(source)

    def hosted(self, name: object = None) -> HostedModel:
        """Return the model that reads single texts under a name from elsewhere.

        Raises:
            ServiceError: as ``rater``; ``return_unavailable``, if it only compares.
        """
        return self.registry.find(self._known(name))

    def _known(self, name: object) -> str:
        if name is not None and not isinstance(name, str):
            raise ServiceError(ErrorCode.INVALID_REQUEST, "model must be a text")
        return self.registry.known_foreign(name)

    async def scalars(
        self,
        rater: Rater,
        items: list[RequestItem],
        where: str,
        *,
        truncation: Truncation | None = None,
        ratings: bool = False,
    ) -> Scalars:
        """Return one number for each item, each of which has one response.

        Args:
            items: emptied on the way.
            where: name of the client's list, for messages.
            truncation: ``prompt`` or ``error``; None: the setting of the dialects.
            ratings: whether a model that rates attributes and has no scalar answers by these.

        Raises:
            ServiceError: for the first item without a number; ``reference_required`` if the model has no scalar and
                nothing is set to take its place.
        """
        self.check_number(len(items), where)
        self.request.scope[SCOPE_ASKED] = {"model": rater.name, "items": len(items)}
        if self.request.app.state.log_texts and not isinstance(self.body, bytes):
            self.request.scope[SCOPE_ASKED]["request"] = self.body
        call = self.call(Problems(where, report=False), truncation)
        instead = Instead(self.settings.scalar, self.request.app.state.reference_sets)
        try:
            scalars = await rater.scalars(items, call, instead, ratings=ratings)
        except ServiceError as error:
            if error.code != ErrorCode.CONVERSATION_TRUNCATED or truncation is not None:
                raise
            hint = f'{error.message} (with [dialects] truncation = "prompt")'
            raise error.at(error.item, hint) if error.item is not None else error from None
        if scalars.cut:
            self.headers["x-truncated-texts"] = str(scalars.cut)
        return scalars

    async def reading(self, model: HostedModel, item: RequestItem, where: str) -> Reading:
        """Return what the model sees of an item with one response, which is not run.

        Raises:
            ServiceError: if it cannot be read.
        """
        call = self.call(Problems(where, report=False))
        (reading,) = await model.read(as_conversations([(item, item.responses[0])]), call)
        if isinstance(reading, TextError):
            raise ServiceError(ErrorCode(reading.code), str(reading))
        return reading

    def call(self, problems: Problems, truncation: Truncation | None = None) -> Call:
        """Return how the request wants to be answered; ``truncation`` None is that of the settings."""
        truncation = truncation or self.settings.truncation
        return call_of(self.request, truncation, problems, deadline_s=self.patience_s)

    @staticmethod
    def check_number(count: int, where: str) -> None:
        """Refuse more items than a request may have.

        Raises:
            ServiceError: ``too_many_items``.
        """
        if count > MAX_ITEMS:
            raise ServiceError(
                ErrorCode.TOO_MANY_ITEMS, f"{count} items in {where}; the limit is {MAX_ITEMS}: split them"
            )


def rendered_item(
    index: int,
    content: object,
    where: str,
    *,
    ends: bool = False,
    most_tokens: int | None = None,
    start: bool = False,
    tokens_only: bool = False,
) -> RequestItem:
    """Return an item of one rendered text, or of its token ids; knobs are those of ``Rendered``.

    Raises:
        ServiceError: ``invalid_request``, if it is neither.
    """
    if isinstance(content, list):
        if not all(type(one) is int and 0 <= one <= _LARGEST_ID for one in content):
            raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where}[{index}] must be a text, or a list of token ids")
        content = tuple(content)
    elif not isinstance(content, str):
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where}[{index}] must be a text, or a list of token ids")
    return RequestItem(index, None, None, (Rendered(content, ends, most_tokens, start, tokens_only),))


def exchange_item(index: int, prompt: object, response: object, names: tuple[str, str]) -> RequestItem:
    """Return an item of a prompt, which is a text or messages, and a response, which is a text.

    Args:
        names: what the client calls the two.

    Raises:
        ServiceError: ``invalid_request``, if they are something else.
    """
    answer = checked_text(response, names[1])
    if isinstance(prompt, list):
        return RequestItem(index, _messages(prompt, names[0]), None, (answer,))
    return RequestItem(index, checked_text(prompt, names[0]), None, (answer,))


def continued_item(index: int, prompt: str, response: str, names: tuple[str, str]) -> RequestItem:
    """Return an item of a prompt that a policy's template may have rendered, and of what the policy wrote behind it.

    A rendered prompt is taken apart, so that the model's own template renders it.

    Raises:
        ServiceError: ``invalid_request``, if it is rendered in a template that is not known.
    """
    turns = chats.turns(prompt)
    if turns is None:
        if chats.looks_rendered(prompt):
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"{names[0]} is in a chat template that is not known here: send it as messages, or as plain text",
            )
        return exchange_item(index, prompt, response, names)
    response = chats.without_end(response)
    if turns[-1]["role"] == "assistant":  # the header that asks for the response, perhaps with its beginning
        response = turns.pop()["content"] + response
    return chat_item(index, [*turns, {"role": "assistant", "content": response}], names[0])


def chat_item(index: int, messages: object, where: str = "messages", tools: object = None) -> RequestItem:
    """Return an item of messages, of which the last one is the response.

    Raises:
        ServiceError: ``invalid_request``, if they are no messages, or the last one is not the assistant's.
    """
    turns = _messages(messages, where)
    if not turns or turns[-1].role != "assistant":
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"{where} must end with the assistant's: that is the response which is scored",
        )
    offered = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else None
    return RequestItem(index, turns[:-1], offered or None, (turns[-1],))


def _messages(messages: object, where: str) -> list[Message]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where} must be a list of messages with role and content")
    # Clients dump what their own types have; what no template reads is left out, as unknown fields are everywhere here.
    known = [{name: message[name] for name in message.keys() & _MESSAGE_FIELDS} for message in messages]
    check_counts([{"prompt": known}], where, max_messages=2_000)
    try:
        return _MESSAGES.validate_python(known)
    except ValidationError as error:
        refusal = from_validation(error)
        raise ServiceError(refusal.code, f"{where}{refusal.message}") from None


def checked_flag(value: object, where: str, *, default: bool = False) -> bool:
    """Return a truth value, ``default`` for none.

    Raises:
        ServiceError: ``invalid_request``, if it is anything else.
    """
    if value is not None and not isinstance(value, bool):
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where} must be true or false")
    return default if value is None else value


def checked_text(value: object, where: str) -> str:
    """Return a text.

    Raises:
        ServiceError: ``invalid_request``, if it is none, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where} must be a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where} holds a lone surrogate: no text") from None
    return value


def check_repeated(query: object, documents: int, where: str) -> None:
    """Refuse a query that would be read too often: a short body must not become gigabytes of text.

    Raises:
        ServiceError: ``too_many_items``.
    """
    characters = len(query) * documents if isinstance(query, str) else 0
    if characters > _MOST_REPEATED:
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS,
            f"{where} is read once for each of {documents} documents, {characters} characters in all; the limit is "
            f"{_MOST_REPEATED}: send fewer documents at a time, or a shorter {where}",
        )


def checked_list(value: object, where: str) -> list[Any]:
    """Return a list, no longer than a request's may be.

    Raises:
        ServiceError: ``invalid_request``, if it is none; ``too_many_items``.
    """
    if not isinstance(value, list):
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{where} must be a list")
    Question.check_number(len(value), where)
    return value
