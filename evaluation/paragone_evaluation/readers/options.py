"""How files are read, whichever command reads them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from paragone_evaluation.errors import DataError

__all__ = ["BadRowsPolicy", "Rankings", "ReadOptions"]

BadRowsPolicy = Literal["refuse", "leave-out"]
Rankings = Literal["all", "neighbours"]


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        layout: of all rows; ``auto`` goes by the fields of a file's first 64.
        map: our names of fields by which the file's columns are read; empty where the layout says so.
        attribute: what rated responses are compared by, helpfulness or the file's first attribute if None; of pairs
            that people compared by several things, which of them, the first one if None.
        gap: ratings no further apart than this are a tie.
        rankings: ``all`` compares every two responses of a ranking, ``neighbours`` each one with the next.
        bad_rows: what rows that cannot be read do: refuse the file, or be left out and counted.
        holdout: share of the prompts whose rows get the split ``test``, of files that mark none (``holdout.py``).

    Raises:
        DataError: if ``bad_rows`` or ``rankings`` is none of these, ``gap`` is negative, or ``holdout`` is no share.
    """

    layout: str = "auto"
    map: Mapping[str, str] = field(default_factory=dict)
    bad_rows: BadRowsPolicy = "refuse"
    attribute: str | None = None
    gap: float = 0.0
    rankings: Rankings = "all"
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if self.bad_rows not in get_args(BadRowsPolicy):
            raise DataError(f"bad_rows is {self.bad_rows!r}; it must be one of {', '.join(get_args(BadRowsPolicy))}")
        if self.rankings not in get_args(Rankings):
            raise DataError(f"rankings is {self.rankings!r}; it must be one of {', '.join(get_args(Rankings))}")
        if not 0 <= self.gap < math.inf:
            raise DataError(f"gap is {self.gap}; it must be 0 or a positive number")
        if not 0 <= self.holdout < 1:
            raise DataError(f"holdout is {self.holdout}; it must be a share of the prompts below 1, 0.1 say")

    @property
    def maps_ratings(self) -> bool:
        """Whether the map is of files that rate single responses."""
        return any(name.startswith("ratings.") for name in self.map)

    @property
    def leaves_out(self) -> bool:
        """Whether rows that cannot be read are left out."""
        return self.bad_rows == "leave-out"
