"""What is evaluated on, in one form for every layout: prompts, distinct responses, cases, and judgements between them.

A case is one row of the file, or for ratings all rows of one prompt. The same response to the same prompt is one node,
however often it occurs, and is asked about once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paragone_evaluation.measures.checks import Floats, Ints

__all__ = ["Case", "EvaluationSet", "LeftOut", "PromptText", "ResponseText", "SetBuilder"]

Message = Mapping[str, Any]
PromptText = str | Sequence[Message]
ResponseText = str | Message | Sequence[Message]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are in no measure, and why.

    Attributes:
        lines: numbers of the first few of them in the file; empty where the model left them out.
    """

    reason: str
    count: int
    lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the file, or for ratings one prompt with all of its rows.

    Attributes:
        line: where it is in the file.
        prompt: number of its prompt.
        nodes: numbers of its responses. K
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
    attributes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationSet:
    """A file, read. P prompts, R nodes, J judgements.

    Attributes:
        sha256: of the file's bytes.
        split: the split that was read, or None for all rows.
        prompts: prompt and tools of each. P
        questions: name of each prompt's question; prompts of one question are about the same thing. P
        node_prompt: number of each node's prompt. [R]
        node_length: in characters. [R]
        case: number of each judgement's case. [J]
        first: node whose win was judged. [J]
        second: node it was compared with. [J]
        outcome: 1, 0, or ½ for a tie. [J]
        strength: −3 … 3, NaN where unknown. [J]
        left_out: rows that were not read.
        notes: what a reader of the results should know about the file.
        rated: the attribute that human scores are made of, or None.
    """

    path: str
    sha256: str
    layout: str
    split: str | None
    prompts: tuple[tuple[PromptText, tuple[Message, ...] | None], ...]
    questions: tuple[str, ...]
    responses: tuple[ResponseText, ...]
    node_prompt: Ints
    node_length: Floats
    cases: tuple[Case, ...]
    case: Ints
    first: Ints
    second: Ints
    outcome: Floats
    strength: Floats
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    rated: str | None = None

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
        return self.rated is None and all(case.right is None for case in self.cases)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the rated attributes, in order."""
        return tuple(sorted({name for case in self.cases for name in case.attributes}))

    def clusters(self, by: str) -> tuple[Ints, int]:
        """Return the cluster number of every prompt, and how many clusters there are.

        Args:
            by: ``question`` or ``prompt``.
        """
        if by == "prompt":
            return np.arange(len(self.prompts), dtype=np.int64), len(self.prompts)
        names, where = np.unique(np.asarray(self.questions, dtype=object).astype(str), return_inverse=True)
        return where.astype(np.int64), len(names)


class SetBuilder:
    """Collects prompts, nodes, cases and judgements while a file is read."""

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._prompt_texts: list[tuple[PromptText, tuple[Message, ...] | None]] = []
        self._questions: list[str] = []
        self._nodes: dict[tuple[int, str], int] = {}
        self._responses: list[ResponseText] = []
        self._node_prompt: list[int] = []
        self._judgements: list[tuple[int, int, int, float, float]] = []
        self.cases: list[Case] = []

    def prompt(self, prompt: PromptText, *, question: str | None, tools: Sequence[Message] | None = None) -> int:
        """Return the number of a prompt, a new one where it was not seen before.

        Args:
            question: name of what it is about; the prompt is its own question if None.
        """
        key = _key(prompt) if not tools else f"{_key(prompt)}\n{_key(tools)}"
        number = self._prompts.setdefault(key, len(self._prompt_texts))
        if number == len(self._prompt_texts):
            self._prompt_texts.append((prompt, tuple(tools) if tools else None))
            digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            self._questions.append(question or f"prompt {digest}")
        return number

    def node(self, prompt: int, response: ResponseText) -> int:
        """Return the number of a response to a prompt, a new one where it was not seen before."""
        number = self._nodes.setdefault((prompt, _key(response)), len(self._responses))
        if number == len(self._responses):
            self._responses.append(response)
            self._node_prompt.append(prompt)
        return number

    def judge(self, case: int, first: int, second: int, outcome: float, strength: float = float("nan")) -> None:
        """Add a judgement between two nodes of a case; ``EvaluationSet`` says what the values mean."""
        self._judgements.append((case, first, second, outcome, strength))

    def built(
        self,
        *,
        path: str,
        sha256: str,
        layout: str,
        split: str | None,
        left_out: Sequence[LeftOut],
        notes: Sequence[str],
        rated: str | None,
    ) -> EvaluationSet:
        """Return the evaluation set of all that was added."""
        table = np.asarray(self._judgements, dtype=np.float64).reshape(-1, 5)
        case, first, second = (table[:, column].astype(np.int64) for column in range(3))
        return EvaluationSet(
            path=path,
            sha256=sha256,
            layout=layout,
            split=split,
            prompts=tuple(self._prompt_texts),
            questions=tuple(self._questions),
            responses=tuple(self._responses),
            node_prompt=np.asarray(self._node_prompt, dtype=np.int64),
            node_length=np.asarray([_text_length(response) for response in self._responses], dtype=np.float64),
            cases=tuple(self.cases),
            case=case,
            first=first,
            second=second,
            outcome=table[:, 3],
            strength=table[:, 4],
            left_out=tuple(left_out),
            notes=tuple(notes),
            rated=rated,
        )


def _text_length(response: ResponseText) -> int:
    """Return the characters of a response: its text, or the text contents of its messages.

    >>> text_length("three"), text_length({"role": "assistant", "content": "four"})
    (5, 4)
    """
    if isinstance(response, str):
        return len(response)
    if not isinstance(response, Mapping):
        return sum(_text_length(message) for message in response)
    content = response.get("content") or ""
    if isinstance(content, str):
        return len(content)
    return sum(len(part.get("text") or "") for part in content if isinstance(part, Mapping))


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
