"""Who gives one number for each text of a dialect's request: a model with a scalar, or one that compares.

A model without a scalar answers by what ``[dialects] scalar`` names: its mean log-odds against the other responses to
the prompt in the request, or against those that a reference set has for it. Whether it has representations or reads
both responses at once, the rules are the same. n is the number of texts, A of attributes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import Response
from paragone_models.comparator import probability
from paragone_service.cache.keys import prompt_digest
from paragone_service.dialects.settings import BY_REFERENCES
from paragone_service.http.bodies import MAX_ITEMS
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.source import Duel, PairSource, check_unchanged
from paragone_service.references.owners import TextOwner, VectorOwner, Vectors
from paragone_service.references.sets import Owner, References, ReferenceSets, Stored
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Represented, RequestItem

__all__ = ["Instead", "PairRater", "Rater", "Scalars", "VectorRater"]

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Scalars:
    """One number for each text of a request.

    Attributes:
        values: rewards, or log-odds against what the setting ``scalar`` names; NaN of a model that only rates. [n]
        tokens: that the model read of all texts together, now or when they were cached; of one that reads both
            responses at once those that this request caused.
        attributes: what the model rates, in its order. [n, A]
        truncated: which texts were cut; where nobody knows which, all of them if any was. [n]
        cut: how many.
    """

    values: Float64s
    tokens: int
    attributes: Float64s
    truncated: NDArray[np.bool_]
    cut: int

    @property
    def raw(self) -> list[float]:
        """The values as they are."""
        floats: list[float] = self.values.tolist()
        return floats

    @property
    def activated(self) -> list[float]:
        """Their sigmoids, in [0, 1]."""
        floats: list[float] = probability(self.values).tolist()
        return floats


@dataclass(frozen=True)
class Instead:
    """What takes the place of a scalar that a model does not have.

    Attributes:
        setting: ``[dialects] scalar``.
        sets: where reference sets are found.
    """

    setting: str | None
    sets: ReferenceSets

    async def stored(
        self, owner: Owner[References], lacking: str, items: Sequence[RequestItem], call: Call
    ) -> Mapping[int, Stored[References]] | None:
        """Return the stored references of each item, None if the setting names no set.

        Args:
            lacking: what is to be said of the model.

        Raises:
            ServiceError: ``reference_required`` for a rendered text, whose prompt nobody knows; else as
                ``ReferenceSets.by_prompt``.
        """
        if self.setting is None or not self.setting.startswith(BY_REFERENCES):
            return None
        places = [(item.index, _prompt(item, lacking)) for item in items]
        name = self.setting.removeprefix(BY_REFERENCES)
        return await self.sets.by_prompt(owner, call.tenant, name, places, call.problems)

    def groups(self, lacking: str, items: Sequence[RequestItem]) -> list[list[int]]:
        """Return the places of the responses to each prompt.

        Raises:
            ServiceError: ``reference_required`` if that is not how a model without a scalar shall answer, or a response
                stands alone.
        """
        if self.setting != "group":
            raise ServiceError(
                ErrorCode.REFERENCE_REQUIRED,
                f'{lacking}; set [dialects] scalar = "group" to have responses to one prompt held against each other, '
                'or "references:NAME" to have them held against a stored reference set, '
                "ask a model with a reward, or ask /v1/tournaments",
            )
        groups: dict[bytes, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(_prompt(item, lacking), []).append(place)
        if any(len(group) < 2 for group in groups.values()):
            raise ServiceError(
                ErrorCode.REFERENCE_REQUIRED,
                f"{lacking} with other responses to the same prompt, and one stands alone in this request: send them "
                "together",
            )
        return list(groups.values())


def _prompt(item: RequestItem, lacking: str) -> bytes:
    if item.prompt is None:
        raise ServiceError(
            ErrorCode.REFERENCE_REQUIRED, f"{lacking} responses to one prompt, and a rendered text has none"
        )
    return prompt_digest(item.prompt, item.tools)


class Rater(Protocol):
    """A hosted model, as dialects ask it.

    Attributes:
        name: what it is called.
        attributes: what it rates, by name.
    """

    name: str
    attributes: Sequence[str]

    async def scalars(self, items: list[RequestItem], call: Call, instead: Instead, *, ratings: bool) -> Scalars:
        """Return one number for each item, each of which has one response.

        Args:
            items: emptied on the way.
            ratings: whether a model that rates attributes and has no scalar answers by these.

        Raises:
            ServiceError: for the first item without a number; ``reference_required``, ``preferences_unavailable``.
        """


class VectorRater:
    """A model that represents single texts."""

    def __init__(self, model: HostedModel) -> None:
        self.name = model.name
        self.attributes: Sequence[str] = model.model.comparator.attributes
        self._model = model

    async def scalars(self, items: list[RequestItem], call: Call, instead: Instead, *, ratings: bool) -> Scalars:
        """Return one number for each item, as the contract says."""
        model, comparator = self._model, self._model.model.comparator
        stored: Mapping[int, Stored[Vectors]] | None = None
        groups = None
        if not comparator.gives_rewards and not (ratings and self.attributes):
            model.check_preferences()
            lacking = f"model {model.name} is of kind {model.model.kind} and has no scalar: it compares"
            stored = await instead.stored(VectorOwner(model), lacking, items, call)
            groups = None if stored is not None else instead.groups(lacking, items)
        represented = await model.represent(items, call)
        with np.errstate(all="ignore"):  # what is not finite is found below
            attributes = comparator.attribute_values(represented.vectors)
            values = comparator.rewards(represented.vectors)
            if groups is not None:
                values = _against_the_others(represented, groups, model)
            if stored is not None:
                values = _against_stored(represented, stored, model)
        numbers = attributes if values is None else np.column_stack([values, attributes])
        for item in np.flatnonzero(~np.isfinite(numbers).all(axis=1)).tolist():
            problem = "the model's numbers are too large to compare"
            call.problems.add(item, ServiceError(ErrorCode.NON_FINITE_SCORE, problem))
        if values is None:
            values = np.full(len(attributes), np.nan)
        tokens = 0 if represented.tokens is None else int(represented.tokens.sum())
        return Scalars(values, tokens, attributes, represented.dropped > 0, represented.usage.truncated)


def _against_the_others(represented: Represented, groups: Sequence[Sequence[int]], model: HostedModel) -> Float64s:
    values = np.zeros(len(represented.vectors))
    for group in groups:
        vectors = represented.vectors[list(group)].astype(np.float64)
        # As in ``mean_logit``, for all at once: thousands of documents would hold up everybody else.
        others = (vectors.sum(axis=0) - vectors) / (len(group) - 1)
        values[list(group)] = model.model.comparator.logit(vectors, others)
    return values


def _against_stored(represented: Represented, stored: Mapping[int, Stored[Vectors]], model: HostedModel) -> Float64s:
    comparator = model.model.comparator
    return np.array(
        [
            float(comparator.mean_logit(vector[None], stored[item].references)[0])
            for item, vector in zip(represented.items, represented.vectors, strict=True)
        ]
    )


class PairRater:
    """A model that reads both responses at once: a number is the mean of as many comparisons."""

    attributes: Sequence[str] = ()

    def __init__(self, source: PairSource) -> None:
        self.name = source.name
        self._source = source

    async def scalars(
        self,
        items: list[RequestItem],
        call: Call,
        instead: Instead,
        *,
        ratings: bool,  # noqa: ARG002 (it rates nothing)
    ) -> Scalars:
        """Return one number for each item, as the contract says."""
        source, count = self._source, len(items)
        lacking = f"model {source.name} has no scalar: it compares"
        stored = await instead.stored(TextOwner(source), lacking, items, call)
        if stored is None:
            groups = instead.groups(lacking, items)
            self._check_number(sum(len(group) * (len(group) - 1) // 2 for group in groups), count)
            duels, sides = _held_against_the_others(items, groups)
        else:
            self._check_number(sum(len(stored[item.index].references) for item in items), count)
            duels, sides = _held_against_stored(items, stored)
        items.clear()  # they may wait for long, and the duels have their texts
        header = source.header
        compared = await source.compare(duels, call)
        check_unchanged(header, source)
        for number, error in sorted(compared.errors.items()):
            call.problems.add(duels[number].item, error)
        usage = compared.usage
        values = _means(compared.logits, sides, count)
        cut = np.full(count, usage.truncated > 0)
        tokens = usage.forward_tokens + usage.judge_tokens
        return Scalars(values, tokens, np.empty((count, 0)), cut, count if usage.truncated else 0)

    def _check_number(self, comparisons: int, texts: int) -> None:
        if comparisons > MAX_ITEMS:
            raise ServiceError(
                ErrorCode.TOO_MANY_ITEMS,
                f"model {self.name} would have to make {comparisons} comparisons for {texts} texts; the limit is "
                f"{MAX_ITEMS}: send fewer texts at a time",
            )


Sides = tuple[list[int], list[int | None]]
"""Of each duel: the place of its first text, and that of its second if it is one of the request."""


def _held_against_the_others(items: Sequence[RequestItem], groups: Sequence[Sequence[int]]) -> tuple[list[Duel], Sides]:
    duels: list[Duel] = []
    firsts: list[int] = []
    seconds: list[int | None] = []
    for group in groups:
        for at, first in enumerate(group):
            for second in group[at + 1 :]:
                duels.append(_duel(items[first], _response(items[second])))
                firsts.append(first)
                seconds.append(second)
    return duels, (firsts, seconds)


def _held_against_stored(
    items: Sequence[RequestItem], stored: Mapping[int, Stored[list[Response]]]
) -> tuple[list[Duel], Sides]:
    duels: list[Duel] = []
    firsts: list[int] = []
    for place, item in enumerate(items):
        for reference in stored[item.index].references:
            duels.append(_duel(item, reference))
            firsts.append(place)
    return duels, (firsts, [None] * len(firsts))


def _duel(item: RequestItem, other: Response) -> Duel:
    assert item.prompt is not None  # whoever has none was refused
    return Duel(item.index, item.prompt, item.tools, _response(item), other)


def _response(item: RequestItem) -> Any:
    return item.responses[0]


def _means(logits: Float64s, sides: Sides, count: int) -> Float64s:
    sums, met = np.zeros(count), np.zeros(count)
    for logit, first, second in zip(logits.tolist(), *sides, strict=True):
        sums[first] += logit
        met[first] += 1
        if second is not None:
            sums[second] -= logit
            met[second] += 1
    return sums / met
