"""Which number of a response is its reward, for hosts that hold a whole group at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paragone.adapters.groups import tell
from paragone.exceptions import AnswerError
from paragone.wire import CohortAnswer, ItemError, Shaping, Signal, Tournament, TournamentsAnswer

__all__ = ["GroupSignal"]


@dataclass(frozen=True, slots=True)
class GroupSignal:
    """A signal of the wire, and what it gains or loses by length and style."""

    name: Signal = "win_rate"
    shaping: Shaping | Mapping[str, float] | None = None

    @property
    def is_scalar(self) -> bool:
        """Whether it is the model's own number for a response, of which no group is asked."""
        return self.name == "reward" and self.shaping is None

    @property
    def needs_rivals(self) -> bool:
        """Whether the number depends on the other responses to the prompt."""
        return self.name not in ("reward", "anchor") or self.shaping is not None

    def options(self) -> dict[str, Any]:
        """Return what a tournament or a cohort is asked besides its group."""
        # A win rate is in every tournament: servers from before the signals have it too.
        plain = self.name == "win_rate" and self.shaping is None
        return {} if plain else {"signal": self.name, "shaping": self.shaping}

    def values(self, row: Tournament) -> Sequence[float | None]:
        """Return the numbers of a group, [K], None for a response without one."""
        if not self.options():
            return row.win_rates
        if row.signal is None:
            raise AnswerError(f"the answer has no signal: the service is older than {self.name!r}")
        return row.signal

    def of_member(self, answer: CohortAnswer) -> float | None:
        """Return the number of a cohort's member, None if it has met nobody."""
        return answer.signal if self.options() else answer.win_rate

    def all_values(self, row: Tournament) -> list[float]:
        """Return the numbers of a group, [K], of which every response has one.

        Raises:
            AnswerError: if one has none.
        """
        values = [value for value in self.values(row) if value is not None]
        if len(values) < len(row.win_rates):
            raise AnswerError(f"a response of a group has no {self.name}")
        return values

    def placed(self, groups: Sequence[Sequence[int]], answer: TournamentsAnswer, count: int) -> list[float | None]:
        """Return the numbers of all responses, None where one or its group got an error, or has met nobody.

        Args:
            groups: the places of each group's responses.
            answer: one tournament or error per group.
        """
        numbers: list[float | None] = [None] * count
        for places, row in zip(groups, answer.tournaments, strict=True):
            if isinstance(row, ItemError):
                tell(row.error, f"a group of {len(places)} responses has no reward")
                continue
            for error in row.errors or ():
                tell(error, "a response has no reward")
            for place, number in zip(places, self.values(row), strict=True):
                numbers[place] = number
        return numbers
