"""Reference sets: responses to many prompts, stored once by name, that later requests are held against."""

from typing import Annotated

from pydantic import ConfigDict, Field

from paragone.wire.answers import AnswerModel, Count
from paragone.wire.conversations import Conversations, Few, RequestModel, Response, SetName, Text
from paragone.wire.requests import Truncation

__all__ = ["ReferenceItem", "ReferenceSet", "ReferenceSetsAnswer", "ReferencesRequest"]

_LONGEST_TTL_S = 10 * 365 * 86_400


class ReferenceItem(Conversations):
    """One prompt and the responses that others to it are held against."""

    responses: Few[Response] = Field(min_length=1, description="The responses, a policy's answers for example.")


class ReferencesRequest(RequestModel):
    """Store responses under a name; what was stored under it before is replaced."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "policy-0",
                    "items": [
                        {
                            "prompt": "Should every school have a garden? Argue for.",
                            "responses": ["Because it is fun.", "Children see where food comes from."],
                        }
                    ],
                    "ttl_s": 604_800,
                }
            ]
        }
    )
    model: Text | None = Field(default=None, description="Id of a hosted model; omitted: the server's default model.")
    name: SetName = Field(description="What later requests call the set.")
    items: list[ReferenceItem] = Field(
        min_length=1, description="The prompts with their responses; items of one prompt are put together."
    )
    ttl_s: Annotated[float, Field(gt=0, le=_LONGEST_TTL_S, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds for which the set is kept; null: until it is deleted."
    )
    truncation: Truncation = Field(
        default="prompt",
        description="What happens to a conversation over the model's limit: `prompt` cuts its prompt from the left, "
        "`error` refuses it.",
    )


class ReferenceSet(AnswerModel):
    """A stored set."""

    name: str = Field(description="What requests call it.")
    model: str = Field(description="Id of the model that it was stored for.")
    identity: str = Field(description="Identity of that model when the set was stored: it is of use to no other.")
    items: Count = Field(description="Distinct prompts. [count]")
    responses: Count = Field(description="Responses to all of them. [count]")
    created: float = Field(description="When it was stored. [seconds since 1970]")
    expires: float | None = Field(default=None, description="When it is forgotten; null: never. [seconds since 1970]")


class ReferenceSetsAnswer(AnswerModel):
    """The stored sets, by name."""

    references: list[ReferenceSet] = Field(description="The stored sets, by name.")
