"""What ``paragone annotate`` writes: rows that a model compared, by its probabilities.

A probability p that the first response is preferred is the strength 6p − 3, on the scale of people's strengths, so that
½ is a tie and a certain choice is as strong as any can be.
"""

import itertools
from typing import Any

from paragone_evaluation.readers.layouts.fields import (
    check_ending,
    common_of,
    is_response,
    number_of,
    optional_text,
    prompt_of,
    responses_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout
from paragone_evaluation.readers.layouts.messages import described
from paragone_evaluation.readers.rows import PROBABILITY, STRONGEST, BadRowError, DataRow, Fields, Label, LeftOutError

__all__ = ["ANNOTATED"]

_NAME = "annotated"
_Z = 1.96
_FEWEST = 0.5  # votes: a temperature may have moved a probability out of its interval


def _table(row: Fields, line: int) -> DataRow:
    responses = responses_of(row, "responses", at_least=2)
    matrix, places = _square(value_of(row, "matrix"), len(responses)), range(len(responses))
    labels = []
    for first, second in itertools.combinations(places, 2):
        wins, losses = matrix[first][second], matrix[second][first]
        if wins is not None and losses is not None:
            # The two need not sum to 1: a judge that is asked in one order alone answers each by itself.
            labels.append(_label(first, second, (wins + 1.0 - losses) / 2))
    return _judged(row, line, responses, labels)


def _preference(row: Fields, line: int) -> DataRow:
    responses = responses_of(row, "responses", at_least=2)
    if len(responses) > 2:
        raise BadRowError(f"field 'probability' is of two responses, and the row has {len(responses)}")
    probability = number_of(value_of(row, "probability"), "probability", low=0.0, high=1.0)
    return _judged(row, line, responses, [_label(0, 1, probability, _votes(row.get("interval"), probability))])


def _judged(row: Fields, line: int, responses: list[Any], labels: list[Label]) -> DataRow:
    if not labels:
        raise LeftOutError("no two of its responses were compared")
    common, prompt = common_of(row), check_ending(prompt_of(row), "prompt")
    # A number of the row and its line say where it stood in the input; ids may be missing there.
    return DataRow(
        line, prompt, tuple(responses), tuple(labels), strength_of=PROBABILITY,
        subset=optional_text(row, "subset"), **common,
    )  # fmt: skip


def _label(first: int, second: int, probability: float, weight: float = 1.0) -> Label:
    return Label(first, second, 2 * STRONGEST * probability - STRONGEST, weight)


def _votes(interval: Any, probability: float) -> float:
    """Return about how many votes a 95 % interval stands for; 1 where there is none.

        n = p (1 − p) (2 z / width)² − 2,  z = 1.96

    since a Beta posterior of n votes has the variance p (1 − p) / (n + 2).
    """
    if interval is None:
        return 1.0
    if not isinstance(interval, list) or len(interval) != 2:
        raise BadRowError(f"field 'interval' must be two probabilities, not {described(interval)}")
    low, high = (number_of(end, f"interval[{at}]", low=0.0, high=1.0) for at, end in enumerate(interval))
    if not low < high:
        raise BadRowError(f"field 'interval' is [{low:g}, {high:g}]: the first must be the lower one")
    return max(probability * (1 - probability) * (2 * _Z / (high - low)) ** 2 - 2, _FEWEST)


def _square(value: Any, count: int) -> list[list[float | None]]:
    if not isinstance(value, list) or len(value) != count:
        raise BadRowError(f"field 'matrix' must have a row for each of {count} responses, not {described(value)}")
    rows = []
    for at, cells in enumerate(value):
        if not isinstance(cells, list) or len(cells) != count:
            raise BadRowError(f"field 'matrix[{at}]' must have {count} probabilities, not {described(cells)}")
        rows.append(
            [
                None if cell is None else number_of(cell, f"matrix[{at}][{place}]", low=0.0, high=1.0)
                for place, cell in enumerate(cells)
            ]
        )
    return rows


def _fits_table(row: Fields) -> bool:
    return isinstance(row.get("responses"), list) and isinstance(row.get("matrix"), list)


def _fits_preference(row: Fields) -> bool:
    value, responses = row.get("probability"), row.get("responses")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and isinstance(responses, list) and all(map(is_response, responses))


ANNOTATED = (
    FileLayout(
        _NAME, ("prompt", "responses", "matrix"), _table, _fits_table,
        strengths="the matrix's probabilities, p as the strength 6p − 3", schema="a matrix", by_model=True,
    ),
    FileLayout(
        _NAME, ("prompt", "responses", "probability"), _preference, _fits_preference,
        strengths="the probability p as the strength 6p − 3", schema="one probability", signed=True, by_model=True,
    ),
)  # fmt: skip
"""Tables (``--answers tables``) and preferences (``--answers preferences``)."""
