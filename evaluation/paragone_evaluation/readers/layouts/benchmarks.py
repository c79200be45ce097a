"""Layouts of benchmarks, where an answer is right or wrong.

Sources: the cards and code of allenai/reward-bench, allenai/reward-bench-2, THU-KEG/RM-Bench and
ScalerLab/JudgeBench.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.layouts.fields import (
    described,
    identifier,
    needed_text,
    optional_text,
    prompt_of,
    responses_of,
    sides_of,
    split_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout, with_all, with_any
from paragone_evaluation.readers.layouts.own import CHOSEN_REJECTED
from paragone_evaluation.readers.rows import BadRowError, DataRow, Fields, Label

__all__ = ["TIES_ID"]

TIES_ID = re.compile(r"(ref|tied):(\d+)")


"""What ids of RewardBench 2's Ties subset look like."""


def _benchmark(row: Fields, line: int, right: list[ResponseText], wrong: list[ResponseText], subset: str) -> DataRow:
    """Return a row whose right responses come first, each preferred to each wrong one."""
    places = itertools.product(range(len(right)), range(len(right), len(right) + len(wrong)))
    labels = tuple(Label(first, second, 1.0) for first, second in places)
    return DataRow(
        line, prompt_of(row), (*right, *wrong), labels, id=identifier(row), split=split_of(row), subset=subset,
        right=len(right),
    )  # fmt: skip


def _rewardbench(row: Fields, line: int) -> DataRow:
    pair, subset = CHOSEN_REJECTED.row(row, line), needed_text(row, "subset")
    # Ids of RewardBench 1 start again in some subsets, and an id may stand for one row only.
    return replace(pair, id=f"{subset}/{pair.name}", right=1, subset=subset, graded=False)


def _rewardbench2(row: Fields, line: int) -> DataRow:
    right, wrong = responses_of(row, "chosen", at_least=1), responses_of(row, "rejected", at_least=1)
    if row.get("num_correct") not in (None, len(right)):
        raise BadRowError(
            f"field 'num_correct' is {described(row['num_correct'])}, and there are {len(right)} in 'chosen'"
        )
    made = _benchmark(row, line, right, wrong, needed_text(row, "subset"))
    if str(made.subset).lower() == "ties":
        if not TIES_ID.fullmatch(made.name):
            raise BadRowError(f"the id of a row of Ties is {made.name[:40]!r}; it must be ref:NUMBER or tied:NUMBER")
    elif len(right) != 1:
        raise BadRowError(f"only Ties have several right responses; {made.subset} has {len(right)}")
    return made


def _rm_bench(row: Fields, line: int) -> DataRow:
    right, wrong = responses_of(row, "chosen", at_least=3), responses_of(row, "rejected", at_least=3)
    if len(right) != 3 or len(wrong) != 3:
        raise BadRowError(f"there are three styles; the row has {len(right)} chosen and {len(wrong)} rejected")
    made = _benchmark(row, line, right, wrong, needed_text(row, "domain"))
    # Ids count within a domain here.
    return replace(made, id=f"{made.subset}/{made.name}")


def _judgebench(row: Fields, line: int) -> DataRow:
    label, source = value_of(row, "label"), optional_text(row, "source")
    if label not in ("A>B", "B>A"):
        raise BadRowError(f"field 'label' is {described(label)}; it must be 'A>B' or 'B>A'")
    return DataRow(
        line, prompt_of(row, "question"), sides_of(row, "response_A", "response_B"),
        (Label(0, 1, 1.0 if label == "A>B" else -1.0),), id=identifier(row, "pair_id"), split=split_of(row),
        # mmlu-pro-law and the like: the part before the first dash is the suite, except livebench and livecodebench.
        subset=source.split("-")[0] if source else None,
    )  # fmt: skip


def _lists_of_texts(row: Fields, beside: str) -> bool:
    """Return whether chosen and rejected are lists of responses, and not conversations, which are lists as well."""
    sides = row.get("chosen"), row.get("rejected")
    lists = all(isinstance(side, list) and not any(isinstance(item, Mapping) for item in side) for side in sides)
    return lists and row.get(beside) is not None


JUDGEBENCH = FileLayout(
    "judgebench", _judgebench, with_any("response_A", "pair_id"), prompt=partial(prompt_of, name="question"),
    signed=True,
)  # fmt: skip
RM_BENCH = FileLayout("rm-bench", _rm_bench, lambda row: _lists_of_texts(row, "domain"))
REWARDBENCH2 = FileLayout("rewardbench2", _rewardbench2, lambda row: _lists_of_texts(row, "subset"))
REWARDBENCH = FileLayout(
    "rewardbench", _rewardbench, with_all("chosen", "rejected", "subset"), prompt=CHOSEN_REJECTED.prompt
)
