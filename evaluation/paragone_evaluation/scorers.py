"""The questions that a model is asked, its answers, and the scorer that asks a running service.

``local_model`` has the scorer of a model in this process; nothing here needs torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from paragone import Client, ItemError
from paragone.wire import Pair
from paragone_evaluation.dataset import Message, PromptText, ResponseText
from paragone_evaluation.errors import EvaluationError
from paragone_models.kinds import KINDS, Kind

__all__ = [
    "ModelCard",
    "PairAnswer",
    "PairQuestion",
    "RatingAnswer",
    "Refusal",
    "ResponseQuestion",
    "Scorer",
    "ServiceScorer",
]

# By any name: a server may be newer than this package and host a kind of which only pairs can be asked.
_KINDS: Mapping[str, Kind] = {str(name): kind for name, kind in KINDS.items()}

_INFO_FIELDS = (
    "source", "identity", "fingerprint", "temperature", "calibrated", "revision", "numerics", "domain", "demonstration"
)  # fmt: skip
"""Fields that the wire and the card call by the same names."""


@dataclass(frozen=True, slots=True)
class ResponseQuestion:
    """A prompt, the tools on offer, and one response."""

    prompt: PromptText
    tools: tuple[Message, ...] | None
    response: ResponseText


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """A prompt, the tools on offer, and two responses; the first one's win is measured."""

    prompt: PromptText
    tools: tuple[Message, ...] | None
    first: ResponseText
    second: ResponseText


@dataclass(frozen=True, slots=True)
class RatingAnswer:
    """The answer about one response: the reward before the temperature, None where a model only rates attributes."""

    reward: float | None
    attributes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PairAnswer:
    """The answer about two responses: log-odds that the first is preferred, temperature applied."""

    logit: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a model does not answer about an item: a stable code, and a message for people."""

    code: str
    message: str


@dataclass(frozen=True)
class ModelCard:
    """The model that is evaluated.

    Attributes:
        where: URL of the service, or ``this process``.
        identity, fingerprint: of the model, and of its answers.
        scalar: whether the logit is a difference of rewards, so that responses can be rated one by one.
        pairwise: whether both responses are read at once, so that their order may matter.
        compares: whether it has preferences; a regression model without weights has ratings alone.
        numerics: dtype, kernels, versions.
        domain: what the model was trained on.
        ensemble: what an ensemble is made of, as ``/v1/models`` says.
    """

    name: str
    kind: str
    source: str
    where: str
    identity: str
    fingerprint: str
    temperature: float
    calibrated: bool
    attributes: tuple[str, ...]
    scalar: bool
    pairwise: bool
    compares: bool = True
    revision: str | None = None
    numerics: Mapping[str, str] = field(default_factory=dict)
    domain: str | None = None
    demonstration: bool = False
    ensemble: Mapping[str, Any] | None = None

    @classmethod
    def of_kind(cls, kind: str, weights: Sequence[float] | None, **fields: Any) -> Self:
        """Return the card of a model, with what its kind says about the questions that it answers."""
        # Of a kind that nobody here knows, only pairs are asked: every kind answers those.
        known = _KINDS.get(kind)
        scalar = known is not None and not known.has_vector and not known.reads_pairs
        compares = known is None or known.learns_pairs or weights is not None
        return cls(kind=kind, scalar=scalar, compares=compares, **fields)


class Scorer(Protocol):
    """Answers questions about responses. A failure that is not about one item is raised; none becomes a number.

    Both methods raise ``ParagoneError`` or ``ModelError`` if there is no answer at all, and ``EvaluationError`` if the
    answers are no use: of another model than the one that was asked first, or not finite.
    """

    card: ModelCard
    questions_per_call: int
    """How many questions are best asked at once."""

    def rate(self, items: Sequence[ResponseQuestion]) -> list[RatingAnswer | Refusal]:
        """Return a reward for each response, or why there is none. Only where ``card.scalar``."""

    def compare(self, pairs: Sequence[PairQuestion]) -> list[PairAnswer | Refusal]:
        """Return the log-odds of each pair, or why there are none."""


class ServiceScorer:
    """Asks a running service through the client.

    Args:
        url: address of the service, for the report.
        model: id of the hosted model; the default one if None.

    Attributes:
        judge_calls: to judges on other servers, which its questions have caused.

    Raises:
        ParagoneError: if the service cannot be reached or hosts no such model.
    """

    # The client cuts a call into requests and keeps several under way. An interruption loses one call at most.
    questions_per_call = 2000

    def __init__(self, client: Client, *, url: str, model: str | None = None) -> None:
        self._client = client
        self.judge_calls = 0
        info = client.models()[0] if model is None else client.model(model)
        self.card = ModelCard.of_kind(
            info.kind,
            info.weights,
            name=info.id,
            where=url,
            attributes=tuple(info.attributes),
            pairwise=info.dimension is None,  # it has no vector of one response alone
            ensemble=None if info.ensemble is None else info.ensemble.model_dump(),
            **{name: getattr(info, name) for name in _INFO_FIELDS},
        )

    def members(self) -> list["ServiceScorer"]:
        """Return what asks each member of an ensemble, in their order.

        Raises:
            EvaluationError: if the model is no ensemble.
        """
        if self.card.ensemble is None:
            raise EvaluationError(
                f"{self.card.name} is of kind {self.card.kind}, and only an ensemble has members to route between: "
                f"host one as --model NAME=ensemble:{self.card.name}+OTHER"
            )
        return [ServiceScorer(self._client, url=self.card.where, model=name) for name in self.card.ensemble["members"]]

    def rate(self, items: Sequence[ResponseQuestion]) -> list[RatingAnswer | Refusal]:
        """Return a reward for each response, or why there is none."""
        batch: list[dict[str, Any]] = [
            {"prompt": item.prompt, "response": _plain(item.response), **_tools(item.tools)} for item in items
        ]
        # "report": one response that is too long must not cost the answers about all others.
        answer = self._client.rewards(batch, model=self.card.name, on_error="report")
        self._check(answer.fingerprint)
        ratings: list[RatingAnswer | Refusal] = []
        for row in answer.rewards:
            if isinstance(row, ItemError):
                ratings.append(_refusal(row))
            elif row.reward is None and self.card.compares:
                # The kind promised rewards: a missing one is a fault, and would be NaN in every measure.
                raise EvaluationError(f"{self.card.name} is of kind {self.card.kind} and answered without a reward")
            else:
                ratings.append(RatingAnswer(row.reward, row.attributes))
        return ratings

    def compare(self, pairs: Sequence[PairQuestion]) -> list[PairAnswer | Refusal]:
        """Return the log-odds of each pair, or why there are none."""
        batch: list[dict[str, Any] | Pair] = [
            {"prompt": pair.prompt, "first": _plain(pair.first), "second": _plain(pair.second), **_tools(pair.tools)}
            for pair in pairs
        ]
        answer = self._client.preferences(batch, model=self.card.name, on_error="report")
        self._check(answer.fingerprint)
        self.judge_calls += answer.usage.judge_calls
        return [_refusal(row) if isinstance(row, ItemError) else PairAnswer(row.logit) for row in answer.preferences]

    def _check(self, fingerprint: str) -> None:
        # A server may be restarted with another model under the same id in the middle of a run.
        if fingerprint != self.card.fingerprint:
            raise EvaluationError(
                f"{self.card.where} now answers with another model or other settings than when the evaluation began "
                f"(fingerprint {fingerprint[:12]}… instead of {self.card.fingerprint[:12]}…): start again in another "
                "folder"
            )


def _refusal(row: ItemError) -> Refusal:
    return Refusal(str(row.error.code), row.error.message)


def _plain(response: ResponseText) -> Any:
    if isinstance(response, str):
        return response
    return dict(response) if isinstance(response, Mapping) else list(response)


def _tools(tools: tuple[Message, ...] | None) -> dict[str, Any]:
    return {"tools": list(tools)} if tools else {}
