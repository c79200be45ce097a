"""The page of a run of ``paragone annotate``: what was asked, what was answered, and what failed and why."""

import json
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from paragone_evaluation.annotation.kinds import KINDS, AnswerKind
from paragone_evaluation.annotation.run import Annotation
from paragone_evaluation.measures.bootstrap import FEW_CLUSTERS, Resampler
from paragone_evaluation.readers.rows import text_key, text_length
from paragone_evaluation.readers.sources import parts_of
from paragone_evaluation.report.charts import histogram
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, render_page
from paragone_evaluation.report.verdict import agreement_verdict
from paragone_evaluation.report.words import counted, number
from paragone_evaluation.results import plain

__all__ = ["annotation_page"]

_REASONS = 12
_USAGE = {
    "forward_responses": "responses that the model ran",
    "cached_responses": "responses that were cached, or came twice",
    "forward_tokens": "tokens that the model ran",
    "truncated": "conversations whose prompt was cut",
    "not_shown": "conversations with words that the model's template leaves out",
}


def annotation_page(made: Annotation, command: str) -> str:
    """Return the page, as HTML.

    Args:
        command: what was typed.
    """
    counts, info, read = made.counts, made.info, _Answers.of(made)
    cards = [
        Card("Rows", f"{counts['rows']:,}", remark=f"with {made.answers} of {info.id}"),
        Card("Without an answer", f"{counts['failed_rows']:,}", remark=counted(counts["failures"], "reason")),
    ]
    if made.pairs is not None:
        cards.append(Card("Pairs", f"{made.pairs['pairs']:,}", remark=f"in {made.pairs_file}"))
    notes = [f"{info.id} is a demonstration, and no judge to rely on."] if info.demonstration else []
    sections = [
        *read.spread(KINDS[made.answers]),
        *([_failures(made.failed)] if made.failed is not None else []),
        *([_pairs(made.pairs)] if made.pairs is not None and len(made.pairs) > 1 else []),
        *([_usage(made.usage)] if made.usage else []),
        PageSection("How it was made", code=command, tables=[_origin(made)]),
    ]
    verdict = read.verdict()
    return render_page(
        made.output.name,
        lead=f"{counts['rows']:,} of {counts['rows'] + counts['failed_rows']:,} rows have {made.answers} of {info.id}."
        + (f" Where the file says what people preferred, {info.id} {verdict}" if verdict else ""),
        cards=cards, notes=notes, sections=sections,
    )  # fmt: skip


@dataclass
class _Answers:
    """What the output of a run says, read once.

    Attributes:
        values: of all answers, as their kind measures them.
        right, longer: of each decided pair of the file: whether the model agrees, ½ where it cannot tell, and whether
            the preferred response is the longer one.
        question: number of each such pair's.
    """

    values: "array[float]"
    right: "array[float]"
    longer: "array[float]"
    question: "array[int]"

    @classmethod
    def of(cls, made: Annotation) -> Self:
        read, numbers, kind = cls(array("d"), array("d"), array("d"), array("q")), dict[str, int](), KINDS[made.answers]
        for _, fields in parts_of([made.output])[0].rows():
            if isinstance(fields, dict):
                read.values.extend(value for value in kind.values(fields) if value is not None)
                read._judge(kind, fields, numbers)
        return read

    def _judge(self, kind: AnswerKind, fields: dict[str, Any], numbers: dict[str, int]) -> None:
        for label in fields.get("comparisons") or ():
            lead = kind.lead(fields, label["first"], label["second"])
            if label["label"] == "tie" or lead is None:
                continue
            sign = 1 if label["label"] == "first" else -1
            lengths = [text_length(fields["responses"][label[side]]) for side in ("first", "second")]
            self.right.append((1 + np.sign(sign * lead)) / 2)
            self.longer.append((1 + np.sign(sign * (lengths[0] - lengths[1]))) / 2)
            name = fields.get("group") or text_key(fields["prompt"])
            self.question.append(numbers.setdefault(name, len(numbers)))

    def verdict(self) -> str:
        """Return how often the model agrees with the labels of the file, an empty text where it has none."""
        if not self.right:
            return ""
        clusters, right, longer = max(self.question) + 1, np.asarray(self.right), np.asarray(self.longer)
        resampler = Resampler(clusters)
        accuracy = plain(resampler.share(right, self.question))
        gain = plain(resampler.mean(right - longer, self.question))
        return agreement_verdict(
            accuracy, gain, pairs=len(right), longer=float(longer.mean()), few=clusters < FEW_CLUSTERS
        )

    def spread(self, kind: AnswerKind) -> list[PageSection]:
        """Return how the answers are spread; nothing without any."""
        if not self.values:
            return []
        chart = histogram(self.values, title=kind.measure, across=kind.measure, up="how often", ends=kind.ends)
        low, middle, high = np.quantile(self.values, (0.1, 0.5, 0.9))
        return [
            PageSection(
                "How are the answers spread?",
                f"Half of {len(self.values):,} values are below {number(middle)}; four of five lie between "
                f"{number(low)} and {number(high)}. {kind.reading}",
                figures=[Figure(kind.measure[0].upper() + kind.measure[1:], chart)],
            )
        ]


def _failures(file: Path) -> PageSection:
    """Return the reasons of a file of failures, the most frequent first, each with a line where it happened."""
    counted_reasons: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], str] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            failure = json.loads(line)
            reason = failure["code"], failure["message"]
            counted_reasons[reason] += 1
            places.setdefault(reason, str(failure.get("line", failure.get("row", ""))))
    rows = [(f"{count:,}", *reason, places[reason]) for reason, count in counted_reasons.most_common(_REASONS)]
    more = len(counted_reasons) - len(rows)
    return PageSection(
        "What failed, and why",
        tables=[PageTable(("times", "code", "reason", "first line"), rows, (0, 3))],
        small=f"All of them, with their rows: {file.name}{f'; {more} more reasons' if more else ''}.",
    )


def _pairs(pairs: dict[str, int]) -> PageSection:
    rows = [(f"{count:,}", reason) for reason, count in pairs.items() if reason != "pairs"]
    return PageSection("Pairs that are not written", tables=[PageTable(("pairs", "why"), rows, (0,))])


def _usage(usage: dict[str, int]) -> PageSection:
    rows = [(words, f"{usage[name]:,}") for name, words in _USAGE.items() if usage.get(name)]
    return PageSection("What it cost", tables=[PageTable(("", ""), rows, (1,))])


def _origin(made: Annotation) -> PageTable:
    info = made.info
    rows = [("output", str(made.output)), ("model", info.id), ("kind", info.kind), ("identity", info.identity),
            ("fingerprint", info.fingerprint)]  # fmt: skip
    return PageTable(("", ""), [(name, value) for name, value in rows if value])
