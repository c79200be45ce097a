"""A cohort: a group whose members come one request at a time, and are answered when all of them have come."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from paragone.codes import ErrorCode
from paragone.wire.answers import AnswerModel, Count, Finite, ModelAnswer, Probability, Usage
from paragone.wire.conversations import (
    Criteria,
    Principle,
    Referenced,
    References,
    Response,
    Text,
    judged_by_one,
)
from paragone.wire.requests import Comparisons, SkewWeight, Truncation
from paragone.wire.signals import Shaping, Signal

__all__ = ["CohortAnswer", "CohortRequest", "CohortReturn", "OnMissing", "Unscored"]

OnMissing = Literal["fail", "score-present"]
CohortReturn = Literal["matrix_row"]

MOST_MEMBERS = 1024
_LONGEST_DEADLINE_S = 86_400


class CohortRequest(Referenced):
    """Ask how one response does within its group; the answer comes once every member of the group was sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "group": "run-7/step-120/prompt-31",
                    "slot": 0,
                    "size": 8,
                    "prompt": "Should every school have a garden? Argue for.",
                    "response": "A school garden keeps children busy, and they learn to share the work.",
                }
            ]
        }
    )
    model: Text | None = Field(default=None, description="Id of a hosted model; omitted: the server's default model.")
    group: Annotated[Text, Field(min_length=1, max_length=256)] = Field(
        description="The group's id, made by the caller: one for each occurrence of a prompt in each run. Members are "
        "grouped by it alone, and never by their prompt's text."
    )
    attempt: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = Field(
        default=0,
        description="The same for all members. A higher one starts the group anew, and ends the earlier one's waiting "
        "with `cohort_superseded`.",
    )
    slot: Annotated[int, Field(ge=0, strict=True)] = Field(
        description="Which member this is, 0 … size−1. The same slot with the same response joins or is replayed."
    )
    size: Annotated[int, Field(ge=1, le=MOST_MEMBERS, strict=True)] = Field(
        description="How many members the group has. [count]"
    )
    response: Response = Field(
        description="The member's response: a text (one assistant message), a message, or a list of messages."
    )
    references: References | None = Field(
        default=None,
        description="Other responses to the prompt, or the name of a set of them, for `reference_win_rate`; the same "
        "for all members.",
    )
    principle: Principle | None = Field(
        default=None,
        description="What to judge by, for a model that takes a principle. Omitted: the model's own. The same for all "
        "members.",
    )
    criteria: Criteria | None = Field(
        default=None,
        description="Several principles, for a judge: it is asked by each, and the answer says by each and in all. The "
        "same for all members.",
    )
    comparisons: Comparisons = Field(
        default="all",
        description="Which pairs a model that reads both responses at once compares when the group is whole, as "
        "`/v1/tournaments` has it. The same for all members; the other kinds answer all pairs in any case.",
    )
    deadline_s: Annotated[float, Field(gt=0, le=_LONGEST_DEADLINE_S, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Seconds from the arrival of the group's first member in which all must have come; that member's "
        "counts, and nothing prolongs it. Omitted: the server's.",
    )
    signal: Signal | None = Field(
        default=None,
        description="One number for a trainer, as `/v1/tournaments` has them: `win_rate`, `rank`, `anchor`, `nash`, "
        "`elimination`, `acyclic` or `reward`. Null: none. The same for all members.",
    )
    shaping: Shaping | None = Field(
        default=None,
        description="What the signal gains or loses by length and style; needs a signal. The same for all members.",
    )
    skew_weight: SkewWeight | None = Field(
        default=None,
        description="How much the skew form of a `hybrid` model counts beside its reward, in place of the model's own "
        "weight; the answer's fingerprint is that of the model with it. The same for all members.",
    )
    on_missing: OnMissing = Field(
        default="fail",
        description="What happens at the deadline if members are missing: `fail` answers `cohort_incomplete` to all, "
        "`score-present` scores those that came and lists the missing ones. The same for all members.",
    )
    truncation: Truncation = Field(
        default="prompt",
        description="What happens to a conversation over the model's limit: `prompt` cuts its prompt from the left, "
        "`error` refuses it. The same for all members.",
    )
    return_: list[CohortReturn] = Field(
        default=[],
        alias="return",
        description="What to add to the answer: `matrix_row`, the probabilities against each member.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "CohortRequest":
        if self.slot >= self.size:
            raise PydanticCustomError(
                "slot",
                "slot {slot} is not one of a group of {size}: count from 0",
                {"slot": self.slot, "size": self.size},
            )
        if self.shaping is not None and self.signal is None:
            raise PydanticCustomError("shaping", "shaping changes the signal: name the signal too")
        return judged_by_one(self)


class Unscored(AnswerModel):
    """A member, or a reference, that could not be scored: it does not count in anybody's numbers."""

    slot: Count | None = Field(default=None, description="The member's slot; null for a reference.")
    reference: Count | None = Field(default=None, description="Index of the reference; null for a member.")
    code: Annotated[ErrorCode | str, Field(union_mode="left_to_right")] = Field(
        description="Why: the code that the member's own request was answered with."
    )
    message: str = Field(description="For people; it repeats no text.")


class CohortAnswer(ModelAnswer):
    """How one member does within its group. Only members that were scored count."""

    win_rate: Probability | None = Field(
        description="Mean probability against the scored members, itself counted as ½; null where all others were not "
        "scored."
    )
    rank: Annotated[int, Field(ge=1)] | None = Field(
        description="1 plus the number of members with a higher win rate: 1 is best; null where that is."
    )
    reward: Finite | None = Field(
        default=None, description="The reward; left out where the kind has no scalar. [logits, before temperature]"
    )
    reference_win_rate: Probability | None = Field(
        default=None, description="Mean probability against the references that were scored; left out without any."
    )
    signal: Finite | None = Field(
        default=None,
        description="The signal that was asked for, shaped if that was asked for too. Null where the member is alone "
        "and the signal compares it with its group.",
    )
    size: Count = Field(description="Members that the group should have. [count]")
    present: Count = Field(description="Members that came, scored or not. [count]")
    missing: list[Count] = Field(description="Slots that did not come in time; empty unless `score-present`.")
    unscored: list[Unscored] = Field(description="Members and references that could not be scored, and why.")
    matrix_row: list[Probability | None] | None = Field(
        default=None,
        description="Probability that it is preferred to the member of each slot, if asked for; null where that one "
        "was not scored. [size]",
    )
    compared: list[Count] | None = Field(
        default=None,
        description="Of a model that reads both responses at once: the slots that it was compared with; all else is "
        "inferred by a Bradley-Terry fit.",
    )
    failed: list[Unscored] | None = Field(
        default=None,
        description="Comparisons with other scored members that failed, by their slots, and why; left out without any.",
    )
    abstained: list[Count] | None = Field(
        default=None,
        description="Of an ensemble: the slots against which it abstains; their probabilities count as they are, near "
        "to ½. Left out where there are none.",
    )
    interval: tuple[Probability, Probability] | None = Field(
        default=None,
        description="Where something is inferred: the 95 % interval of the win rate, as far as inference blurs it.",
    )
    criteria: dict[str, Probability] | None = Field(
        default=None, description="Of a judge that was given criteria: the win rate by each, by name."
    )
    usage: Usage
