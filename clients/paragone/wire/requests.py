"""The four requests, with the examples that the OpenAPI document shows."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from paragone.wire.conversations import Group, Item, ItemForm, PairForm, RequestModel, Text
from paragone.wire.signals import Shaping, Signal

__all__ = [
    "Aggregation",
    "Comparisons",
    "OnError",
    "PreferenceReturn",
    "PreferencesRequest",
    "RewardReturn",
    "RewardsRequest",
    "SkewWeight",
    "TokensRequest",
    "TokensReturn",
    "TournamentReturn",
    "TournamentsRequest",
    "Truncation",
]

# Literals, because pydantic names the known values where it refuses an unknown one.
Truncation = Literal["prompt", "error"]
OnError = Literal["refuse", "report"]
Fit = Literal["bradley-terry", "general-preference"]
Aggregation = Literal["min", "prod", "last"]
RewardReturn = Literal["representation", "blocks", "gate_scales", "ids"]
PreferenceReturn = Literal["ids", "rationale"]
TournamentReturn = Literal["matrix", "ids", "rationale"]
TokensReturn = Literal["pieces"]
Comparisons = Annotated[Text, Field(pattern=r"^(all|bracket|circular|budget:[1-9][0-9]{0,8})$")]
SkewWeight = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]

_STREET = "Close the main street to cars? Argue against."
_SHOPS = "Half of the shops live on people who come by car. Closing the street would hurt them all year round."
_BUSES = "It is true that the street is loud, but buses have to stop somewhere!"
_GARDEN = "Should every school have a garden? Argue for."
_BUSY = "A school garden keeps children busy, and they learn to share the work."
_FUN = "Because it is fun."
# As long as real ones, and good for nothing.
_FIRST_ID = "rGzTn9Zk3Wb1x0mYVtq7cQpJ8dKfLhUe5sXaBgOiMvE2NuR4jCwy6DIlSHAoPFTZ"
_SECOND_ID = "Zq8vXc2NfT7LrYwKj1mHs5BpUeGdOa0i9SQhVtIoR3xJnMuEbCz4yWgPlA6kDF-_"


class _Request(RequestModel):
    model: Text | None = Field(default=None, description="Id of a hosted model; omitted: the server's default model.")
    truncation: Truncation = Field(
        default="prompt",
        description="What happens to a conversation over the model's limit: `prompt` cuts its prompt from the left and "
        "says so, `error` refuses it. A response that does not fit alone is refused either way.",
    )
    on_error: OnError = Field(
        default="refuse",
        description="What one bad item does: `refuse` refuses the request and names the item, `report` puts "
        '`{"error": {…}}` in its place; of a group, the responses that can be scored are answered for.',
    )
    deadline_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Seconds from the arrival of the request until which its answer is of use; then it is dropped and "
        "answered with 504. The header `x-deadline-s` says the same; the shorter counts.",
    )


_Weight = Annotated[float, Field(ge=-1_000_000, le=1_000_000, allow_inf_nan=False)]


class _ScoringRequest(_Request):
    weights: Annotated[dict[Text, _Weight], Field(min_length=1, max_length=1024)] | None = Field(
        default=None,
        description="How much each named attribute counts in the reward, in place of the model's reward or weights; "
        "others count nothing. The answer's fingerprint is that of the model with these weights.",
    )

    aggregation: Aggregation | None = Field(
        default=None,
        description="What makes one reward of the steps that a `process` model scores: the worst one, the product of "
        "their probabilities, or the last one. Omitted: as the model was loaded; without any, steps are scored, and "
        "nothing is compared.",
    )


class _ComparisonRequest(_ScoringRequest):
    skew_weight: SkewWeight | None = Field(
        default=None,
        description="How much the skew form of a `hybrid` model counts beside its reward: 0 compares rewards alone. "
        "Omitted: the model's own. For rewards every item needs "
        "references. The answer's fingerprint is that of the model with this weight.",
    )


class PreferencesRequest(_ComparisonRequest):
    """Ask how probable it is that the first of two responses is preferred, for each pair."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mini-general-preference",
                    "pairs": [{"prompt": _STREET, "first": _SHOPS, "second": _BUSES}],
                },
                {"pairs": [{"prompt": _STREET, "first": _SHOPS, "second": _BUSES}], "return": ["ids"]},
                {"pairs": [{"first_id": _FIRST_ID, "second_id": _SECOND_ID}]},
            ]
        }
    )
    pairs: list[PairForm] = Field(
        description="The pairs; none is a valid batch. A response that an earlier answer gave an id may be named by it."
    )
    return_: list[PreferenceReturn] = Field(
        default=[],
        alias="return",
        description="What to add to each answer: `ids`, to name the responses by later; `rationale`, what a judge "
        "said.",
    )


class RewardsRequest(_ComparisonRequest):
    """Ask for the reward and the attributes of each response."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mini-bradley-terry",
                    "items": [{"prompt": _STREET, "response": _SHOPS}],
                    "return": ["representation"],
                },
                {
                    "model": "mini-general-preference",
                    "items": [{"prompt": _STREET, "response": _SHOPS, "references": [_BUSES, "No."]}],
                    "return": ["blocks"],
                },
            ]
        }
    )
    items: list[ItemForm] = Field(description="The responses with their prompts; none is a valid batch.")
    return_: list[RewardReturn] = Field(
        default=[],
        alias="return",
        description="What to add to each answer: `representation`, the d numbers; `blocks`, what each 2-block of a "
        "general preference vector adds to `reference_logit` (every item needs references); `gate_scales`, the gate's "
        "weights of the 2-blocks or of the attributes, for which each prompt is run through the model once more; "
        "`ids`, to name the responses by in later pairs.",
    )


class TournamentsRequest(_ComparisonRequest):
    """Ask for everything that follows from the K×K preferences among the responses of each group."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "groups": [{"prompt": _GARDEN, "responses": [_BUSY, _FUN, "Nobody should be forced to run."]}],
                    "return": ["matrix"],
                },
                {
                    "groups": [{"prompt": _GARDEN, "responses": [_BUSY, _FUN], "references": ["No."]}],
                    "signal": "anchor",
                    "shaping": {"answer_length_penalty": 0.1},
                    "on_error": "report",
                },
            ]
        }
    )
    groups: list[Group] = Field(description="The groups; none is a valid batch.")
    return_: list[TournamentReturn] = Field(
        default=[],
        alias="return",
        description="What to add to each answer: `matrix`, the K×K probabilities; `ids`, to name the responses by in "
        "later pairs; `rationale`, what a judge said of each pair that it compared.",
    )
    signal: Signal | None = Field(
        default=None,
        description="One number per response, for a trainer: `win_rate` within the group, `rank` by it (best 1, worst "
        "0), `anchor` (win rate against the references), `nash`, `elimination` (a knock-out), `acyclic` (place in the "
        "order that contradicts the table least; at most 16 responses), `reward`. Null: none.",
    )
    comparisons: Comparisons = Field(
        default="all",
        description="Which pairs a model that reads both responses at once compares; it has a cost for each. `all`: "
        "K(K−1)/2; `circular`: each response with the next one; `bracket`: a knock-out, at most 3K/2 − 1; `budget:N`: "
        "N, chosen in rounds by what their answers would tell. The other kinds answer all pairs in any case.",
    )
    fit: Fit = Field(
        default="bradley-terry",
        description="What infers the pairs that were not compared: `bradley-terry`, a strength for each response; "
        "`general-preference`, a place in a plane beside it, for preferences that may run in circles.",
    )
    shaping: Shaping | None = Field(
        default=None, description="What the signal gains or loses by length and style; needs a signal."
    )

    @model_validator(mode="after")
    def _shapes_something(self) -> "TournamentsRequest":
        if self.shaping is not None and self.signal is None:
            raise PydanticCustomError("shaping", "shaping changes the signal: name the signal too")
        return self


def _alone(item: Item) -> Item:
    # Refused and not ignored: whoever sends references expects them to count.
    if item.references is not None:
        raise PydanticCustomError("references", "references are read by /v1/rewards alone: send each as an item here")
    return item


class TokensRequest(_Request):
    """Ask what exactly the model sees of each conversation."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"prompt": _GARDEN, "response": _FUN}]}]})
    items: list[Annotated[Item, AfterValidator(_alone)]] = Field(
        description="The responses with their prompts; none is a valid batch."
    )
    return_: list[TokensReturn] = Field(
        default=[], alias="return", description="What to add to each answer: `pieces`, the text of each token."
    )
