"""From a round's tables to labelled pairs: unfinished responses, both orders, estimators, ties.

    targets.parquet     one row per pair: prompt_id, chosen, rejected (numbers of responses), preference, and for sppo
                        and gpo the mean win rate or score of each of the two

K is the number of responses of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paragone_training.policy.rounds import Answer, Response
from paragone_training.policy.rows.files import read_table, write_table
from paragone_training.policy.sampling.in_process import stream
from paragone_training.policy.sections import MethodName, SamplingSection, TargetSection
from paragone_training.policy.targets import estimators

__all__ = ["LabelledPair", "group_table", "labelled_pairs", "read_targets", "tables_of", "write_targets"]

_SMALLEST = 1e-9
"""Probabilities are kept this far from 0 and 1 before a logit is taken of them."""

_TARGETS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("preference", pa.float64()),
        ("chosen_target", pa.float64()),
        ("rejected_target", pa.float64()),
    ]
)


@dataclass(frozen=True)
class LabelledPair:
    """One row of targets.parquet."""

    prompt_id: str
    chosen: int
    rejected: int
    preference: float
    chosen_target: float
    rejected_target: float


def group_table(
    raw: NDArray[np.float64], finished: Sequence[bool], *, rule: estimators.Rule, unfinished: str, penalty: float
) -> NDArray[np.float64]:
    """Return the table that targets are made of.

        penalise: logit P_ij - penalty (u_i - u_j),   u = 1 for an unfinished response

    Args:
        raw: the oracle's answers to both orders. [K, K]
        finished: whether each response has an end. K
        rule: how the two orders are combined.
        unfinished: ``drop`` makes their comparisons missing, ``penalise`` shifts them, ``keep`` leaves them.
        penalty: in logits.

    Returns:
        P with P + P^T = 1, NaN where missing. [K, K]

    Raises:
        ValueError: if the answers are no probabilities.
    """
    table = estimators.symmetrised(raw, rule=rule)
    over = np.asarray(finished, dtype=np.bool_)
    if unfinished == "drop":
        table[~over, :] = np.nan
        table[:, ~over] = np.nan
        np.fill_diagonal(table, 0.5)
    elif unfinished == "penalise":
        share = np.exp(-penalty * ~over)
        won, lost = table * share[:, None], table.T * share[None, :]
        table = won / (won + lost)
        np.fill_diagonal(table, 0.5)
    return table


def tables_of(
    responses: Sequence[Response], answers: Sequence[Answer], sampling: SamplingSection, rule: estimators.Rule
) -> dict[str, NDArray[np.float64]]:
    """Return the tables of a round by prompt id; each [K, K].

    Args:
        responses: of the round.
        answers: of its oracle.
        sampling: what becomes of unfinished responses.
        rule: how the two orders are combined.
    """
    finished: dict[str, list[bool]] = {}
    for response in responses:
        finished.setdefault(response.prompt_id, []).append(response.finished)
    return {
        answer.prompt_id: group_table(
            answer.raw,
            finished[answer.prompt_id],
            rule=rule,
            unfinished=sampling.unfinished,
            penalty=sampling.penalty,
        )
        for answer in answers
    }


def labelled_pairs(
    tables: dict[str, NDArray[np.float64]], method: MethodName, section: TargetSection, *, names: tuple[object, ...]
) -> list[LabelledPair]:
    """Return the pairs that are trained on.

    Args:
        tables: by prompt id. each [K, K]
        method: decides what a target is.
        section: which pairs and which estimator.
        names: what the random numbers of sampled labels are made of.
    """
    with_self = section.win_rates == "with-self"
    rows = []
    for prompt_id, table in tables.items():
        found = estimators.pairs(
            table,
            selection=section.pairs,
            labels="soft" if method in ("sppo", "gpo") else section.labels,
            ties=section.ties,
            include_self=with_self,
            generator=stream(*names, "labels", prompt_id),
        )
        values = _own_targets(table, method, include_self=with_self)
        rows += [
            LabelledPair(prompt_id, int(won), int(lost), float(preference), float(values[won]), float(values[lost]))
            for won, lost, preference in zip(found.chosen, found.rejected, found.preference, strict=True)
        ]
    return rows


def write_targets(path: Path, rows: Sequence[LabelledPair]) -> None:
    """Write targets.parquet.

    Args:
        path: the file.
        rows: of it.

    Raises:
        DiskFullError: if there is no room.
    """
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _TARGETS.names}
    write_table(path, columns, _TARGETS)


def read_targets(path: Path) -> list[LabelledPair]:
    """Return the rows of targets.parquet.

    Args:
        path: the file.

    Raises:
        RunError: if it cannot be read.
    """
    columns = read_table(path)
    return [LabelledPair(*row) for row in zip(*(columns[name] for name in _TARGETS.names), strict=True)]


def _own_targets(table: NDArray[np.float64], method: MethodName, *, include_self: bool) -> NDArray[np.float64]:
    if method == "sppo":
        return estimators.win_rates(table, include_self=include_self)
    if method == "gpo":
        clipped = np.clip(table, _SMALLEST, 1.0 - _SMALLEST)
        scores = (np.log(clipped) - np.log(clipped.T)) * (1.0 - np.eye(len(table)))
        return estimators.mean_scores(scores, include_self=include_self)
    return np.zeros(len(table))
