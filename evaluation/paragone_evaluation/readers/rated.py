"""Pairs of rated responses: of every two responses to a prompt, the one with the higher rating is preferred."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from paragone_evaluation.readers.options import ReadOptions
from paragone_evaluation.readers.rows import STRONGEST, DataRow, Label, Pair

__all__ = ["RatedPairs", "main_attribute", "rated_lead"]


def main_attribute(ratings: Mapping[str, object]) -> str | None:
    """Return the attribute that stands for the whole of a response: helpfulness, otherwise the first one."""
    # The order of columns is whoever wrote the file's, so the name comes first.
    return "helpfulness" if "helpfulness" in ratings else next(iter(ratings), None)


def rated_lead(first: float, second: float, gap: float) -> float:
    """Return by how much the first rating leads the second, 0 where they are no further apart than the gap."""
    lead = first - second
    return 0.0 if abs(lead) <= gap else lead


@dataclass
class _Responses:
    """The rated responses to one prompt.

    Attributes:
        row: the first row of the prompt.
        ratings: of each response, as often as it was rated.
    """

    row: DataRow
    path: str
    ratings: dict[str, list[float]] = field(default_factory=dict)


class RatedPairs:
    """Gathers the rated responses to each prompt, wherever they stand, and makes pairs of them.

    Args:
        options: with the attribute, the main one of the first row if None, and the gap.

    Attributes:
        attribute: what the responses are compared by; None before the first row.
    """

    def __init__(self, options: ReadOptions) -> None:
        self.attribute: str | None = None
        self._asked, self._gap = options.attribute, options.gap
        self._prompts: dict[tuple[str, str | None], _Responses] = {}

    def add(self, row: DataRow, path: str) -> str:
        """Add a row's responses, and return why some of them are of no use, an empty text if none is."""
        if self.attribute is None:
            self.attribute = self._asked or main_attribute(row.ratings[0])
        # Responses of two splits are no pair: one of them is there to measure what the other one taught.
        key = (json.dumps([row.prompt, row.tools], ensure_ascii=False, default=str), row.split)
        unused = ""
        for rating, ratings in zip(row.rated(path), row.given_ratings, strict=True):
            if self.attribute not in ratings:
                unused = f"there is no rating of {self.attribute!r}; the row rates {', '.join(ratings) or 'nothing'}"
                continue
            prompt = self._prompts.setdefault(key, _Responses(row, path))
            prompt.ratings.setdefault(rating.response, []).append(ratings[self.attribute])
        return unused

    def pairs(self) -> list[Pair]:
        """Return every two responses of a prompt; ties have strength 0, others the ratings' difference, at most 3."""
        return list(itertools.chain.from_iterable(map(self._pairs_of, self._prompts.values())))

    def alone(self) -> list[tuple[str, int, str]]:
        """Return file, line and reason of each prompt that has one response only, and therefore no pair."""
        return [
            (prompt.path, prompt.row.line, f"its prompt has one response with a {self.attribute}, and a pair needs two")
            for prompt in self._prompts.values()
            if len(prompt.ratings) == 1
        ]

    def _pairs_of(self, prompt: _Responses) -> Sequence[Pair]:
        texts = list(prompt.ratings)
        means = [sum(values) / len(values) for values in prompt.ratings.values()]
        labels = tuple(self._labels(means))
        # The row's own responses may be one of several: all that were rated for its prompt take their place.
        return replace(prompt.row, responses=tuple(texts), labels=labels).pairs(prompt.path)

    def _labels(self, means: Sequence[float]) -> Iterable[Label]:
        for first, second in itertools.combinations(range(len(means)), 2):
            lead = rated_lead(means[first], means[second], self._gap)
            yield Label(first, second, max(-STRONGEST, min(lead, STRONGEST)))
