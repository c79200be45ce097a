"""Heads that are fitted by a running server: pairs that somebody judged in, a hosted model and its agreement out."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from paragone.wire.answers import AnswerModel, Count, Finite, ModelInfo, Probability, Usage
from paragone.wire.conversations import Prompt, RequestModel, Response, Text
from paragone.wire.requests import Truncation

__all__ = ["HeadAgreement", "HeadAnswer", "HeadDifference", "HeadPair", "HeadRequest", "HeadShare"]

_MOST_PAIRS = 10_000


class HeadPair(RequestModel):
    """Two responses to a prompt, and which of them somebody preferred."""

    prompt: Prompt = Field(description="What was asked: a text (one user message) or a list of messages.")
    first: Response = Field(description="A text, a message, or a list of messages.")
    second: Response = Field(description="The other one.")
    strength: Annotated[float, Field(ge=-3, le=3, allow_inf_nan=False)] = Field(
        description="Positive where the first was preferred, negative where the second was, 0 for a tie."
    )
    weight: Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False)] = Field(
        default=1.0, description="How much the pair counts in the fit."
    )


class HeadRequest(RequestModel):
    """Fit a head to pairs, on the frozen backbone of a hosted model, and host it beside that model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mini-general-preference",
                    "name": "mine",
                    "pairs": [
                        {"prompt": "Is sport fun?", "first": "Yes, with others.", "second": "Yes.", "strength": 1},
                        {"prompt": "Why read?", "first": "idk", "second": "To see far places.", "strength": -1},
                        {"prompt": "Why walk?", "first": "It clears the head.", "second": "Why not", "strength": 1},
                    ],
                }
            ]
        }
    )
    model: Text | None = Field(default=None, description="Id of a hosted model; omitted: the server's default model.")
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = Field(
        description="What the new model is called; none may be called so yet."
    )
    pairs: list[HeadPair] = Field(min_length=1, description="What people said.")
    held_out: Annotated[list[HeadPair], Field(max_length=_MOST_PAIRS)] | None = Field(
        default=None,
        description="Pairs of other prompts to compare both models on; omitted: a share of `pairs`.",
    )
    held_out_share: Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)] = Field(
        default=0.25, description="Share of the prompts of `pairs` that is kept back, without `held_out`."
    )
    kind: Literal["bradley-terry", "general-preference"] = Field(
        default="bradley-terry",
        description="What the head is: one reward, or a vector whose preferences may run in circles.",
    )
    dimension: Annotated[int, Field(ge=2, le=64, multiple_of=2)] | None = Field(
        default=None, description="Numbers of the vector of a `general-preference` head; omitted: 4."
    )
    truncation: Truncation = Field(
        default="prompt",
        description="What happens to a conversation over the model's limit: `prompt` cuts its prompt from the left, "
        "`error` refuses it.",
    )


class HeadShare(AnswerModel):
    """How often a model prefers the response that people preferred."""

    share: Probability = Field(description="Of the decided pairs.")
    low: Probability = Field(description="Lower end of its 95 % interval (Wilson), pairs taken as independent.")
    high: Probability = Field(description="Upper end.")


class HeadDifference(AnswerModel):
    """The new share minus the old one."""

    value: Finite = Field(description="The difference.")
    low: Finite = Field(description="Lower end of its 95 % interval (Newcombe, paired), pairs taken as independent.")
    high: Finite = Field(description="Upper end.")


class HeadAgreement(AnswerModel):
    """Both models on pairs that neither was fitted to, as the server answers them."""

    pairs: Count = Field(description="Decided pairs that were kept back. [count]")
    prompts: Count = Field(description="Their distinct prompts. [count]")
    new: HeadShare = Field(description="Of the fitted head.")
    old: HeadShare | None = Field(description="Of the model that it was fitted on; null where that cannot compare.")
    difference: HeadDifference | None = Field(description="New minus old; null where the old one cannot compare.")
    only_new: Count | None = Field(description="Pairs on which the new one alone agrees with people. [count]")
    only_old: Count | None = Field(description="Pairs on which the old one alone does. [count]")


class HeadAnswer(AnswerModel):
    """A fitted head, which is hosted from now on."""

    model: ModelInfo = Field(description="What is hosted.")
    base: str = Field(description="Id of the model whose backbone it reads.")
    folder: str = Field(description="Where it was saved, on the server.")
    temporary: bool = Field(description="Whether it is gone when the server ends, for want of `models_dir`.")
    pairs: Count = Field(description="Pairs that it was fitted to. [count]")
    prompts: Count = Field(description="Their distinct prompts. [count]")
    penalties: dict[str, Finite] = Field(description="Chosen by cross-validation over prompts, by part of the head.")
    agreement: HeadAgreement = Field(description="New and old on pairs kept back.")
    usage: Usage = Field(description="What it cost.")
