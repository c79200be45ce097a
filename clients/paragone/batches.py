"""Build requests, split large ones, read answers and merge them: pure functions that both clients share.

A batch is split by count and by bytes. Items with the same prompt stay together in one part as long as they fit, so
that the server computes the prompt once; the merged answer is in the order of the batch again.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from paragone.exceptions import (
    AnswerError,
    OracleChangedError,
    ParagoneError,
    RequestError,
    UnknownIdError,
    exception_for,
)
from paragone.ids import IdMemory, PairWriter
from paragone.wire import (
    Aggregation,
    Criterion,
    ErrorDetail,
    Fit,
    Group,
    Item,
    ItemError,
    ItemOfSteps,
    Message,
    OnError,
    Pair,
    PairById,
    PreferencesAnswer,
    PreferencesRequest,
    Prompt,
    ReferencesByName,
    RewardsAnswer,
    RewardsRequest,
    Shaping,
    Signal,
    TokensAnswer,
    TokensRequest,
    Tournament,
    TournamentsAnswer,
    TournamentsRequest,
    Truncation,
    Usage,
    canonical_turns,
    error_detail,
)

__all__ = [
    "PREFERENCES",
    "REWARDS",
    "TOKENS",
    "TOURNAMENTS",
    "CriteriaLike",
    "GroupLike",
    "ItemLike",
    "PairLike",
    "Part",
    "PromptLike",
    "ReferencesLike",
    "RequestOptions",
    "ResponseLike",
    "Route",
    "merge_answers",
    "parts_of",
    "prompt_hash",
    "read_json",
]

logger = logging.getLogger("paragone")

PromptLike = str | Sequence[Message | dict[str, Any]]
ResponseLike = str | Message | dict[str, Any] | Sequence[Message | dict[str, Any]]
CriteriaLike = Sequence[Criterion | Mapping[str, Any]]
ReferencesLike = Sequence[ResponseLike] | ReferencesByName | Mapping[str, str]
PairLike = Pair | PairById | dict[str, Any] | tuple[PromptLike, ResponseLike, ResponseLike]
ItemLike = Item | ItemOfSteps | dict[str, Any] | tuple[PromptLike, ResponseLike]
GroupLike = Group | dict[str, Any] | tuple[PromptLike, Sequence[ResponseLike]]

AnswerT = TypeVar("AnswerT", PreferencesAnswer, RewardsAnswer, TournamentsAnswer, TokensAnswer)
Read = TypeVar("Read", bound=BaseModel)

_MOST_COMPARISONS = 10_000
"""Of one request, as the server has it: whether the model compares, a client does not know."""


@dataclass(frozen=True, slots=True)
class Route(Generic[AnswerT]):
    """One native route: where it is, what its lists are called and what it answers."""

    path: str
    request_list: str
    answer_list: str
    fields: tuple[str, ...]
    request: type[PreferencesRequest | RewardsRequest | TournamentsRequest | TokensRequest]
    answer: type[AnswerT]


PREFERENCES = Route(
    "/v1/preferences",
    "pairs",
    "preferences",
    ("prompt", "first", "second"),
    PreferencesRequest,
    PreferencesAnswer,
)
REWARDS = Route("/v1/rewards", "items", "rewards", ("prompt", "response"), RewardsRequest, RewardsAnswer)
TOURNAMENTS = Route(
    "/v1/tournaments", "groups", "tournaments", ("prompt", "responses"), TournamentsRequest, TournamentsAnswer
)
TOKENS = Route("/v1/tokens", "items", "tokens", ("prompt", "response"), TokensRequest, TokensAnswer)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What a request says besides its list."""

    model: str | None = None
    truncation: Truncation = "prompt"
    on_error: OnError = "refuse"
    return_: Sequence[str] = ()
    skew_weight: float | None = None
    weights: Mapping[str, float] | None = None
    aggregation: Aggregation | None = None
    signal: Signal | None = None
    shaping: Shaping | Mapping[str, float] | None = None
    comparisons: str = "all"
    fit: Fit = "bradley-terry"

    def with_default(self, model: str | None) -> "RequestOptions":
        """Return the same options, with this model where they name none."""
        return self if self.model is not None else replace(self, model=model)

    def fields(self) -> dict[str, Any]:
        """Return the fields that differ from the wire's defaults, under the wire's names."""
        # What is a default is not sent: an older server need not know a field that nobody uses.
        fields: dict[str, tuple[Any, Any]] = {
            "model": (self.model, None),
            "truncation": (self.truncation, "prompt"),
            "on_error": (self.on_error, "refuse"),
            "return": (list(self.return_), []),
            "skew_weight": (self.skew_weight, None),
            "weights": (None if self.weights is None else dict(self.weights), None),
            "aggregation": (self.aggregation, None),
            "comparisons": (self.comparisons, "all"),
            "fit": (self.fit, "bradley-terry"),
            "signal": (self.signal, None),
            "shaping": (self.shaping, None),
        }
        return {name: value for name, (value, default) in fields.items() if value != default}


@dataclass(frozen=True, slots=True)
class Part(Generic[AnswerT]):
    """One HTTP request, which asks for some items of a batch.

    Attributes:
        places: of its items, in the batch.
        head: the body up to its items.
        writer: writes its pairs and learns the answer's ids, where ids are remembered.
    """

    route: Route[AnswerT]
    body: bytes
    places: Sequence[int]
    prompt_hash: str | None
    head: bytes = b""
    writer: PairWriter | None = None

    def read(self, content: bytes) -> AnswerT:
        """Return the answer to this part, its errors numbered by the places in the batch.

        Raises:
            AnswerError: if the body is no answer of the route, or has another number of rows than were asked for.
            UnknownIdError: if ids that the client put in are reported as unknown; see ``without_unknown_ids``.
        """
        route = self.route
        answer = read_json(route.answer, content, f"the answer of {route.path}")
        rows: list[Any] = getattr(answer, route.answer_list)
        # Rows have no names but their places: one too few would shift every answer that follows.
        if len(rows) != len(self.places):
            raise AnswerError(f"{route.path} was asked for {len(self.places)} rows and answered {len(rows)}")
        for row, place in zip(rows, self.places, strict=True):
            # Their items count from the start of the part, and so do the places that their messages name.
            for error in _errors_of(row):
                error.message = self._renumbered(error.message, error.item, place)
                error.item = place
        if self.writer is not None:
            self.writer.remember(rows)
        return answer

    def without_unknown_ids(self, error: UnknownIdError) -> "Part[AnswerT]":
        """Return the part written again, without the ids that the service did not know.

        Raises:
            UnknownIdError: the error itself, if no id was ours.
        """
        if self.writer is None:
            raise error
        writer = self.writer.without_unknown(error)
        logger.info("%d ids are not known any more: their responses are sent in full", len(error.ids))
        return replace(self, body=_body(self.head, writer.written()), writer=writer)

    def renumbered(self, error: ParagoneError) -> ParagoneError:
        """Return the error with its item numbered by the place in the batch instead of the place in the part."""
        if error.item is not None and 0 <= error.item < len(self.places):
            place = self.places[error.item]
            error.message = self._renumbered(error.message, error.item, place)
            error.item = place
        return error

    def _renumbered(self, message: str, item: int | None, place: int) -> str:
        name = self.route.request_list
        return message if item is None else message.replace(f"{name}[{item}]", f"{name}[{place}]", 1)


def _errors_of(row: BaseModel) -> Sequence[ErrorDetail]:
    """Return the errors that stand in a row's place, or beside its numbers."""
    if isinstance(row, ItemError):
        return [row.error]
    return (row.errors or ()) if isinstance(row, Tournament) else ()


def parts_of(
    route: Route[AnswerT],
    batch: Iterable[object],
    options: RequestOptions,
    *,
    max_items: int,
    max_bytes: int,
    memory: IdMemory | None = None,
) -> list[Part[AnswerT]]:
    """Return the requests that ask for a batch, at least one.

    Args:
        batch: wire types, dicts, or tuples in the order of ``route.fields``.
        options: what else the request says.
        max_items: most items in one part; every response and reference counts.
        max_bytes: most bytes of items in one part, written in full; an item that is larger travels alone.
        memory: ids that pairs of ``/v1/preferences`` are written by, if any may be remembered.

    Raises:
        RequestError: if an item is not in the wire format; ``item`` is its index.
    """
    # Only pairs can be named by ids; the other routes take texts alone.
    if memory is not None and (memory.size == 0 or route is not PREFERENCES):
        memory = None
    if memory is not None and "ids" not in options.return_:
        options = replace(options, return_=(*options.return_, "ids"))
    request = _validated(route, batch, options)
    items: list[Pair | PairById | Item | ItemOfSteps | Group] = getattr(request, route.request_list)
    # Items are written once, by themselves: a part joins their bytes, and nothing is copied through pydantic again.
    written = [item.__pydantic_serializer__.to_json(item, exclude_unset=True) for item in items]
    head = _head(request, route.request_list)
    loads = [_Load(_count(item), len(text), _comparisons(item)) for item, text in zip(items, written, strict=True)]
    parts = []
    for places in _cut(items, loads, most=_Load(max_items, max_bytes, _MOST_COMPARISONS)):
        own, texts = [items[place] for place in places], [written[place] for place in places]
        # Parts are cut by their full size, though ids may make them shorter: written again in full they must fit too.
        writer = None if memory is None else PairWriter(memory, options.model, own, texts)
        body = _body(head, texts if writer is None else writer.written())
        first = own[0].prompt if own else None
        parts.append(Part(route, body, places, None if first is None else prompt_hash(first), head, writer))
    return parts


def _validated(
    route: Route[AnswerT], batch: Iterable[object], options: RequestOptions
) -> PreferencesRequest | RewardsRequest | TournamentsRequest | TokensRequest:
    shaped = [_shaped(route, place, item) for place, item in enumerate(batch)]
    try:
        return route.request.model_validate({route.request_list: shaped, **options.fields()})
    except ValidationError as error:
        # Refused before anything is sent, and with the error that the service would answer.
        raise exception_for(error_detail(error)) from None


def _head(request: BaseModel, list_field: str) -> bytes:
    """Return a request's JSON up to the first item of its list."""
    envelope = request.model_dump_json(exclude={list_field}, exclude_unset=True, by_alias=True).encode()
    return envelope[:-1] + (b"," if len(envelope) > 2 else b"") + f'"{list_field}":['.encode()


def _body(head: bytes, texts: Sequence[bytes]) -> bytes:
    return head + b",".join(texts) + b"]}"


def _family(item: Pair | PairById | Item | ItemOfSteps | Group) -> str:
    """Return what items of one prompt share; pairs of two ids, which say no prompt, share nothing but that."""
    if item.prompt is None or isinstance(item.prompt, str):
        return item.prompt or ""
    return prompt_hash(item.prompt)


def _shaped(route: Route[AnswerT], place: int, item: object) -> object:
    """Return an item as a wire type or a dict."""
    if not isinstance(item, tuple | list):
        return item
    # Not left to pydantic: it would name a missing field, where the caller has forgotten an element of a tuple.
    if len(item) != len(route.fields):
        raise RequestError(
            f"{route.request_list}[{place}]: a tuple of {len(item)} is not ({', '.join(route.fields)})", item=place
        )
    return dict(zip(route.fields, item, strict=True))


def _count(item: Pair | PairById | Item | ItemOfSteps | Group) -> int:
    """Return what an item counts towards a part's limit: every response and every reference counts."""
    if isinstance(item, Pair | PairById):
        return 1
    return (len(item.responses) if isinstance(item, Group) else 1) + len(item.listed)


def _comparisons(item: Pair | PairById | Item | ItemOfSteps | Group) -> int:
    """Return how many comparisons an item is for a model that reads both responses at once."""
    own = len(item.responses) if isinstance(item, Group) else 1
    references = 0 if isinstance(item, Pair | PairById) else len(item.listed)
    return own * (own - 1) // 2 + own * references


class _Load(NamedTuple):
    """What items add to a part: their number, their bytes, and their comparisons."""

    items: int = 0
    size: int = 0
    comparisons: int = 0

    def plus(self, other: "_Load") -> "_Load":
        return _Load(self.items + other.items, self.size + other.size, self.comparisons + other.comparisons)

    def fits(self, most: "_Load") -> bool:
        return all(own <= limit for own, limit in zip(self, most, strict=True))


def _cut(
    items: Sequence[Pair | PairById | Item | ItemOfSteps | Group], loads: Sequence[_Load], *, most: _Load
) -> Iterator[Sequence[int]]:
    """Yield the places of each part: siblings of one prompt together, prompts in the order of their first sibling.

    An item that is over the largest load alone makes a part of its own.
    """
    if _sum(loads).fits(most):
        yield range(len(items))  # the usual case: in the order of the batch, and no prompt is hashed
        return
    # Dicts keep their order: families come in the order of their first items, so the same batch is always cut the same.
    siblings: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        siblings.setdefault(_family(item), []).append(place)
    part: list[int] = []
    load = _Load()
    for family in siblings.values():
        # A family that fits into a part of its own is not split over two: the server computes its prompt once.
        together = _sum([loads[place] for place in family])
        if part and together.fits(most) and not load.plus(together).fits(most):
            yield part
            part, load = [], _Load()
        # A family that is larger than a part is cut like any other list, and starts in the room that is left.
        for place in family:
            if part and not load.plus(loads[place]).fits(most):
                yield part
                part, load = [], _Load()
            part.append(place)
            load = load.plus(loads[place])
    if part:
        yield part


def _sum(loads: Sequence[_Load]) -> _Load:
    return _Load(*map(sum, zip(*loads, strict=True)))


def prompt_hash(prompt: Prompt) -> str:
    """Return 32 hex digits that siblings of one prompt share; a text and its one user message are the same prompt."""
    return hashlib.blake2b(canonical_turns(prompt, "user"), digest_size=16).hexdigest()


def read_json(wire: type[Read], content: bytes, name: str) -> Read:
    """Return the body of an answer as a wire type.

    Raises:
        AnswerError: if it is none; the message calls it by the name.
    """
    try:
        return wire.model_validate_json(content)
    except ValidationError as error:
        raise AnswerError(f"{name} is not in the wire format: {error_detail(error).message}") from None


def merge_answers(parts: Sequence[Part[AnswerT]], answers: Sequence[AnswerT]) -> AnswerT:
    """Return one answer in the order of the batch, its usage summed.

    Raises:
        OracleChangedError: if the parts were answered under different identities or fingerprints.
    """
    first = answers[0]
    if len(answers) == 1:
        return first
    # Numbers of two models side by side would look like one answer, and be wrong in a way that nobody sees.
    for answer in answers[1:]:
        for name in ("model", "identity", "fingerprint"):
            before, after = getattr(first, name), getattr(answer, name)
            if before != after:
                raise OracleChangedError(
                    f"the {name} changed within one batch, from {before} to {after}: the model was replaced while it "
                    "answered, or replicas differ; ask again"
                )
    list_field = parts[0].route.answer_list
    rows: list[Any] = [None] * sum(len(part.places) for part in parts)
    for part, answer in zip(parts, answers, strict=True):
        for place, row in zip(part.places, getattr(answer, list_field), strict=True):
            rows[place] = row
    # Every field of usage is a count or a cost, so the sum of each is the whole batch's.
    usage = Usage(**{name: sum(getattr(answer.usage, name) for answer in answers) for name in Usage.model_fields})
    return first.model_copy(update={list_field: rows, "usage": usage})
