"""How files are read, whichever command reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from paragone_evaluation.errors import DataError

__all__ = ["BadRowsPolicy", "ReadOptions"]

BadRowsPolicy = Literal["refuse", "leave-out"]


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        layout: of all rows; ``auto`` goes by the fields of the first one of a file.
        map: our names of fields by which the file's columns are read; empty where the layout says so.
        bad_rows: what rows that cannot be read do: refuse the file, or be left out and counted.

    Raises:
        DataError: if ``bad_rows`` is neither.
    """

    layout: str = "auto"
    map: Mapping[str, str] = field(default_factory=dict)
    bad_rows: BadRowsPolicy = "refuse"

    def __post_init__(self) -> None:
        if self.bad_rows not in get_args(BadRowsPolicy):
            raise DataError(f"bad_rows is {self.bad_rows!r}; it must be one of {', '.join(get_args(BadRowsPolicy))}")

    @property
    def maps_ratings(self) -> bool:
        """Whether the map is of files that rate single responses."""
        return any(name.startswith("ratings.") for name in self.map)

    @property
    def leaves_out(self) -> bool:
        """Whether rows that cannot be read are left out."""
        return self.bad_rows == "leave-out"
