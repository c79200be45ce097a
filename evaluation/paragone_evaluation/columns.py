"""An evaluation set as columns: its cases, prompts and responses are made of them when they are asked for.

The texts are most of what a large file takes of memory. An object for each of a million cases, and for each of their
texts, would be half as much again.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

from paragone_evaluation.dataset import Case, ResponseText

__all__ = ["CaseColumns", "TextColumn", "View"]

_T = TypeVar("_T")
_NONE = -1


class View(Sequence[_T]):
    """A sequence whose values are made when they are asked for.

    Args:
        count: how many there are.
        make: makes one, by its number from 0.
    """

    def __init__(self, count: int, make: Callable[[int], _T]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> _T: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[_T, ...]: ...

    def __getitem__(self, at: int | slice) -> _T | tuple[_T, ...]:
        numbers = range(self._count)[at]
        return self._make(numbers) if isinstance(numbers, int) else tuple(map(self._make, numbers))

    def __iter__(self) -> Iterator[_T]:
        return map(self._make, range(self._count))


class TextColumn:
    """Responses: texts in one block of UTF-8, and the few that are messages as they are."""

    def __init__(self) -> None:
        # Each text of its own costs fifty bytes, and up to four bytes for each of its characters.
        self._block = bytearray()
        self._ends = array("q")
        self._messages: dict[int, ResponseText] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, response: ResponseText) -> None:
        """Add a response."""
        if isinstance(response, str):
            self._block += response.encode("utf-8", "surrogatepass")
        else:
            self._messages[len(self._ends)] = response
        self._ends.append(len(self._block))

    def response(self, number: int) -> ResponseText:
        """Return a response by its number."""
        if number in self._messages:
            return self._messages[number]
        return self._block[_start(self._ends, number) : self._ends[number]].decode("utf-8", "surrogatepass")


class CaseColumns:
    """Cases, one column for each of their fields."""

    def __init__(self) -> None:
        self._ids: list[str | None] = []  # None is called by its line
        self._lines, self._prompts, self._right = array("q"), array("q"), array("q")
        self._nodes, self._ends = array("q"), array("q")
        self._subsets: list[str | None] = []
        self._subset_names: dict[str | None, str | None] = {}  # one text for all cases of a subset
        # Pairs have neither, and most large files are of pairs.
        self._human: dict[int, tuple[float, ...]] = {}
        self._attributes: dict[int, Mapping[str, tuple[float, ...]]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def append(self, case: Case) -> None:
        """Add a case."""
        if case.human is not None:
            self._human[len(self)] = case.human
        if case.attributes:
            self._attributes[len(self)] = case.attributes
        self._ids.append(None if case.id == str(case.line) else case.id)
        self._nodes.extend(case.nodes)
        self._ends.append(len(self._nodes))
        self._lines.append(case.line)
        self._prompts.append(case.prompt)
        self._right.append(_NONE if case.right is None else case.right)
        self._subsets.append(self._subset_names.setdefault(case.subset, case.subset))

    def case(self, number: int) -> Case:
        """Return a case by its number."""
        name, line, right = self._ids[number], self._lines[number], self._right[number]
        return Case(
            str(line) if name is None else name,
            line,
            self._prompts[number],
            tuple(self._nodes[_start(self._ends, number) : self._ends[number]]),
            self._subsets[number],
            right=None if right == _NONE else right,
            human=self._human.get(number),
            **({"attributes": self._attributes[number]} if number in self._attributes else {}),
        )


def _start(ends: "array[int]", number: int) -> int:
    return ends[number - 1] if number else 0
