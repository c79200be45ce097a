"""The layouts of published benchmarks: RewardBench 1 and 2, RM-Bench, JudgeBench.

Sources: the dataset cards and code of allenai/reward-bench, allenai/reward-bench-2, THU-KEG/RM-Bench and
ScalerLab/JudgeBench.
"""

import re
from collections.abc import Sequence

from paragone_evaluation.dataset import Case, ResponseText, SetBuilder
from paragone_evaluation.readers.files import Row
from paragone_evaluation.readers.rows import (
    BadRowError,
    identifier,
    optional_text,
    prompt_of,
    response_of,
    texts_of,
    value_of,
)

__all__ = ["TIES_ID", "JudgeBenchReader", "RMBenchReader", "RewardBench2Reader", "RewardBenchReader"]

TIES_ID = re.compile(r"(ref|tied):(\d+)")
"""What ids of RewardBench 2's Ties subset look like."""


def _needed(row: Row, name: str) -> str:
    value = optional_text(row, name)
    if not value:
        raise BadRowError(f"field {name!r} is missing or empty")
    return value


def _add(
    to: SetBuilder, case: tuple[str, int, int], right: list[ResponseText], wrong: list[ResponseText], subset: str
) -> None:
    """Add a case whose right responses come first, and a judgement for each right one over each wrong one."""
    name, line, prompt = case
    nodes = tuple(to.node(prompt, response) for response in (*right, *wrong))
    to.cases.append(Case(name, line, prompt, nodes, subset, right=len(right)))
    for first in nodes[: len(right)]:
        for second in nodes[len(right) :]:
            to.judge(len(to.cases) - 1, first, second, 1.0)


class RewardBenchReader:
    """RewardBench 1: ``id, prompt, chosen, rejected, subset``."""

    rated: str | None = None
    left_out: Sequence[tuple[int, str]] = ()

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one pair.

        Raises:
            BadRowError: if the row is none.
        """
        # Ids of RewardBench 1 start again in some subsets.
        subset = _needed(row, "subset")
        name, prompt = f"{subset}/{identifier(row)}", prompt_of(row)
        chosen = response_of(value_of(row, "chosen"), "chosen")
        rejected = response_of(value_of(row, "rejected"), "rejected")
        _add(to, (name, line, to.prompt(prompt, question=None)), [chosen], [rejected], subset)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every row is complete."""


class RewardBench2Reader:
    """RewardBench 2: ``id, prompt, chosen[], rejected[], subset``; Ties have several right responses."""

    rated: str | None = None
    left_out: Sequence[tuple[int, str]] = ()

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one prompt with its right and wrong responses.

        Raises:
            BadRowError: if the row is none.
        """
        name, prompt, subset = identifier(row), prompt_of(row), _needed(row, "subset")
        right, wrong = texts_of(row, "chosen", at_least=1), texts_of(row, "rejected", at_least=1)
        if row.get("num_correct") not in (None, len(right)):
            raise BadRowError(f"field 'num_correct' is {row['num_correct']!r}, and there are {len(right)} in 'chosen'")
        if subset.lower() == "ties":
            if not TIES_ID.fullmatch(name):
                raise BadRowError(f"the id of a row of Ties is {name[:40]!r}; it must be ref:NUMBER or tied:NUMBER")
        elif len(right) != 1:
            raise BadRowError(f"only Ties have several right responses; {subset} has {len(right)}")
        _add(to, (name, line, to.prompt(prompt, question=None)), right, wrong, subset)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every row is complete."""


class RMBenchReader:
    """RM-Bench: ``id, prompt, chosen[3], rejected[3], domain``; concise, detailed, detailed with markdown."""

    rated: str | None = None
    left_out: Sequence[tuple[int, str]] = ()

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one prompt with its three right and three wrong responses.

        Raises:
            BadRowError: if the row is none.
        """
        name, prompt, domain = identifier(row), prompt_of(row), _needed(row, "domain")
        right, wrong = texts_of(row, "chosen", at_least=3), texts_of(row, "rejected", at_least=3)
        if len(right) != 3 or len(wrong) != 3:
            raise BadRowError(f"there are three styles; the row has {len(right)} chosen and {len(wrong)} rejected")
        _add(to, (f"{domain}/{name}", line, to.prompt(prompt, question=None)), right, wrong, domain)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every row is complete."""


class JudgeBenchReader:
    """JudgeBench: ``pair_id, question, response_A, response_B, label`` (A>B or B>A), ``source``."""

    rated: str | None = None
    left_out: Sequence[tuple[int, str]] = ()

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one pair.

        Raises:
            BadRowError: if the row is none.
        """
        name, prompt, source = identifier(row, "pair_id"), prompt_of(row, "question"), optional_text(row, "source")
        first = response_of(value_of(row, "response_A"), "response_A")
        second = response_of(value_of(row, "response_B"), "response_B")
        label = value_of(row, "label")
        if label not in ("A>B", "B>A"):
            raise BadRowError(f"field 'label' is {label!r}; it must be 'A>B' or 'B>A'")
        number = to.prompt(prompt, question=None)
        nodes = to.node(number, first), to.node(number, second)
        # mmlu-pro-law and the like: the part before the first dash is the suite, except livebench and livecodebench.
        subset = source.split("-")[0] if source else None
        to.cases.append(Case(name, line, number, nodes, subset))
        to.judge(len(to.cases) - 1, *nodes, 1.0 if label == "A>B" else 0.0)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every row is complete."""
