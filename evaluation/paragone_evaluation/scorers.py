"""Asking a model: one small protocol, and its two implementations, a service's URL and a model in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from paragone import Client, ItemError
from paragone.wire import Pair
from paragone_evaluation.dataset import Message, PromptText, ResponseText
from paragone_evaluation.errors import EvaluationError
from paragone_models import PreferenceModel
from paragone_models.errors import PreferencesUnavailableError, TextError
from paragone_models.text.reader import conversation

__all__ = ["Comparison", "Item", "LocalScorer", "ModelCard", "PairItem", "Rating", "Refusal", "Scorer", "ServiceScorer"]

SCALAR_KINDS = ("bradley-terry", "regression", "helpsteer")
"""Kinds whose logit is the difference of two rewards, divided by the temperature."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, the tools on offer, and one response."""

    prompt: PromptText
    tools: tuple[Message, ...] | None
    response: ResponseText


@dataclass(frozen=True, slots=True)
class PairItem:
    """A prompt, the tools on offer, and two responses; the first one's win is measured."""

    prompt: PromptText
    tools: tuple[Message, ...] | None
    first: ResponseText
    second: ResponseText


@dataclass(frozen=True, slots=True)
class Rating:
    """What a model makes of one response.

    Attributes:
        reward: before the temperature; None from a model that rates attributes alone.
        attributes: predicted ratings by name.
    """

    reward: float | None
    attributes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a model makes of two responses.

    Attributes:
        logit: log-odds that the first is preferred, temperature applied.
    """

    logit: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model has no answer to one item.

    Attributes:
        code: stable name, as ``response_too_long``.
        message: for people.
    """

    code: str
    message: str


@dataclass(frozen=True)
class ModelCard:
    """Which model is evaluated.

    Attributes:
        name: short name.
        kind: the family.
        source: where it was loaded from.
        where: URL of the service, or ``this process``.
        identity: of the model, 64 hexadecimal digits.
        fingerprint: of the model's answers.
        temperature: what logits are divided by.
        calibrated: whether the temperature was fitted.
        attributes: names of predicted ratings.
        scalar: whether the logit is a difference of rewards, so that responses can be rated one by one.
        pairwise: whether both responses are read at once, so that their order may matter.
        compares: whether it has preferences; a regression model without weights has ratings alone.
        revision: of the source.
        numerics: dtype, kernels, versions.
        domain: what the model knows.
        demonstration: True for models that show how things work.
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


class Scorer(Protocol):
    """Answers questions about responses. A failure that is not about one item is raised; none becomes a number."""

    card: ModelCard
    chunk: int
    """Questions that are best asked at once."""

    def rate(self, items: Sequence[Item]) -> list[Rating | Refusal]:
        """Return a reward for each response, or why there is none. Only where ``card.scalar``."""

    def compare(self, pairs: Sequence[PairItem]) -> list[Comparison | Refusal]:
        """Return the log-odds of each pair, or why there are none."""


class ServiceScorer:
    """Asks a running service through the client.

    Args:
        client: of the service.
        url: its address, for the report.
        model: id of the hosted model; the default one if None.

    Raises:
        ParagoneError: if the service cannot be reached or hosts no such model.
    """

    chunk = 2000

    def __init__(self, client: Client, *, url: str, model: str | None = None) -> None:
        self._client = client
        info = client.models()[0] if model is None else client.model(model)
        self.card = ModelCard(
            name=info.id,
            kind=info.kind,
            source=info.source,
            where=url,
            identity=info.identity,
            fingerprint=info.fingerprint,
            temperature=info.temperature,
            calibrated=info.calibrated,
            attributes=tuple(info.attributes),
            scalar=info.kind in SCALAR_KINDS,
            pairwise=info.dimension is None,
            compares=info.kind != "regression" or info.weights is not None,
            revision=info.revision,
            numerics=info.numerics,
            domain=info.domain,
            demonstration=info.demonstration,
        )

    def rate(self, items: Sequence[Item]) -> list[Rating | Refusal]:
        """Return a reward for each response, or why there is none.

        Raises:
            ParagoneError: if there is no answer at all.
            EvaluationError: if another model answered than the one that was asked about first.
        """
        batch: list[dict[str, Any]] = [
            {"prompt": item.prompt, "response": _plain(item.response), **_tools(item.tools)} for item in items
        ]
        answer = self._client.rewards(batch, model=self.card.name, on_error="report")
        self._check(answer.fingerprint)
        rows: list[Rating | Refusal] = []
        for row in answer.rewards:
            if isinstance(row, ItemError):
                rows.append(Refusal(str(row.error.code), row.error.message))
            elif row.reward is None and self.card.compares:
                raise EvaluationError(f"{self.card.name} is of kind {self.card.kind} and answered without a reward")
            else:
                rows.append(Rating(row.reward, row.attributes))
        return rows

    def compare(self, pairs: Sequence[PairItem]) -> list[Comparison | Refusal]:
        """Return the log-odds of each pair, or why there are none.

        Raises:
            ParagoneError: if there is no answer at all.
            EvaluationError: if another model answered than the one that was asked about first.
        """
        batch: list[dict[str, Any] | Pair] = [
            {
                "prompt": pair.prompt,
                "first": _plain(pair.first),
                "second": _plain(pair.second),
                **_tools(pair.tools),
            }
            for pair in pairs
        ]
        answer = self._client.preferences(batch, model=self.card.name, on_error="report")
        self._check(answer.fingerprint)
        return [
            Refusal(str(row.error.code), row.error.message) if isinstance(row, ItemError) else Comparison(row.logit)
            for row in answer.preferences
        ]

    def _check(self, fingerprint: str) -> None:
        if fingerprint != self.card.fingerprint:
            raise EvaluationError(
                f"{self.card.where} now answers with another model or other settings than when the evaluation began "
                f"(fingerprint {fingerprint[:12]}… instead of {self.card.fingerprint[:12]}…): start again in another "
                "folder"
            )


class LocalScorer:
    """Asks a model in this process; every response goes through it once.

    Args:
        model: from ``paragone_models.load_model``.

    Raises:
        EvaluationError: if the model has no tokenizer.
    """

    chunk = 256

    def __init__(self, model: PreferenceModel) -> None:
        if model.reader is None:
            raise EvaluationError(f"{model.source} has no tokenizer files: it cannot read the texts of an evaluation")
        self.model = model
        self._known: dict[tuple[str, str], np.ndarray[Any, np.dtype[np.float32]] | Refusal] = {}
        self.card = ModelCard(
            name=model.name,
            kind=model.kind,
            source=model.source,
            where="this process",
            identity=model.identity,
            fingerprint=model.fingerprint,
            temperature=model.spec.temperature,
            calibrated=model.calibrated,
            attributes=model.spec.attributes,
            scalar=model.kind in SCALAR_KINDS,
            pairwise=False,
            compares=model.kind != "regression" or model.spec.weights is not None,
            revision=model.revision,
            numerics=model.numerics,
            domain=model.domain,
            demonstration=model.demonstration,
        )

    def rate(self, items: Sequence[Item]) -> list[Rating | Refusal]:
        """Return a reward for each response, or why there is none.

        Raises:
            ModelError: if a representation is not finite.
        """
        found = self._represent(items)
        rows: list[Rating | Refusal] = []
        for one in found:
            if isinstance(one, Refusal):
                rows.append(one)
                continue
            rewards = self.model.comparator.rewards(one[None])
            if rewards is None and self.card.compares:
                raise PreferencesUnavailableError(f"a {self.card.kind} model has no rewards: compare instead")
            values = self.model.comparator.attribute_values(one)
            reward = None if rewards is None else float(rewards[0])
            rows.append(Rating(reward, dict(zip(self.card.attributes, map(float, values), strict=True))))
        return rows

    def compare(self, pairs: Sequence[PairItem]) -> list[Comparison | Refusal]:
        """Return the log-odds of each pair, or why there are none.

        Raises:
            ModelError: if a representation is not finite.
        """
        sides = [Item(pair.prompt, pair.tools, response) for pair in pairs for response in (pair.first, pair.second)]
        found = self._represent(sides)
        rows: list[Comparison | Refusal] = []
        for first, second in zip(found[::2], found[1::2], strict=True):
            if isinstance(first, Refusal) or isinstance(second, Refusal):
                rows.append(first if isinstance(first, Refusal) else second)  # type: ignore[arg-type]
            else:
                rows.append(Comparison(float(self.model.comparator.logit(first, second))))
        return rows

    def _represent(self, items: Sequence[Item]) -> list[np.ndarray[Any, np.dtype[np.float32]] | Refusal]:
        keys = [(repr((item.prompt, item.tools)), repr(item.response)) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        if new:
            assert self.model.reader is not None
            readings = self.model.reader.read(
                [conversation(item.prompt, item.response, item.tools) for item in new.values()]
            )
            good = []
            for key, reading in zip(new, readings, strict=True):
                if isinstance(reading, TextError):
                    self._known[key] = Refusal(reading.code, reading.message)
                else:
                    good.append((key, reading.item))
            if good:
                hidden = self.model.encode([item for _, item in good])
                values = self.model.represent(hidden).cpu().numpy()
                if not np.isfinite(values).all():
                    raise EvaluationError(
                        f"{self.card.source} computed NaN or infinity: check the weights and the dtype"
                    )
                self._known.update({key: row for (key, _), row in zip(good, values, strict=True)})
        return [self._known[key] for key in keys]


def _plain(response: ResponseText) -> Any:
    return (
        response if isinstance(response, str) else dict(response) if isinstance(response, Mapping) else list(response)
    )


def _tools(tools: tuple[Message, ...] | None) -> dict[str, Any]:
    return {"tools": list(tools)} if tools else {}
