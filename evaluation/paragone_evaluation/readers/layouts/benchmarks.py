"""Layouts of benchmarks, where an answer is right or wrong.

Sources: the cards and code of allenai/reward-bench, allenai/reward-bench-2, THU-KEG/RM-Bench, ScalerLab/JudgeBench,
thu-coai/IF-RewardBench and lmarena-ai's PPE sets of best of K.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.measures.benchmarks import REWARDBENCH_SECTIONS
from paragone_evaluation.readers.layouts.fields import (
    check_ending,
    common_of,
    float_of,
    identifier,
    is_response,
    list_of,
    needed_text,
    optional_text,
    prompt_of,
    response_of,
    responses_of,
    sides_of,
    split_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout, has
from paragone_evaluation.readers.layouts.messages import are_messages, are_texts_written, described, texts_written
from paragone_evaluation.readers.layouts.own import CHOSEN_REJECTED
from paragone_evaluation.readers.rows import BadRowError, DataRow, Fields, Label

__all__ = ["BEST_OF", "IF_REWARDBENCH", "JUDGEBENCH", "REWARDBENCH", "REWARDBENCH2", "RM_BENCH", "TIES_ID"]

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
    pair, subset = _PAIR.row(row, line), needed_text(row, "subset")
    # Ids of RewardBench 1 start again in some subsets, and an id may stand for one row only.
    return replace(pair, id=f"{subset}/{pair.name}", right=1, subset=subset, strength_of="")


def _rewardbench2(row: Fields, line: int) -> DataRow:
    row = _listed(row)
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
    row = _listed(row)
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


def _if_rewardbench(row: Fields, line: int) -> DataRow:
    common, answers, edges = common_of(row), list_of(row, "responses"), list_of(row, "preference_graph")
    responses = tuple(
        response_of(one.get("response") if isinstance(one, Mapping) else None, f"responses[{at}].response")
        for at, one in enumerate(answers)
    )
    labels = []
    for at, edge in enumerate(edges):
        where = f"preference_graph[{at}]"
        chosen, rejected = (_place(edge, side, where, len(responses)) for side in ("chosen", "rejected"))
        labels.append(Label(chosen, rejected, 1.0))
    return DataRow(
        line, check_ending(prompt_of(row, "messages"), "messages"), responses, tuple(labels),
        subset=optional_text(row, "instruction_type"), **common,
    )  # fmt: skip


def _place(edge: Any, side: str, where: str, responses: int) -> int:
    end = edge.get(side) if isinstance(edge, Mapping) else None
    place = end.get("response_id") if isinstance(end, Mapping) else end
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < responses:
        raise BadRowError(
            f"{where}.{side} is {described(place)}; it must be the number of one of {responses} responses"
        )
    return place


def _numbered(row: Fields) -> list[str]:
    """Return the columns response_1, response_2 ... that have a value, in order."""
    names = map("response_{}".format, itertools.count(1))
    return list(itertools.takewhile(lambda name: row.get(name) is not None, names))


def _best_of(row: Fields, line: int) -> DataRow:
    common, names, scores = common_of(row), _numbered(row), [float_of(score) for score in _scores(row)]
    if len(scores) != len(names) or not all(map(math.isfinite, scores)):
        raise BadRowError(f"field 'scores' must hold a number or a truth value for each of {len(names)} responses")
    stated = row.get("sampled_conflict_pairs")
    pairs = stated if isinstance(stated, list) else list(itertools.combinations(range(len(names)), 2))
    labels = [_scored(pair, scores) for pair in pairs]
    return DataRow(
        line, check_ending(prompt_of(row), "prompt"), sides_of(row, *names),
        tuple(dict.fromkeys(label for label in labels if label is not None)), subset=common["group"], **common,
    )  # fmt: skip


def _scores(row: Fields) -> list[Any]:
    scores = value_of(row, "scores")
    return [float(score) if isinstance(score, bool) else score for score in scores] if isinstance(scores, list) else []


def _scored(pair: Any, scores: list[float]) -> Label | None:
    """Return the comparison of two responses, None where their scores are equal."""
    ok = isinstance(pair, list | tuple) and len(pair) == 2 and all(
        isinstance(at, int) and not isinstance(at, bool) and 0 <= at < len(scores) for at in pair
    )  # fmt: skip
    if not ok:
        raise BadRowError(f"a pair in 'sampled_conflict_pairs' must be two numbers below {len(scores)}")
    first, second = pair
    if scores[first] == scores[second]:
        return None
    return Label(first, second, 1.0) if scores[first] > scores[second] else Label(second, first, 1.0)


def _listed(row: Fields) -> Fields:
    """Return a row whose chosen and rejected are lists, as JSON in a CSV file."""
    sides = {name: texts_written(side, name) for name in _SIDES if isinstance(side := row.get(name), str)}
    return row | sides


def _lists_of_texts(row: Fields, beside: str) -> bool:
    """Return whether chosen and rejected are lists of responses, and not conversations, which are lists as well."""
    sides = [row.get(name) for name in _SIDES]
    lists = all(isinstance(side, list) and not any(isinstance(item, Mapping) for item in side) for side in sides)
    return lists and row.get(beside) is not None


def _written_lists(row: Fields) -> bool:
    """Return whether chosen and rejected are texts that hold lists of texts, as cells of a CSV file do."""
    return all(isinstance(side := row.get(name), str) and are_texts_written(side) for name in _SIDES)


def _fits_rm_bench(row: Fields) -> bool:
    return _lists_of_texts(row, "domain") or (row.get("domain") is not None and _written_lists(row))


def _fits_rewardbench2(row: Fields) -> bool:
    if _lists_of_texts(row, "subset"):
        return True
    # An answer may be a list in JSON: beside a subset of one's own it is a text.
    subset = row.get("subset")
    known = row.get("num_correct") is not None or (isinstance(subset, str) and subset.lower() in _SUBSETS_2)
    return subset is not None and known and _written_lists(row)


# Without their names and in texts, files of one's own with parts of their own would be scored as RewardBench.
_SUBSETS = {subset for subsets in REWARDBENCH_SECTIONS.values() for subset in subsets}
_SUBSETS_2 = {"factuality", "precise if", "math", "safety", "focus", "ties"}
_SIDES = ("chosen", "rejected")
_PAIR = next(layout for layout in CHOSEN_REJECTED if layout.fits({"prompt": "", "chosen": "", "rejected": ""}))

JUDGEBENCH = FileLayout(
    "judgebench", ("question", "response_A", "response_B", "label", "pair_id"), _judgebench,
    lambda row: has(row, "question") and is_response(row.get("response_A")) and is_response(row.get("response_B")),
    prompt=partial(prompt_of, name="question"), signed=True,
)  # fmt: skip
RM_BENCH = FileLayout("rm-bench", ("prompt", "chosen", "rejected", "domain"), _rm_bench, _fits_rm_bench)
REWARDBENCH2 = FileLayout("rewardbench2", ("prompt", "chosen", "rejected", "subset"), _rewardbench2, _fits_rewardbench2)
REWARDBENCH = FileLayout(
    "rewardbench", ("prompt", "chosen", "rejected", "subset"), _rewardbench,
    lambda row: _PAIR.fits(row) and isinstance(row.get("subset"), str) and row["subset"] in _SUBSETS,
    prompt=_PAIR.prompt,
)  # fmt: skip
IF_REWARDBENCH = FileLayout(
    "if-rewardbench", ("messages", "responses", "preference_graph"), _if_rewardbench,
    lambda row: are_messages(row.get("messages")) and isinstance(row.get("responses"), list)
    and isinstance(row.get("preference_graph"), list),
    prompt=partial(prompt_of, name="messages"),
)  # fmt: skip
BEST_OF = FileLayout(
    "best-of", ("prompt", "response_1", "response_2", "scores"), _best_of,
    lambda row: len(_numbered(row)) > 1 and isinstance(row.get("scores"), list) and bool(row["scores"]),
)  # fmt: skip
"""PPE's sets of correctness: K answers, and which of them are right."""
