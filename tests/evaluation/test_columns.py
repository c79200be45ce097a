"""Columns give back what was put into them, and views are sequences like any other."""

import pytest

from paragone_evaluation.columns import CaseColumns, TextColumn, View
from paragone_evaluation.dataset import Case

CASES = [
    Case("7", 7, 0, (0, 1)),
    Case("x", 9, 3, (2, 3, 4), "chat", right=2),
    Case("10", 9, 1, (), "chat", human=(1.0, 0.0), attributes={"a": (1.0,)}),
]


def test_cases_come_back_as_they_were():
    columns = CaseColumns()
    for case in CASES:
        columns.append(case)
    assert [columns.case(number) for number in range(len(columns))] == CASES


def test_texts_of_any_script_and_messages_come_back_as_they_were():
    responses = ["a", "", "ü “quoted” 日本 🙂", {"role": "assistant", "content": None}, "\ud800 alone", "b"]
    column = TextColumn()
    for response in responses:
        column.append(response)
    assert [column.response(number) for number in range(len(column))] == responses


def test_a_view_is_counted_sliced_and_ends():
    view = View(4, lambda number: number * 10)
    assert (len(view), view[-1], view[1:3], list(view), 30 in view) == (4, 30, (10, 20), [0, 10, 20, 30], True)
    with pytest.raises(IndexError):
        view[4]
