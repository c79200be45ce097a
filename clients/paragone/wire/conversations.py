"""Conversations as requests carry them: texts, messages, prompts and responses, pairs, items and groups.

Texts are checked for lone surrogates here, because Python strings can hold them and ``str.encode`` fails on them much
later, deep inside a server. What a model cannot read (an image, say) is refused by the model with
``unsupported_content``, not by these types. The tags of the unions are written in angle brackets, so that they can be
told from field names in an error's place. A list inside an item is refused at its first bad element: collecting an
error for each would cost a server gigabytes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    JsonValue,
    Strict,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "ContentPart",
    "Conversations",
    "Criteria",
    "Criterion",
    "Few",
    "Group",
    "Item",
    "ItemForm",
    "ItemOfSteps",
    "JsonObject",
    "Message",
    "Pair",
    "PairById",
    "PairForm",
    "Principle",
    "Prompt",
    "Referenced",
    "References",
    "ReferencesByName",
    "RequestModel",
    "Response",
    "SetName",
    "Text",
    "canonical_json",
    "canonical_turns",
    "judged_by_one",
]

Element = TypeVar("Element")
# Ids have 64 letters. There is room for longer ones, and none for a text that was put into an id's place.
_LONGEST_ID = 256
# A principle is some sentences; a rubric may be a page.
_LONGEST_PRINCIPLE = 10_000


def _well_formed(text: str) -> str:
    if not text.isascii():  # a flag of the string, so the most common texts cost nothing
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PydanticCustomError(
                "lone_surrogate", "the text holds a lone surrogate, which no UTF-8 can carry: replace or remove it"
            ) from None
    return text


def _well_formed_object(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the object unchanged if all its texts, at any depth, are well formed and its numbers are finite."""
    waiting: list[JsonValue] = [value]  # a stack of our own: recursion would end at a depth that a sender chooses
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            _well_formed(part)
        elif isinstance(part, dict):
            waiting.extend(part)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise PydanticCustomError("finite_number", "the object holds NaN or an infinity, which JSON cannot carry")
    return value


Text = Annotated[str, Strict(), AfterValidator(_well_formed)]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_well_formed_object)]


class RequestModel(BaseModel):
    """What a request is made of: unknown fields are refused, and errors do not repeat the input."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class _FromAnSdk(RequestModel):
    """What an SDK may have dumped: it has all fields of its type, and those that are null or empty say nothing."""

    _kept: ClassVar[frozenset[str]]
    """Fields in which an empty text says something."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not any(map(_says_nothing, value.values())):
            return value
        return {name: field for name, field in value.items() if name in cls._kept or not _says_nothing(field)}


def _says_nothing(field: object) -> bool:
    return field is None or (not field and isinstance(field, str | list | dict))


class _FirstErrorOnly(FailFast):
    __hash__ = object.__hash__  # pydantic's own has none, and members of a union must have one


Few = Annotated[list[Element], _FirstErrorOnly()]
"""A list inside an item: its first bad element ends its validation."""


# All types that OpenAI's and vLLM's clients send are taken: a model that cannot read one says so by its name, which
# helps more than a complaint about the wire format.
class ContentPart(_FromAnSdk):
    """One part of a message's content; the field named after its type holds it."""

    _kept = frozenset({"type", "text", "refusal", "image_url", "input_audio", "video_url", "file"})

    type: Literal["text", "refusal", "image_url", "input_audio", "video_url", "file"] = Field(
        description="Kind of the part. Most models read `text` only and answer `unsupported_content` to the rest."
    )
    text: Text | None = Field(default=None, description="The text of a `text` part.")
    refusal: Text | None = Field(default=None, description="The text of a `refusal` part.")
    image_url: JsonObject | None = Field(default=None, description="An `image_url` part, as OpenAI writes it.")
    input_audio: JsonObject | None = Field(default=None, description="An `input_audio` part, as OpenAI writes it.")
    video_url: JsonObject | None = Field(default=None, description="A `video_url` part, as vLLM writes it.")
    file: JsonObject | None = Field(default=None, description="A `file` part, as OpenAI writes it.")

    @model_validator(mode="after")
    def _holds_what_it_says(self) -> "ContentPart":
        if getattr(self, self.type) is None:
            raise PydanticCustomError(
                "empty_part", "a content part of type '{type}' needs the field '{type}'", {"type": self.type}
            )
        return self


# The forms of a union are told apart by hand. Left to pydantic, each form would be tried, and a bad message would be
# answered with one complaint for each of them.
def _content_kind(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list | tuple) else None


def _prompt_kind(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<messages>" if isinstance(value, list | tuple) else None


def _response_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list | tuple):
        return "<messages>"
    return "<message>" if isinstance(value, Mapping | Message) else None


class Message(_FromAnSdk):
    """One message of a conversation, in OpenAI's shape."""

    _kept = frozenset({"role", "content"})

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: (
        Annotated[
            Annotated[Text, Tag("<text>")] | Annotated[Few[ContentPart], Tag("<parts>")],
            Discriminator(
                _content_kind,
                custom_error_type="content_type",
                custom_error_message="content is a text, a list of parts, or null",
            ),
        ]
        | None
    ) = Field(default=None, description="What is said: a text, or a list of parts; null beside tool calls.")
    name: Text | None = Field(default=None, description="Name of the speaker, where there are several of a role.")
    tool_calls: Few[JsonObject] | None = Field(default=None, description="Calls that an assistant makes.")
    tool_call_id: Text | None = Field(default=None, description="The call that a `tool` message answers.")
    reasoning_content: Text | None = Field(default=None, description="An assistant's thoughts before its content.")


Prompt = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Few[Message], Tag("<messages>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="a prompt is a text or a list of messages",
    ),
]
Response = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Message, Tag("<message>")] | Annotated[Few[Message], Tag("<messages>")],
    Discriminator(
        _response_kind,
        custom_error_type="response_type",
        custom_error_message="a response is a text, a message or a list of messages",
    ),
]

Id = Annotated[Text, Field(max_length=_LONGEST_ID)]
SetName = Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A name of a reference set: it is a part of a path."""

_PROMPT = "What was asked: a text (one user message) or a list of messages."
_RESPONSE = "A text (one assistant message), a message, or a list of messages (an agent's turns). It may be empty."


class Criterion(RequestModel):
    """One of several principles that responses are judged by."""

    name: Annotated[Text, Field(min_length=1, max_length=64)] = Field(description="What answers call it.")
    text: Annotated[Text, Field(min_length=1, max_length=_LONGEST_PRINCIPLE)] = Field(
        description="What is judged by it, for the judge to read."
    )
    weight: Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False)] = Field(
        default=1.0, description="How much it counts in all: the log-odds in all are the weighted mean."
    )


def _distinct(criteria: list[Criterion]) -> list[Criterion]:
    if len({criterion.name for criterion in criteria}) < len(criteria):
        raise PydanticCustomError("criteria", "two criteria have one name: answers are by name")
    return criteria


Principle = Annotated[Text, Field(min_length=1, max_length=_LONGEST_PRINCIPLE)]
Criteria = Annotated[Few[Criterion], Field(min_length=1, max_length=16), AfterValidator(_distinct)]
_PRINCIPLE = "What to judge by, for a model that takes a principle. Omitted: the model's own."
_CRITERIA = "Several principles, for a judge: it is asked by each, and the answer says by each and in all."


class _Judged(Protocol):
    principle: str | None
    criteria: list[Criterion] | None


Judged = TypeVar("Judged", bound=_Judged)


def judged_by_one(judged: Judged) -> Judged:
    """Return what names a principle or criteria, and not both.

    Raises:
        PydanticCustomError: if it names both.
    """
    if judged.principle is not None and judged.criteria is not None:
        raise PydanticCustomError("principle_twice", "give a principle or criteria, and not both")
    return judged


class Conversations(RequestModel):
    """A prompt and the tools on offer."""

    prompt: Prompt = Field(description=_PROMPT)
    tools: Few[JsonObject] | None = Field(default=None, description="Tools on offer, as OpenAI writes them.")


class Pair(Conversations):
    """One prompt and two responses. The first is the one whose win is measured."""

    first: Response = Field(description=f"The response whose win is measured. {_RESPONSE}")
    second: Response = Field(description=f"The response it is compared with. {_RESPONSE}")
    principle: Principle | None = Field(default=None, description=_PRINCIPLE)
    criteria: Criteria | None = Field(default=None, description=_CRITERIA)

    @model_validator(mode="after")
    def _judged_by_one_thing(self) -> "Pair":
        return judged_by_one(self)


class PairById(RequestModel):
    """A pair in which at least one response is named by the id that an earlier answer gave it.

    With two ids nothing else is said: they know their prompt. With one, prompt and tools must be the id's own.
    """

    prompt: Prompt | None = Field(default=None, description=f"Only with a response in full. {_PROMPT}")
    tools: Few[JsonObject] | None = Field(default=None, description="Tools on offer, as OpenAI writes them.")
    first: Response | None = Field(default=None, description=f"The response whose win is measured. {_RESPONSE}")
    first_id: Id | None = Field(default=None, description="The id of the first response, instead of it.")
    second: Response | None = Field(default=None, description=f"The response it is compared with. {_RESPONSE}")
    second_id: Id | None = Field(default=None, description="The id of the second response, instead of it.")

    @model_validator(mode="after")
    def _says_each_thing_once(self) -> "PairById":
        for side in ("first", "second"):
            if (getattr(self, side) is None) == (getattr(self, f"{side}_id") is None):
                raise PydanticCustomError(
                    "one_of_two", "give either '{side}' or '{side}_id', and not both", {"side": side}
                )
        # A prompt beside two ids could only repeat or contradict them.
        full = self.first is not None or self.second is not None
        if full and self.prompt is None:
            raise PydanticCustomError("prompt_missing", "a response in full needs its prompt beside it")
        if not full and (self.prompt is not None or self.tools is not None):
            raise PydanticCustomError("prompt_twice", "two ids know their prompt and tools: leave these out")
        return self


def _pair_kind(value: object) -> str:
    # By the names of its fields alone: pairs of texts, as nearly all are, are never held against the other form.
    named = isinstance(value, PairById) or (isinstance(value, dict) and ("first_id" in value or "second_id" in value))
    return "<ids>" if named else "<texts>"


PairForm = Annotated[Annotated[Pair, Tag("<texts>")] | Annotated[PairById, Tag("<ids>")], Discriminator(_pair_kind)]


class ReferencesByName(RequestModel):
    """The responses that a stored reference set has for this prompt."""

    set: SetName = Field(description="Name of a set that was stored by `/v1/references`.")


def _references_kind(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return "<list>"
    return "<set>" if isinstance(value, Mapping | ReferencesByName) else None


References = Annotated[
    Annotated[Few[Response], Field(min_length=1), Tag("<list>")] | Annotated[ReferencesByName, Tag("<set>")],
    Discriminator(
        _references_kind,
        custom_error_type="references_type",
        custom_error_message='references are a list of responses, or the name of a set: {"set": NAME}',
    ),
]


class Referenced(Conversations):
    """A prompt, and perhaps references: other responses to it, listed here or stored before."""

    references: References | None = Field(default=None, description="Other responses to the prompt.")

    @property
    def listed(self) -> list[Response]:
        """The references that are listed here."""
        return self.references if isinstance(self.references, list) else []

    @property
    def reference_set(self) -> str | None:
        """The name of the set that has the references, if they are not listed here."""
        return self.references.set if isinstance(self.references, ReferencesByName) else None


class Item(Referenced):
    """One prompt and one response, and perhaps references to hold it against."""

    principle: Principle | None = Field(default=None, description=_PRINCIPLE)
    response: Response = Field(description=f"The response. {_RESPONSE}")
    references: References | None = Field(
        default=None,
        description="Other responses to the prompt, or the name of a set of them, for `reference_logit` and `blocks`. "
        "Read by `/v1/rewards` alone.",
    )


class ItemOfSteps(Referenced):
    """One prompt and one response as single steps, for a process reward model."""

    principle: Principle | None = Field(default=None, description=_PRINCIPLE)
    steps: Annotated[Few[Text], Field(min_length=1, max_length=1000)] = Field(
        description="The steps of the response, instead of it, in their order. Read by process models alone; they take "
        "a `response` apart at its empty lines."
    )


def _item_kind(value: object) -> str:
    stepped = isinstance(value, ItemOfSteps) or (isinstance(value, dict) and "steps" in value)
    return "<steps>" if stepped else "<response>"


ItemForm = Annotated[
    Annotated[Item, Tag("<response>")] | Annotated[ItemOfSteps, Tag("<steps>")], Discriminator(_item_kind)
]


class Group(Referenced):
    """One prompt and K responses, and perhaps references to hold them against."""

    principle: Principle | None = Field(default=None, description=_PRINCIPLE)
    criteria: Criteria | None = Field(default=None, description=_CRITERIA)

    responses: Few[Response] = Field(min_length=1, description=f"The K responses, in any order. Each: {_RESPONSE}")
    references: References | None = Field(
        default=None,
        description="Other responses to the prompt, or the name of a set of them. If given, win rates are the mean "
        "probability against these, and not against the group itself.",
    )

    @model_validator(mode="after")
    def _judged_by_one_thing(self) -> "Group":
        return judged_by_one(self)


def canonical_json(value: object) -> bytes:
    """Return the one JSON form of a value: keys sorted, no spaces, UTF-8."""
    # Clients write the same object with its keys in any order, and its spaces as they like.
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def canonical_turns(turns: Prompt | Response, role: Literal["user", "assistant"]) -> bytes:
    """Return a prompt or a response as canonical JSON; a text is its one message of a role."""
    if isinstance(turns, str):
        return canonical_json([{"role": role, "content": turns}])
    # A field that is null says what an absent one says.
    messages: Sequence[Message] = [turns] if isinstance(turns, Message) else turns
    return canonical_json([message.model_dump(mode="json", exclude_none=True) for message in messages])
