"""From the texts of a dialect's request to one number each: what every dialect shares.

Nobody here has a list of pairs: a client sends rendered texts, tokens, or conversations, and reads a scalar for each.
They are represented like the native routes' responses, with the same cache, queue, deadline and quota.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from paragone.codes import ErrorCode
from paragone.wire import Message, Truncation
from paragone_models.comparator import probability
from paragone_models.errors import TextError
from paragone_models.text.reader import Reading
from paragone_models.text.rendered import Rendered
from paragone_service.cache.keys import prompt_digest
from paragone_service.dialects import chats
from paragone_service.dialects.settings import BY_REFERENCES, DialectSettings
from paragone_service.http.bodies import MAX_ITEMS
from paragone_service.http.calls import call_of
from paragone_service.http.counting import check_counts
from paragone_service.http.errors import ServiceError, from_validation
from paragone_service.http.middleware import SCOPE_ASKED
from paragone_service.references.owners import VectorOwner, Vectors
from paragone_service.references.sets import ReferenceSets, Stored
from paragone_service.registry import Registry
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Problems, Represented, RequestItem, as_conversations

__all__ = [
    "Question",
    "Scalars",
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


@dataclass(frozen=True)
class Scalars:
    """One number for each text of a request.

    Attributes:
        values: rewards, or log-odds against what the setting ``scalar`` names; NaN of a model that only rates. [n]
        tokens: that the model read of all texts together, now or when they were cached.
        attributes: what the model rates, in its order. [n, A]
        truncated: which texts were cut. [n]
    """

    values: NDArray[np.float64]
    tokens: int
    attributes: NDArray[np.float64]
    truncated: NDArray[np.bool_]

    @property
    def raw(self) -> list[float]:
        """The values as they are."""
        floats: list[float] = self.values.tolist()
        return floats

    @property
    def activated(self) -> list[float]:
        """Their sigmoids, in [0, 1]."""
        floats: list[float] = probability(self.values).tolist()
        return floats


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

    def model(self, name: object = None) -> HostedModel:
        """Return the hosted model that a name from elsewhere stands for; no name stands for one too.

        Raises:
            ServiceError: ``unknown_model``; ``invalid_request`` for what is no text.
        """
        if name is not None and not isinstance(name, str):
            raise ServiceError(ErrorCode.INVALID_REQUEST, "model must be a text")
        return self.registry.find_foreign(name)

    async def scalars(
        self,
        model: HostedModel,
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
        self.request.scope[SCOPE_ASKED] = {"model": model.name, "items": len(items)}
        if self.request.app.state.log_texts and not isinstance(self.body, bytes):
            self.request.scope[SCOPE_ASKED]["request"] = self.body
        comparator = model.model.comparator
        has_scalar = comparator.gives_rewards
        rates = ratings and bool(comparator.attributes)
        problems = Problems(where, report=False)
        call = self.call(problems, truncation)
        groups = stored = None
        if not has_scalar and not rates:
            scalar = self.settings.scalar or ""
            if scalar.startswith(BY_REFERENCES):
                stored = await self._stored(model, items, scalar.removeprefix(BY_REFERENCES), call)
            else:
                groups = self._groups(model, items)
        try:
            represented = await model.represent(items, call)
        except ServiceError as error:
            if error.code != ErrorCode.CONVERSATION_TRUNCATED or truncation is not None:
                raise
            hint = f'{error.message} (with [dialects] truncation = "prompt")'
            raise error.at(error.item, hint) if error.item is not None else error from None
        with np.errstate(all="ignore"):  # what is not finite is found below
            attributes = comparator.attribute_values(represented.vectors)
            values = comparator.rewards(represented.vectors)
            if groups is not None:
                values = _against_the_others(represented, groups, model)
            if stored is not None:
                values = _against_stored(represented, stored, model)
        numbers = attributes if values is None else np.column_stack([values, attributes])
        for item in np.flatnonzero(~np.isfinite(numbers).all(axis=1)).tolist():
            problems.add(item, ServiceError(ErrorCode.NON_FINITE_SCORE, "the model's numbers are too large to compare"))
        if represented.usage.truncated:
            self.headers["x-truncated-texts"] = str(represented.usage.truncated)
        if values is None:
            values = np.full(len(attributes), np.nan)
        tokens = 0 if represented.tokens is None else int(represented.tokens.sum())
        return Scalars(values, tokens, attributes, represented.dropped > 0)

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

    async def _stored(
        self, model: HostedModel, items: Sequence[RequestItem], name: str, call: Call
    ) -> Mapping[int, Stored[Vectors]]:
        """Return the stored references of each item.

        Raises:
            ServiceError: ``reference_required`` for a rendered text, whose prompt nobody knows;
                ``preferences_unavailable``; else as ``ReferenceSets.by_prompt``.
        """
        model.check_preferences()
        places = []
        for item in items:
            if item.prompt is None:
                raise ServiceError(
                    ErrorCode.REFERENCE_REQUIRED,
                    f"model {model.name} is of kind {model.model.kind} and has no scalar: it compares responses to one "
                    "prompt, and a rendered text has none",
                )
            places.append((item.index, prompt_digest(item.prompt, item.tools)))
        sets: ReferenceSets = self.request.app.state.reference_sets
        return await sets.by_prompt(VectorOwner(model), call.tenant, name, places, call.problems)

    def _groups(self, model: HostedModel, items: Sequence[RequestItem]) -> list[list[int]]:
        """Return the places of the responses to each prompt.

        Raises:
            ServiceError: ``reference_required`` if that is not how a model without a scalar shall answer, or a response
                stands alone; ``preferences_unavailable``, if it cannot compare either.
        """
        model.check_preferences()
        lacking = f"model {model.name} is of kind {model.model.kind} and has no scalar: it compares"
        if self.settings.scalar != "group":
            raise ServiceError(
                ErrorCode.REFERENCE_REQUIRED,
                f'{lacking}; set [dialects] scalar = "group" to have responses to one prompt held against each other, '
                'or "references:NAME" to have them held against a stored reference set, '
                "ask a model with a reward, or ask /v1/tournaments",
            )
        groups: dict[bytes, list[int]] = {}
        for place, item in enumerate(items):
            if item.prompt is None:
                raise ServiceError(
                    ErrorCode.REFERENCE_REQUIRED, f"{lacking} responses to one prompt, and a rendered text has none"
                )
            groups.setdefault(prompt_digest(item.prompt, item.tools), []).append(place)
        if any(len(group) < 2 for group in groups.values()):
            raise ServiceError(
                ErrorCode.REFERENCE_REQUIRED,
                f"{lacking} with other responses to the same prompt, and one stands alone in this request: send them "
                "together",
            )
        return list(groups.values())


def _against_the_others(
    represented: Represented, groups: Sequence[Sequence[int]], model: HostedModel
) -> NDArray[np.float64]:
    values = np.zeros(len(represented.vectors))
    for group in groups:
        vectors = represented.vectors[list(group)].astype(np.float64)
        # As in ``mean_logit``, for all at once: thousands of documents would hold up everybody else.
        others = (vectors.sum(axis=0) - vectors) / (len(group) - 1)
        values[list(group)] = model.model.comparator.logit(vectors, others)
    return values


def _against_stored(
    represented: Represented, stored: Mapping[int, Stored[Vectors]], model: HostedModel
) -> NDArray[np.float64]:
    comparator = model.model.comparator
    return np.array(
        [
            float(comparator.mean_logit(vector[None], stored[item].references)[0])
            for item, vector in zip(represented.items, represented.vectors, strict=True)
        ]
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
