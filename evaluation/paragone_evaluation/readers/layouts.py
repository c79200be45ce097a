"""Layouts: which columns tell a file's layout, and how its rows become ours. One object each, in ``FILE_LAYOUTS``.

A new layout is one entry there and one function. docs/data-files.md lists the columns of all of them.

Sources: the data set cards of nvidia/HelpSteer2 and openbmb/UltraFeedback; the cards and code of
allenai/reward-bench, allenai/reward-bench-2, THU-KEG/RM-Bench and ScalerLab/JudgeBench.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.containers import Fields
from paragone_evaluation.readers.rows import (
    STRONGEST,
    BadRowError,
    Content,
    DataRow,
    Label,
    LeftOutError,
    as_prompt,
    identifier,
    messages_of,
    number_of,
    optional_text,
    prompt_of,
    response_of,
    responses_of,
    split_of,
    tools_of,
    value_of,
)

__all__ = ["FILE_LAYOUTS", "TIES_ID", "FileLayout", "layout_of"]

TIES_ID = re.compile(r"(ref|tied):(\d+)")
"""What ids of RewardBench 2's Ties subset look like."""

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Attributes of HelpSteer2, 0 to 4, in the order of its columns."""
_INVALID = -100
"""What HelpSteer2 writes where there is no valid judgement."""
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_OUTCOMES = {"first": 1.0, "second": -1.0, "tie": 0.0}


@dataclass(frozen=True)
class FileLayout:
    """One layout of files.

    Attributes:
        name: as ``--layout`` takes it; two schemas of one layout share it.
        row: makes our row of the fields; the number is that of the line.
        fits: whether a row with these columns, and these fields, is one of this layout.
        schema: what its rows have, in words, where two layouts share a name.
        prompt: of the fields, for files that are read for their prompts alone.
        signed: whether either response may be the preferred one.
        rates: whether single responses are rated in place of being compared.
    """

    name: str
    row: Callable[[Fields, int], DataRow]
    fits: Callable[[AbstractSet[str], Fields], bool]
    schema: str = ""
    prompt: Callable[[Fields], Content] = prompt_of
    signed: bool = False
    rates: bool = False


def layout_of(row: Fields, layouts: Sequence[FileLayout]) -> FileLayout | None:
    """Return the first of the layouts that a row's fields belong to, or None."""
    # Tables have every column in every row: null is no sign of a layout.
    columns = {name for name, value in row.items() if value is not None}
    return next((layout for layout in layouts if layout.fits(columns, row)), None)


def _common(row: Fields) -> dict[str, Any]:
    return {
        "split": split_of(row),
        "group": optional_text(row, "group"),
        "tools": tools_of(row),
    }


def _first_second(row: Fields, line: int) -> DataRow:
    if row.get("chosen") is not None or row.get("rejected") is not None:
        raise BadRowError("the row mixes two schemas: first and second, and chosen and rejected")
    common, prompt = _common(row), prompt_of(row)
    first, second = (response_of(value_of(row, side), side) for side in ("first", "second"))
    strength = number_of(value_of(row, "strength"), "strength", low=-STRONGEST, high=STRONGEST)
    return DataRow(
        line, identifier(row), prompt, (first, second), (Label(0, 1, strength),), graded=True,
        subset=optional_text(row, "subset") or common["group"], reason=optional_text(row, "reason"), **common,
    )  # fmt: skip


def _chosen_rejected(row: Fields, line: int) -> DataRow:
    common, prompt = _common(row), _chosen_rejected_prompt(row)
    chosen, rejected = (value_of(row, side) for side in ("chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        chosen, rejected = chosen[-1], rejected[-1]
    responses = response_of(chosen, "chosen"), response_of(rejected, "rejected")
    stated = row.get("strength")
    strength = 1.0 if stated is None else number_of(stated, "strength", low=0, high=STRONGEST)
    if not strength:
        raise BadRowError("field 'strength' is 0; beside chosen and rejected it must lie in (0, 3]")
    return DataRow(
        line, identifier(row), prompt, responses, (Label(0, 1, strength),), graded=stated is not None,
        subset=optional_text(row, "subset") or common["group"], reason=optional_text(row, "reason"), **common,
    )  # fmt: skip


def _chosen_rejected_prompt(row: Fields) -> Content:
    """Return what both conversations begin with; ``prompt`` where they are texts or the answers alone."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, list) and not isinstance(rejected, list):
        return prompt_of(row)
    shared, other = (_conversation(value, side) for value, side in ((chosen, "chosen"), (rejected, "rejected")))
    if shared != other:
        raise BadRowError("chosen and rejected must share every message but the last: the shared ones are the prompt")
    before = messages_of(row.get("prompt"), "prompt")
    if before and not all(message in shared for message in before):
        shared = [*before, *shared]  # the conversations go on where the prompt ends
    return as_prompt(shared) if shared else prompt_of(row)


def _conversation(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the messages before the last one, which must be the assistant's."""
    messages = messages_of(value, name)
    if not messages:
        raise BadRowError(f"field {name!r} must be text, as the other one is, or a list of messages")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(f"field {name!r} must end with the assistant's message, not {messages[-1]['role']!r}")
    return messages[:-1]


def _group(row: Fields, line: int) -> DataRow:
    common, prompt, responses = _common(row), prompt_of(row), responses_of(row, "responses", at_least=2)
    comparisons = value_of(row, "comparisons")
    if not isinstance(comparisons, list) or not comparisons:
        raise BadRowError("field 'comparisons' must be a list of at least one comparison")
    labels = tuple(_comparison(value, f"comparisons[{at}]", len(responses)) for at, value in enumerate(comparisons))
    if len({frozenset((label.first, label.second)) for label in labels}) < len(labels):
        raise BadRowError("two comparisons are of the same two responses")
    return DataRow(
        line, identifier(row), prompt, tuple(responses), labels, subset=optional_text(row, "subset"), **common
    )


def _comparison(value: Any, where: str, responses: int) -> Label:
    if not isinstance(value, Mapping):
        raise BadRowError(f"{where} must be an object with first, second and label")
    first, second = (_place(value.get(side), f"{where}.{side}", responses) for side in ("first", "second"))
    if first == second:
        raise BadRowError(f"{where} compares response {first} with itself")
    outcome = value.get("label")
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise BadRowError(f"{where}.label is {outcome!r}; it must be first, second or tie")
    return Label(first, second, _OUTCOMES[outcome])


def _place(value: Any, where: str, responses: int) -> int:
    # True and False are whole numbers to Python, and no index to anybody else.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < responses:
        raise BadRowError(f"{where} is {value!r}; it must be the index of one of {responses} responses")
    return value


def _rating(row: Fields, line: int) -> DataRow:
    common, prompt = _common(row), prompt_of(row)
    response, ratings = response_of(value_of(row, "response"), "response"), value_of(row, "ratings")
    if not isinstance(ratings, Mapping) or not ratings:
        raise BadRowError("field 'ratings' must be an object with a number per attribute")
    numbers = {str(name): _finite(value, f"ratings.{name}") for name, value in ratings.items()}
    return DataRow(line, identifier(row), prompt, (response,), ratings=(numbers,), subset=common["group"], **common)


def _finite(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRowError(f"field {name!r} must be a number, or null where there is none, not {value!r}")
    return float(value)


def _helpsteer_pair(row: Fields, line: int) -> DataRow:
    strength = value_of(row, "preference_strength")
    if strength == _INVALID:
        raise LeftOutError(f"annotators found neither response valid (preference_strength {_INVALID})")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -STRONGEST <= strength <= STRONGEST:
        raise BadRowError(
            f"preference_strength is {strength!r}; it must lie between -3 (response_1 much better) and 3, or be "
            f"{_INVALID} (neither is valid)"
        )
    common, prompt = _common(row), _helpsteer_prompt(row)
    responses = tuple(response_of(value_of(row, name), name) for name in ("response_1", "response_2"))
    return DataRow(
        line, identifier(row), prompt, responses, (Label(0, 1, -float(strength)),), graded=True,
        subset=common["group"], reason=optional_text(row, "preference_statement"), **common,
    )  # fmt: skip


def _helpsteer_rating(row: Fields, line: int) -> DataRow:
    common, prompt = _common(row), _helpsteer_prompt(row)
    ratings = {name: _helpsteer_number(row[name], name) for name in _ATTRIBUTES if name in row}
    if not ratings:
        raise BadRowError(f"the row rates none of {', '.join(_ATTRIBUTES)}")
    response = response_of(value_of(row, "response"), "response")
    return DataRow(line, identifier(row), prompt, (response,), ratings=(ratings,), subset=common["group"], **common)


def _helpsteer_number(value: Any, name: str) -> float | None:
    if value is None or value == _INVALID:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 4:
        raise BadRowError(f"{name} is {value!r}; it must be a number from 0 to 4, or {_INVALID} (not rated)")
    return float(value)


def _helpsteer_prompt(row: Fields) -> Content:
    """Return a prompt as text, or as messages where it holds several turns; the first one is the user's."""
    prompt = prompt_of(row)
    if not isinstance(prompt, str) or not _TURN.search(prompt):
        return prompt
    first, *rest = _TURN.split(prompt)
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": role.lower(), "content": content} for role, content in turns]


def _ultrafeedback(row: Fields, line: int) -> DataRow:
    common, completions = _common(row), value_of(row, "completions")
    if not isinstance(completions, list):
        raise BadRowError(f"field 'completions' must be a list, not {type(completions).__name__}")
    responses, ratings = [], []
    for at, completion in enumerate(completions):
        annotations = completion.get("annotations") if isinstance(completion, Mapping) else None
        if not isinstance(annotations, Mapping):
            raise BadRowError(f"completions[{at}] must be an object with a response and annotations")
        responses.append(response_of(value_of(dict(completion), "response"), "response"))
        ratings.append({name: _annotation(value, f"completions[{at}].{name}") for name, value in annotations.items()})
    prompt = prompt_of(row, "instruction")
    if not responses:
        raise LeftOutError("it has no completions")
    return DataRow(
        line, identifier(row), prompt, tuple(responses), ratings=tuple(ratings), subset=common["group"], **common
    )


def _annotation(annotation: Any, name: str) -> float | None:
    """Return the number of an annotation: ``{"Rating": "4"}``, or None for ``"N/A"``."""
    if annotation is None:
        return None  # a table has a column for every name that some completion is rated by
    if not isinstance(annotation, Mapping) or "Rating" not in annotation:
        raise BadRowError(f"{name} must be an object with a Rating")
    rating = annotation["Rating"]
    if rating is None or rating == "N/A":
        return None
    try:
        value = float(rating)
    except (TypeError, ValueError):
        value = math.nan
    if not 1 <= value <= 5:
        raise BadRowError(f"{name}.Rating is {rating!r}; it must be a number from 1 to 5, or N/A")
    return value


def _benchmark(
    row: Fields, line: int, right: Sequence[ResponseText], wrong: Sequence[ResponseText], subset: str
) -> DataRow:
    """Return a row whose right responses come first, each preferred to each wrong one."""
    places = itertools.product(range(len(right)), range(len(right), len(right) + len(wrong)))
    return DataRow(
        line, identifier(row), prompt_of(row), (*right, *wrong),
        tuple(Label(first, second, 1.0) for first, second in places),
        right=len(right), subset=subset, split=split_of(row),
    )  # fmt: skip


def _needed(row: Fields, name: str) -> str:
    value = optional_text(row, name)
    if not value:
        raise BadRowError(f"field {name!r} is missing or empty")
    return value


def _rewardbench(row: Fields, line: int) -> DataRow:
    pair, subset = _chosen_rejected(row, line), _needed(row, "subset")
    # Ids of RewardBench 1 start again in some subsets.
    return replace(pair, id=f"{subset}/{pair.name}", right=1, subset=subset, graded=False)


def _rewardbench2(row: Fields, line: int) -> DataRow:
    right, wrong = responses_of(row, "chosen", at_least=1), responses_of(row, "rejected", at_least=1)
    if row.get("num_correct") not in (None, len(right)):
        raise BadRowError(f"field 'num_correct' is {row['num_correct']!r}, and there are {len(right)} in 'chosen'")
    made = _benchmark(row, line, right, wrong, _needed(row, "subset"))
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
    made = _benchmark(row, line, right, wrong, _needed(row, "domain"))
    return replace(made, id=f"{made.subset}/{made.name}")


def _judgebench(row: Fields, line: int) -> DataRow:
    label, source = value_of(row, "label"), optional_text(row, "source")
    if label not in ("A>B", "B>A"):
        raise BadRowError(f"field 'label' is {label!r}; it must be 'A>B' or 'B>A'")
    responses = tuple(response_of(value_of(row, name), name) for name in ("response_A", "response_B"))
    return DataRow(
        line, identifier(row, "pair_id"), prompt_of(row, "question"), responses,
        (Label(0, 1, 1.0 if label == "A>B" else -1.0),), split=split_of(row),
        # mmlu-pro-law and the like: the part before the first dash is the suite, except livebench and livecodebench.
        subset=source.split("-")[0] if source else None,
    )  # fmt: skip


def _texts_of_benchmarks(row: Fields) -> bool:
    """Say whether chosen and rejected are lists of responses, and not conversations, which are lists as well."""
    lists = [row.get("chosen"), row.get("rejected")]
    return all(isinstance(value, list) and not any(isinstance(item, Mapping) for item in value) for value in lists)


# The first that fits is taken: layouts whose names are their own come before those whose names others use as well.
FILE_LAYOUTS = (
    FileLayout(
        "judgebench",
        _judgebench,
        lambda names, _: bool(names & {"response_A", "pair_id"}),
        prompt=lambda row: prompt_of(row, "question"),
        signed=True,
    ),
    FileLayout("rm-bench", _rm_bench, lambda names, row: "domain" in names and _texts_of_benchmarks(row)),
    FileLayout("rewardbench2", _rewardbench2, lambda names, row: "subset" in names and _texts_of_benchmarks(row)),
    FileLayout(
        "rewardbench",
        _rewardbench,
        lambda names, _: names >= {"chosen", "rejected", "subset"},
        prompt=_chosen_rejected_prompt,
    ),
    FileLayout(
        "ultrafeedback",
        _ultrafeedback,
        lambda names, _: "completions" in names,
        prompt=lambda row: prompt_of(row, "instruction"),
        rates=True,
    ),
    FileLayout(
        "helpsteer2-preferences",
        _helpsteer_pair,
        lambda names, _: bool(names & {"preference_strength", "response_1", "response_2"}),
        prompt=_helpsteer_prompt,
        signed=True,
    ),
    FileLayout("groups", _group, lambda names, _: bool(names & {"comparisons", "responses"})),
    # HelpSteer2's files of ratings have been published with fewer attributes: one is enough to know them.
    FileLayout(
        "helpsteer2",
        _helpsteer_rating,
        lambda names, _: "ratings" not in names and bool(names & set(_ATTRIBUTES)),
        prompt=_helpsteer_prompt,
        rates=True,
    ),
    FileLayout("ratings", _rating, lambda names, _: bool(names & {"ratings", "response"}), rates=True),
    FileLayout(
        "pairs", _first_second, lambda names, _: bool(names & {"first", "second"}), "first and second", signed=True
    ),
    FileLayout(
        "pairs",
        _chosen_rejected,
        lambda names, _: bool(names & {"chosen", "rejected"}),
        "chosen and rejected",
        prompt=_chosen_rejected_prompt,
    ),
)
"""Every layout that is read."""
