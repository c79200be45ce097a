"""The answers, the errors and the description of a model.

Numbers are finite here or they are refused: a server that computed NaN cannot put it into an answer.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paragone.codes import ErrorCode

__all__ = [
    "AnswerModel",
    "Count",
    "DeviceInfo",
    "ErrorBody",
    "ErrorDetail",
    "Finite",
    "ItemError",
    "ModelAnswer",
    "ModelCard",
    "ModelInfo",
    "ModelLimits",
    "ModelsAnswer",
    "PairRationales",
    "Preference",
    "PreferencesAnswer",
    "Probability",
    "Rationale",
    "Reward",
    "RewardsAnswer",
    "TokensAnswer",
    "TokensItem",
    "Tournament",
    "TournamentsAnswer",
    "Usage",
    "error_detail",
]

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

_LISTS = ("pairs", "items", "groups")
# Bounds on the part of a message that its sender can shape: how deep a place goes, and how long a name in it is.
_LONGEST_PLACE = 8
_LONGEST_NAME = 40
_CODES = {"json_invalid": ErrorCode.INVALID_JSON}
_SHOWN = (
    "False where the chat template left out words of it or of its prompt (thoughts, for example), so that the model "
    "did not see them; sent only then. What was cut does not count."
)
_ID = (
    "The id to name it by in later pairs, if asked for: an opaque text, good for this prompt, model and server key. "
    "Null where the server keeps nothing."
)


class AnswerModel(BaseModel):
    """What an answer is made of: unknown fields are ignored, so that a newer server does not break an older client."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class ErrorDetail(AnswerModel):
    """What went wrong."""

    # A code of a newer server stays a text. To refuse the whole answer because of it would hide the error.
    code: Annotated[ErrorCode | str, Field(union_mode="left_to_right")] = Field(
        description="The error's stable name; a client must accept names that it does not know."
    )
    message: str = Field(description="For people: the value, the limit and the remedy. It never repeats a text.")
    item: int | None = Field(default=None, description="Index in the request of the pair, item or group at fault.")
    response: int | None = Field(default=None, description="Index in its group of the response at fault.")
    reference: int | None = Field(default=None, description="Index in its item or group of the reference at fault.")
    opponent: int | None = Field(
        default=None, description="Where a comparison failed: index in its group of the response's opponent."
    )
    ids: list[str] | None = Field(
        default=None, description="With `unknown_id`: all ids of the request, or of the item, that are not known."
    )


class ErrorBody(AnswerModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": {"code": "empty_prompt", "message": "pairs[3]: the prompt is empty", "item": 3}}]
        }
    )
    error: ErrorDetail = Field(description="What went wrong.")


class ItemError(AnswerModel):
    """An error in the place of one answer, with `on_error: "report"`."""

    error: ErrorDetail = Field(description="Why this one has no answer.")


class Usage(AnswerModel):
    """What the answer cost."""

    forward_responses: Count = Field(description="Responses that went through the model. [count]")
    forward_tokens: Count = Field(description="Tokens that went through the model. [count]")
    cached_responses: Count = Field(description="Responses whose representation was known already. [count]")
    truncated: Count = Field(description="Conversations whose prompt was cut. [count]")
    not_shown: Count = Field(
        default=0,
        description="Conversations of which the chat template left out words, references included; left out where "
        "there are none. [count]",
    )
    forward_prompts: Count = Field(
        default=0, description="Prompts that went through the model by themselves, for gate scales. [count]"
    )
    judge_calls: Count = Field(default=0, description="Calls to a judge on another server. [count]")
    judge_tokens: Count = Field(default=0, description="Tokens that the judge read and wrote. [count]")
    judge_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="What these tokens cost, where the server knows their prices, in their currency."
    )

    escalated: Count = Field(
        default=0,
        description="Of an ensemble with a margin: pairs of which its first member was not sure, so that the others "
        "were asked. [count]",
    )

    def plus(self, other: "Usage") -> "Usage":
        """Return what two parts of an answer cost together."""
        both = {**self.model_dump(exclude_unset=True), **other.model_dump(exclude_unset=True)}
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in both})


class Rationale(AnswerModel):
    """What a judge said before or with one verdict."""

    text: str = Field(description="Its thoughts and its answer; of a long one the end.")
    shown_first: Literal["first", "second"] = Field(
        description="Which response it was shown first; of single grades, which one it graded."
    )
    criterion: str | None = Field(default=None, description="The criterion that it judged by, where there are several.")


class PairRationales(AnswerModel):
    """What a judge said of one pair of a group."""

    first: Count = Field(description="Index of the response that is called first.")
    second: Count = Field(description="Index of the other; references come behind the responses.")
    rationales: list[Rationale] = Field(description="What was said, in both orders where both were asked.")


class Preference(AnswerModel):
    """How probable it is that the first response is preferred."""

    probability: Probability = Field(description="That the first is preferred to the second, in [0, 1].")
    logit: Finite = Field(description="Log-odds of the same, temperature applied. [nats]")
    first_reward: Finite | None = Field(
        description="Reward of the first; null where the kind has no scalar. [logits, before temperature]"
    )
    second_reward: Finite | None = Field(
        description="Reward of the second; null where the kind has no scalar. [logits, before temperature]",
    )
    spread: Finite | None = Field(
        default=None,
        description="Of an ensemble: standard deviation of its members' log-odds; left out where one member alone was "
        "asked. [nats]",
    )
    abstained: bool = Field(
        default=False,
        description="True where an ensemble abstains: its log-odds are below its `abstain`, so `probability` is that "
        "near to ½, and no verdict; else left out.",
    )
    first_id: str | None = Field(default=None, description=f"Of the first response. {_ID}")
    second_id: str | None = Field(default=None, description=f"Of the second response. {_ID}")
    first_shown: bool = Field(default=True, description=f"Of the first response. {_SHOWN}")
    second_shown: bool = Field(default=True, description=f"Of the second response. {_SHOWN}")
    interval: tuple[Probability, Probability] | None = Field(
        default=None,
        description="Of a judge that votes: the 95 % interval of the probability (Jeffreys), as if its votes were "
        "independent.",
    )
    criteria: dict[str, Probability] | None = Field(
        default=None, description="Of a judge that was given criteria: the probability by each, by name."
    )
    rationales: list[Rationale] | None = Field(default=None, description="What the judge said, if asked for.")


class Reward(AnswerModel):
    """What a model makes of one response."""

    reward: Finite | None = Field(
        description="The reward; null where the kind has no scalar. Of a process model the log-odds of the aggregated "
        "probability, null without an aggregation. [logits, before temperature]"
    )
    attributes: dict[str, Finite] = Field(default={}, description="Predicted ratings by name; empty where none.")
    reference_logit: Finite | None = Field(
        default=None,
        description="Mean log-odds that it is preferred to the item's references, temperature applied: a scalar for "
        "every kind that compares. A field of its own, because `reward` is before temperature. [nats]",
    )
    abstained: Count = Field(
        default=0, description="Of an ensemble: references against which it abstains; left out where none. [count]"
    )
    blocks: list[Finite] | None = Field(
        default=None,
        description="What each 2-block of a general preference vector adds to `reference_logit`, if asked for; a "
        "hybrid's own reward adds the rest. [k]",
    )
    gate_scales: list[Probability] | None = Field(
        default=None,
        description="The gate's weight of each 2-block, or attribute, for this prompt, if asked for; the sum is 1. [k]",
    )
    representation: list[Finite] | None = Field(default=None, description="The d numbers, if asked for. [d]")
    steps: list[Probability] | None = Field(
        default=None, description="Of a process model: how probable it is that each step is right. [steps]"
    )
    truncated_tokens: Count = Field(default=0, description="Tokens that were cut from the prompt. [count]")
    shown: bool = Field(default=True, description=f"Of the response. {_SHOWN}")
    id: str | None = Field(default=None, description=f"Of the response. {_ID}")


_NULL = "Null for a response that could not be scored."


class Tournament(AnswerModel):
    """What follows from the K×K preferences among the responses of one group.

    With `on_error: "report"` a response that cannot be scored does not vote: it is named in `errors`, has null in every
    list of K, is not ranked, and counts nowhere. So does a reference, which the win rates are then not against.
    """

    win_rates: list[Probability | None] = Field(
        description="Mean probability of each response against the group (itself counted as ½), or the references. "
        "Null for a response that could not be scored, and for one that is left alone because all others could not. [K]"
    )
    ranking: list[Count] = Field(description="Indices of the scored responses by win rate, best first. [at most K]")
    condorcet_winner: Count | None = Field(
        description="Index of the response that beats every other one; null if there is none."
    )
    copeland: list[int | None] = Field(description=f"Wins minus losses of each response within the group. {_NULL} [K]")
    cyclic_triples: Count = Field(description="Triples of responses that beat each other in a circle. [count]")
    nash: list[Probability | None] = Field(
        description=f"The maximal lottery: the mixture that no response beats on average. It sums to 1. {_NULL} [K]"
    )
    matrix: list[list[Probability | None]] | None = Field(
        default=None,
        description="Row i, column j: probability that i is preferred to j, if asked for. Row and column are null for "
        "a response that could not be scored. [K][K]",
    )
    signal: list[Finite | None] | None = Field(
        default=None,
        description="The signal that was asked for, shaped if that was asked for too. Null for a response that could "
        "not be scored, and for one that is alone where the signal compares it with its group. [K]",
    )
    errors: list[ErrorDetail] | None = Field(
        default=None,
        description="Why responses and references could not be scored, each with its index in the group: `response` or "
        "`reference`; and comparisons that failed: `response` and `opponent`. Left out where all could.",
    )
    compared: list[tuple[Count, Count]] | None = Field(
        default=None,
        description="Of a model that reads both responses at once: the pairs of responses that it compared, each by "
        "index; all others of `matrix` are inferred from these by `fit`.",
    )
    fit: str | None = Field(
        default=None, description="Where something is inferred: by which fit, `bradley-terry` or `general-preference`."
    )
    abstained: list[tuple[Count, Count]] | None = Field(
        default=None,
        description="Of an ensemble: the pairs on which it abstains, each by index, references behind the responses; "
        "their probabilities count as they are, near to ½. Left out where there are none.",
    )
    rationales: list[PairRationales] | None = Field(
        default=None, description="Of a judge, if asked for: what it said of each pair that it compared."
    )
    criteria: dict[str, list[Probability | None]] | None = Field(
        default=None, description=f"Of a judge that was given criteria: the win rates by each, by name. {_NULL} [K]"
    )
    intervals: list[tuple[Probability, Probability] | None] | None = Field(
        default=None,
        description="Where something is inferred: 95 % intervals of the win rates, as far as inference blurs them. "
        f"Left out where win rates are against references, which are all compared. {_NULL} [K]",
    )
    ids: list[str | None] | None = Field(default=None, description=f"Of each response. {_ID} [K]")
    shown: list[bool] | None = Field(
        default=None, description=f"Of each response. {_SHOWN} Null where all responses are shown. [K]"
    )


class TokensItem(AnswerModel):
    """What exactly the model sees of one conversation."""

    text: str = Field(description="The conversation as rendered by the chat template, after any cut.")
    token_ids: list[Count] = Field(description="The tokens of it. [T]")
    pieces: list[str] | None = Field(
        default=None,
        description="The text of each token alone, if asked for; what is a part of a character is U+FFFD. [T]",
    )
    reads: list[tuple[int, int]] = Field(
        description="Where hidden states are read: each the mean over the positions start … stop−1 of `token_ids`."
    )
    prompt_length: Count = Field(description="Tokens that belong to the prompt. [count]")
    shown: bool = Field(
        default=True,
        description="False where the chat template left out words that were sent, thoughts for example; else left out.",
    )
    truncated_tokens: Count = Field(default=0, description="Tokens that were cut from the prompt. [count]")
    truncated_messages: Count = Field(default=0, description="Whole messages that were cut from the prompt. [count]")


class ModelAnswer(AnswerModel):
    """What every answer says of the model that gave it."""

    model: str = Field(description="Id of the model that answered.")
    identity: str = Field(description="Hash of all that the representations depend on. [64 hex digits]")
    fingerprint: str = Field(description="Hash of identity, numerics, temperature and weights. [hex digits]")
    calibrated: bool = Field(description="Whether the temperature was fitted on held-out preferences.")
    aggregation: str | None = Field(
        default=None, description="What made one reward of a process model's steps: `min`, `prod` or `last`."
    )


class PreferencesAnswer(ModelAnswer):
    """One preference per pair, in the order of the request."""

    preferences: list[Preference | ItemError] = Field(description="In the order of the request.")
    usage: Usage


class RewardsAnswer(ModelAnswer):
    """One reward per item, in the order of the request."""

    rewards: list[Reward | ItemError] = Field(description="In the order of the request.")
    usage: Usage


class TournamentsAnswer(ModelAnswer):
    """One tournament per group, in the order of the request."""

    tournaments: list[Tournament | ItemError] = Field(description="In the order of the request.")
    usage: Usage


class TokensAnswer(ModelAnswer):
    """What the model sees of each item, in the order of the request."""

    tokens: list[TokensItem | ItemError] = Field(description="In the order of the request.")
    usage: Usage


class ModelLimits(AnswerModel):
    """What the server accepts for a model."""

    max_tokens: Count = Field(description="Longest conversation that is read; 0: not known here. [tokens]")
    max_items: Count = Field(description="Pairs, items or groups in one request. [count]")
    max_body_bytes: Count = Field(description="Largest request body. [bytes]")


class DeviceInfo(AnswerModel):
    """One device that runs a model."""

    name: str = Field(description="`cpu`, `cuda:0`, …; of several replicas on one CPU `cpu:0`, `cpu:1`, …")
    serves: bool = Field(description="Whether it gets batches; false while it is set aside.")
    problem: str | None = Field(default=None, description="Why it was set aside, for people.")
    max_batch_tokens: Count = Field(description="Budget of its batches now. [tokens]")


class EnsembleInfo(AnswerModel):
    """What an ensemble is made of, and what it makes of it."""

    members: list[str] = Field(description="Names of the hosted models, in the order in which they are asked. [m]")
    weights: list[Finite] = Field(description="How much each counts. [m]")
    margin: Finite | None = Field(
        description="Log-odds of the first member, up or down, from which nobody else is asked; null: all always are. "
        "[nats]"
    )
    pessimism: Finite = Field(description="How far the mean is moved towards 0. [spreads, or 1 / nats]")
    pessimism_form: str = Field(description="What is made of the pessimism: `spread` or `log-mean-exp`.")
    abstain: Finite | None = Field(
        description="Log-odds, up or down, below which it abstains; null: it never does. [nats]"
    )


class ModelInfo(AnswerModel):
    """One hosted model."""

    id: str = Field(description="The name to use in requests.")
    kind: str = Field(description="`bradley-terry`, `regression`, `helpsteer`, `general-preference`, `hybrid`, …")
    cyclic: bool = Field(default=False, description="Whether its preferences can run in circles, as no reward does.")
    source: str = Field(description="Where it was loaded from: a built-in, a Hugging Face id or a folder.")
    revision: str | None = Field(default=None, description="The revision of a Hugging Face id.")
    identity: str = Field(description="Hash of all that the representations depend on. [64 hex digits]")
    fingerprint: str = Field(description="Hash of identity, numerics, temperature and weights. [hex digits]")
    numerics: dict[str, str] = Field(description="Dtype, kernels and library versions.")
    limits: ModelLimits
    temperature: Finite = Field(description="What logits are divided by.")
    calibrated: bool = Field(description="Whether the temperature was fitted on held-out preferences.")
    attributes: list[str] = Field(description="Names of the ratings it predicts; empty where none. [A]")
    weights: list[Finite] | None = Field(default=None, description="What preferences weigh the attributes by. [A]")
    aggregation: str | None = Field(
        default=None, description="What makes one reward of a process model's steps, unless a request says otherwise."
    )
    dimension: Count | None = Field(description="d, the length of a representation; null for pairwise kinds.")
    domain: str | None = Field(default=None, description="What it was trained to judge.")
    demonstration: bool = Field(description="True for the built-ins: they show how things work, not what is good.")
    engine: str = Field(description="What runs the backbone: `local`, `triton` or `vllm`.")
    batching: str | None = Field(
        default=None, description="How sequences run together: `packed`, or `padded: ` and why they are not packed."
    )
    max_batch_tokens: Count | None = Field(default=None, description="Budget of a batch. [tokens]")
    max_batch_tokens_reason: str | None = Field(default=None, description="Why that budget, for people.")
    devices: list[DeviceInfo] = Field(default=[], description="What runs it; they share one queue.")
    pooling: str = Field(description="Which positions are read: `last` or `mean`.")
    special_tokens: str = Field(
        description="What a special token's text inside a message is: `escape` (text) or `parse`."
    )
    reasoning: str = Field(description="Whether a response's thoughts are scored: `keep` or `strip`.")
    not_shown: list[str] = Field(
        default=[],
        description="What the model does not see of the messages it is sent, in sentences; empty where it sees all.",
    )
    judged_by: list[Literal["principle", "criteria"]] = Field(
        default=[],
        description="What a request may tell it to judge by; empty where it judges by what it learned. One "
        "that takes `criteria` is a judge, and can return its `rationale`.",
    )
    ensemble: EnsembleInfo | None = Field(default=None, description="Of an ensemble: what it is made of.")


class ModelCard(AnswerModel):
    """One hosted model, as OpenAI's clients read it."""

    id: str = Field(description="The name to use in requests.")
    object: Literal["model"] = Field(default="model", description="What this is.")
    created: int = Field(description="When this server was started. [seconds since 1970]")
    owned_by: str = Field(default="paragone", description="Who hosts it.")
    max_model_len: Count = Field(description="Longest conversation. [tokens]")


class ModelsAnswer(AnswerModel):
    """The hosted models, the default one first: in full, and as OpenAI's clients read them."""

    object: Literal["list"] = Field(default="list", description="What this is, for OpenAI's clients.")
    data: list[ModelCard] = Field(default=[], description="The same models, for OpenAI's clients.")
    models: list[ModelInfo] = Field(description="The hosted models, the default one first.")


def error_detail(error: ValidationError) -> ErrorDetail:
    """Return the first complaint as code, message and the index of the item at fault, and of its text if it is in one.

    Args:
        error: what validating a request of ``paragone.wire`` raised.

    Returns:
        The code is ``invalid_json`` for a body that is no JSON, and ``invalid_request`` for the rest, a lone surrogate
        in a text or a name included: its escape is sound UTF-8.
    """
    # Without input and context: both repeat what was sent.
    complaints = error.errors(include_url=False, include_input=False, include_context=False)
    # A misspelt name explains why the right one is missing, so it comes first.
    first = min(complaints, key=lambda complaint: complaint["type"] != "extra_forbidden")
    place = first["loc"]
    item = place[1] if len(place) > 1 and place[0] in _LISTS and isinstance(place[1], int) else None
    texts, text = place[2:4] if item is not None and len(place) > 3 else (None, None)
    message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
    where = _written(place)
    return ErrorDetail(
        code=_CODES.get(first["type"], ErrorCode.INVALID_REQUEST),
        message=f"{where}: {message}" if where else message,
        item=item,
        response=text if texts == "responses" and isinstance(text, int) else None,
        reference=text if texts == "references" and isinstance(text, int) else None,
    )


def _written(place: tuple[int | str, ...]) -> str:
    """Return a place as ``pairs[3].prompt[0].role``; union tags are left out and the sender's own words are cut."""
    written = ""
    # Names that a sender made up are not repeated: they may hold a text, or what breaks a log.
    steps = [step for step in place if not (isinstance(step, str) and step.startswith("<"))]
    for step in steps[:_LONGEST_PLACE]:
        if isinstance(step, int):
            written += f"[{step}]"
        else:
            named = step if step.isascii() and step.isidentifier() and len(step) <= _LONGEST_NAME else "(a name)"
            written += f".{named}" if written else named
    return f"{written}…" if len(steps) > _LONGEST_PLACE else written
