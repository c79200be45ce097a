"""An evaluation set: the prompts, distinct responses, cases and judgements of a file, whatever its layout.

A case is one row of the file, or for ratings all rows of one prompt. The same response to the same prompt is one node,
however often it occurs, and is asked about once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paragone_evaluation.measures.checks import Floats, Ints

__all__ = ["Case", "EvaluationSet", "LeftOut", "PromptText", "ResponseText"]

_UNRATED: Mapping[str, tuple[float, ...]] = {}  # of all cases without ratings: most sets have a million of them

Message = Mapping[str, Any]
PromptText = str | Sequence[Message]
ResponseText = str | Message | Sequence[Message]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are in no measure, and why.

    Attributes:
        lines: the first few of them, with their files' names if there are several files; empty where the model left
            them out.
    """

    reason: str
    count: int
    lines: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the file, or for ratings one prompt with all of its rows.

    Attributes:
        prompt, nodes: numbers of its prompt and of its K responses.
        subset: part of the file that has a row of its own in the report, or None.
        right: how many of the responses, from the first, are right ones; None where people compared instead.
        human: scores by people, or None. [K]
        attributes: ratings by name, NaN where there is none. each [K]
    """

    id: str
    line: int
    prompt: int
    nodes: tuple[int, ...]
    subset: str | None = None
    right: int | None = None
    human: tuple[float, ...] | None = None
    attributes: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: _UNRATED)


@dataclass(frozen=True)
class EvaluationSet:
    """The content of one file: P prompts, R nodes, J judgements.

    Attributes:
        split: the split that was read, or None for all rows.
        holdout: the share of the prompts that was read of a file without splits, or 0.
        prompts: prompt and tools of each. P
        questions: name of each prompt's question; prompts of one question are about the same thing. P
        node_prompt: number of each node's prompt. [R]
        node_length: in characters. [R]
        case: number of each judgement's case. [J]
        first: node whose win was judged. [J]
        second: node it was compared with. [J]
        outcome: 1, 0, or ½ for a tie. [J]
        strength: −3 … 3, NaN where unknown. [J]
        notes: what a reader of the results should know about the file.
        rated: the attribute that human scores are made of, or None.
    """

    path: str
    sha256: str
    layout: str
    split: str | None
    prompts: Sequence[tuple[PromptText, tuple[Message, ...] | None]]
    questions: Sequence[str]
    responses: Sequence[ResponseText]
    node_prompt: Ints
    node_length: Floats
    cases: Sequence[Case]
    case: Ints
    first: Ints
    second: Ints
    outcome: Floats
    strength: Floats
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    rated: str | None = None
    holdout: float = 0.0

    @property
    def grouped(self) -> bool:
        """Whether some case has more than two responses, so that all pairs within a case are of interest."""
        return any(len(case.nodes) > 2 for case in self.cases)

    @property
    def decided(self) -> bool:
        """Whether people preferred one of two responses anywhere."""
        return bool((self.outcome != 0.5).any())

    @property
    def compared(self) -> bool:
        """Whether people compared responses, in place of rating them or of saying which are right."""
        # Judgements made from ratings or from what is right have an order behind them, and no cycle can show in them.
        return self.rated is None and all(case.right is None for case in self.cases)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the rated attributes, in order."""
        return tuple(sorted({name for case in self.cases for name in case.attributes}))

    def clusters(self, by: str) -> tuple[Ints, int]:
        """Return the cluster number of every prompt, and how many clusters there are, by ``question`` or ``prompt``."""
        # Questions are wider than prompts: both stances of a question, and rephrasings, are one cluster.
        if by == "prompt":
            return np.arange(len(self.prompts), dtype=np.int64), len(self.prompts)
        names, where = np.unique(np.asarray(list(self.questions), dtype=object).astype(str), return_inverse=True)
        return where.astype(np.int64), len(names)
