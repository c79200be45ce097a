"""Build requests, split large ones, read answers and merge them: pure functions that both clients share.

A batch is split by count and by bytes. Items with the same prompt stay together in one part as long as they fit, so
that the server computes the prompt once; the merged answer is in the order of the batch again.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar, cast

from pydantic import ValidationError

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
    Group,
    Item,
    ItemError,
    Message,
    ModelInfo,
    ModelsAnswer,
    OnError,
    Pair,
    PairById,
    PreferencesAnswer,
    PreferencesRequest,
    Prompt,
    RewardsAnswer,
    RewardsRequest,
    TokensAnswer,
    TokensRequest,
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
    "GroupLike",
    "ItemLike",
    "Options",
    "PairLike",
    "Part",
    "PromptLike",
    "ResponseLike",
    "Route",
    "merged",
    "parts_of",
    "placed",
    "prompt_hash",
    "read",
    "read_model",
    "read_models",
    "without_unknown_ids",
]

logger = logging.getLogger("paragone")

PromptLike = str | Sequence[Message | dict[str, Any]]
ResponseLike = str | Message | dict[str, Any] | Sequence[Message | dict[str, Any]]
PairLike = Pair | PairById | dict[str, Any] | tuple[PromptLike, ResponseLike, ResponseLike]
ItemLike = Item | dict[str, Any] | tuple[PromptLike, ResponseLike]
GroupLike = Group | dict[str, Any] | tuple[PromptLike, Sequence[ResponseLike]]

Answer = PreferencesAnswer | RewardsAnswer | TournamentsAnswer | TokensAnswer
AnswerT = TypeVar("AnswerT", PreferencesAnswer, RewardsAnswer, TournamentsAnswer, TokensAnswer)


@dataclass(frozen=True, slots=True)
class Route(Generic[AnswerT]):
    """One native route: where it is, what its lists are called and what it answers."""

    path: str
    asked: str
    answered: str
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
class Options:
    """What a request says besides its list; what is left at its default is not sent."""

    model: str | None = None
    truncation: Truncation = "prompt"
    on_error: OnError = "refuse"
    return_: Sequence[str] = ()

    def with_default(self, model: str | None) -> "Options":
        """Return the same options, with this model where they name none."""
        return self if self.model is not None else replace(self, model=model)

    def sent(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, under the wire's names."""
        fields: dict[str, Any] = {}
        if self.model is not None:
            fields["model"] = self.model
        if self.truncation != "prompt":
            fields["truncation"] = self.truncation
        if self.on_error != "refuse":
            fields["on_error"] = self.on_error
        if self.return_:
            fields["return"] = list(self.return_)
        return fields


@dataclass(frozen=True, slots=True)
class Part:
    """One HTTP request: its body, the places of its items in the batch, and the hash of its first prompt.

    Attributes:
        head: the body up to its items.
        writer: writes its pairs and learns the answer's ids, where ids are remembered.
    """

    body: bytes
    places: Sequence[int]
    prompt_hash: str | None
    head: bytes = b""
    writer: PairWriter | None = None


def parts_of(
    route: Route[AnswerT],
    batch: Iterable[object],
    options: Options,
    *,
    max_items: int,
    max_bytes: int,
    memory: IdMemory | None = None,
) -> list[Part]:
    """Return the requests that ask for a batch, at least one.

    Args:
        route: which route is asked.
        batch: wire types, dicts, or tuples in the order of ``route.fields``.
        options: what else the request says.
        max_items: most items in one part; every response and reference counts.
        max_bytes: most bytes of items in one part, written in full; an item that is larger travels alone.
        memory: ids that pairs of ``/v1/preferences`` are written by, if any may be remembered.

    Raises:
        RequestError: if an item is not in the wire format; ``item`` is its index.
    """
    if memory is not None and (memory.size == 0 or route is not PREFERENCES):
        memory = None
    if memory is not None and "ids" not in options.return_:
        options = replace(options, return_=(*options.return_, "ids"))
    shaped = [_shaped(route, place, item) for place, item in enumerate(batch)]
    try:
        request = route.request.model_validate({route.asked: shaped, **options.sent()})
    except ValidationError as error:
        raise exception_for(error_detail(error)) from None
    items: list[Pair | PairById | Item | Group] = getattr(request, route.asked)
    # Items are written once, by themselves: a part joins their bytes, and nothing is copied through pydantic again.
    written = [item.__pydantic_serializer__.to_json(item, exclude_unset=True) for item in items]
    envelope = request.model_dump_json(exclude={route.asked}, exclude_unset=True, by_alias=True).encode()
    head = envelope[:-1] + (b"," if len(envelope) > 2 else b"") + f'"{route.asked}":['.encode()
    loads = [_Load(_count(item), len(text)) for item, text in zip(items, written, strict=True)]
    parts = []
    for places in _cut(items, loads, most=_Load(max_items, max_bytes)):
        texts, writer = [written[place] for place in places], None
        if memory is not None:
            pairs = cast("list[Pair | PairById]", [items[place] for place in places])
            writer = PairWriter(memory, options.model, pairs, texts)
            texts = writer.written()
        first = items[places[0]].prompt if places else None
        hashed = None if first is None else prompt_hash(first)
        parts.append(Part(head + b",".join(texts) + b"]}", places, hashed, head, writer))
    return parts


def without_unknown_ids(part: Part, error: UnknownIdError) -> Part:
    """Return a part written again, without the ids that the service did not know.

    Raises:
        UnknownIdError: the error itself, if no id was ours.
    """
    if part.writer is None:
        raise error
    writer = part.writer.without_unknown(error)
    logger.info("%d ids are not known any more: their responses are sent in full", len(error.ids))
    return replace(part, body=part.head + b",".join(writer.written()) + b"]}", writer=writer)


def _family(item: Pair | PairById | Item | Group) -> str:
    """Return what items of one prompt share; pairs of two ids, which say no prompt, share nothing but that."""
    if item.prompt is None or isinstance(item.prompt, str):
        return item.prompt or ""
    return prompt_hash(item.prompt)


def _shaped(route: Route[AnswerT], place: int, item: object) -> object:
    """Return an item as a wire type or a dict."""
    if not isinstance(item, tuple | list):
        return item
    if len(item) != len(route.fields):
        raise RequestError(
            f"{route.asked}[{place}]: a tuple of {len(item)} is not ({', '.join(route.fields)})", item=place
        )
    return dict(zip(route.fields, item, strict=True))


def _count(item: Pair | PairById | Item | Group) -> int:
    """Return what an item counts towards a part's limit: every response and every reference counts."""
    if isinstance(item, Pair | PairById):
        return 1
    return (len(item.responses) if isinstance(item, Group) else 1) + len(item.references or ())


class _Load(NamedTuple):
    """What items add to a part: their number, and their bytes."""

    items: int = 0
    size: int = 0

    def plus(self, other: "_Load") -> "_Load":
        return _Load(self.items + other.items, self.size + other.size)

    def fits(self, most: "_Load") -> bool:
        return self.items <= most.items and self.size <= most.size


def _cut(
    items: Sequence[Pair | PairById | Item | Group], loads: Sequence[_Load], *, most: _Load
) -> Iterator[Sequence[int]]:
    """Yield the places of each part: siblings of one prompt together, prompts in the order of their first sibling.

    An item that is over the largest load alone makes a part of its own.
    """
    if _sum(loads).fits(most):
        yield range(len(items))  # the usual case: in the order of the batch, and no prompt is hashed
        return
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
        for place in family:
            if part and not load.plus(loads[place]).fits(most):
                yield part
                part, load = [], _Load()
            part.append(place)
            load = load.plus(loads[place])
    if part:
        yield part


def _sum(loads: Sequence[_Load]) -> _Load:
    return _Load(sum(load.items for load in loads), sum(load.size for load in loads))


def prompt_hash(prompt: Prompt) -> str:
    """Return 32 hex digits that siblings of one prompt share; a text and its one user message are the same prompt."""
    return hashlib.blake2b(canonical_turns(prompt, "user"), digest_size=16).hexdigest()


def read(route: Route[AnswerT], part: Part, content: bytes) -> AnswerT:
    """Return the answer to one part, its errors numbered by the places in the batch.

    Raises:
        AnswerError: if the body is not an answer of this route, or has another number of rows than were asked for.
        UnknownIdError: if ids that the client put in are reported as unknown; see ``without_unknown_ids``.
    """
    try:
        answer = route.answer.model_validate_json(content)
    except ValidationError as error:
        raise AnswerError(
            f"the answer of {route.path} is not in the wire format: {error_detail(error).message}"
        ) from None
    rows: list[Any] = getattr(answer, route.answered)
    if len(rows) != len(part.places):
        raise AnswerError(f"{route.path} was asked for {len(part.places)} rows and answered {len(rows)}")
    for row, place in zip(rows, part.places, strict=True):
        if isinstance(row, ItemError):
            row.error.message = _renumbered(row.error.message, route.asked, row.error.item, place)
            row.error.item = place
    if part.writer is not None:
        part.writer.remember(rows)
    return answer


def read_models(content: bytes) -> list[ModelInfo]:
    """Return the hosted models that an answer lists.

    Raises:
        AnswerError: if the body is not a list of models.
    """
    try:
        return ModelsAnswer.model_validate_json(content).models
    except ValidationError as error:
        raise AnswerError(f"the list of models is not in the wire format: {error_detail(error).message}") from None


def read_model(content: bytes) -> ModelInfo:
    """Return the model that an answer describes.

    Raises:
        AnswerError: if the body is not a model.
    """
    try:
        return ModelInfo.model_validate_json(content)
    except ValidationError as error:
        raise AnswerError(f"the model is not in the wire format: {error_detail(error).message}") from None


def placed(route: Route[AnswerT], part: Part, error: ParagoneError) -> ParagoneError:
    """Return the error with its item numbered by the place in the batch instead of the place in the part."""
    if error.item is not None and 0 <= error.item < len(part.places):
        place = part.places[error.item]
        error.message = _renumbered(error.message, route.asked, error.item, place)
        error.item = place
    return error


def _renumbered(message: str, asked: str, item: int | None, place: int) -> str:
    return message if item is None else message.replace(f"{asked}[{item}]", f"{asked}[{place}]", 1)


def merged(route: Route[AnswerT], parts: Sequence[Part], answers: Sequence[AnswerT]) -> AnswerT:
    """Return one answer in the order of the batch, its usage summed.

    Raises:
        OracleChangedError: if the parts were answered under different identities or fingerprints.
    """
    first = answers[0]
    if len(answers) == 1:
        return first
    for answer in answers[1:]:
        for name in ("model", "identity", "fingerprint"):
            before, after = getattr(first, name), getattr(answer, name)
            if before != after:
                raise OracleChangedError(
                    f"the {name} changed within one batch, from {before} to {after}: the model was replaced while it "
                    "answered, or replicas differ; ask again"
                )
    rows: list[Any] = [None] * sum(len(part.places) for part in parts)
    for part, answer in zip(parts, answers, strict=True):
        for place, row in zip(part.places, getattr(answer, route.answered), strict=True):
            rows[place] = row
    usage = Usage(**{name: sum(getattr(answer.usage, name) for answer in answers) for name in Usage.model_fields})
    return first.model_copy(update={route.answered: rows, "usage": usage})
