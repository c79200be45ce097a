"""How well a network agrees with people on held-out rows: on pairs, beside the rule "longer is better", and on ratings.

Shapes: n responses, P pairs, A attributes, d length of a representation.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paragone_evaluation.measures.bootstrap import FEW_CLUSTERS, Estimate, Resampler
from paragone_evaluation.readers import prompt_name
from paragone_evaluation.report.verdict import agreement_verdict
from paragone_evaluation.results import plain
from paragone_models.text.reader import Reading
from paragone_training.data import PromptGroup, assemble
from paragone_training.errors import DivergedError
from paragone_training.preference.fidelity import Fidelity, fidelity
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings import RatingErrors, rating_errors

__all__ = ["Examined", "HeldOut", "Judged", "Orders", "Summary", "examined_pairs", "judge", "judged", "represented"]

# Two responses are length-matched if their lengths in characters differ by at most this share of the longer one.
_LENGTHS_MATCHED_WITHIN = 0.15
# Responses of one forward pass, where no gradient is kept.
_BUDGET = 64


@dataclass(frozen=True)
class Judged:
    """What a model said about decided pairs, beside what people said; all arrays are [P].

    Attributes:
        logit: log-odds that the preferred response is preferred.
        strength: how strongly people preferred it, positive.
        length_right: 1 where the preferred response is the longer one, ½ where both are as long.
    """

    logit: NDArray[np.float64]
    strength: NDArray[np.float64]
    length_right: NDArray[np.float64]
    matched: NDArray[np.bool_]
    question: NDArray[np.str_]

    @property
    def right(self) -> NDArray[np.float64]:
        """1 where the model agrees, ½ where it cannot tell."""
        # A model that says the same of both is no worse than a coin.
        return np.where(self.logit == 0, 0.5, (self.logit > 0).astype(float))

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Return accuracy, and what it is above that of "prefer the longer one", with 95 % intervals over questions."""
        names, where = np.unique(self.question, return_inverse=True)
        resampler = Resampler(len(names))
        return resampler.share(self.right, where), resampler.mean(self.right - self.length_right, where)

    def verdict(self, whom: str = "people") -> str:
        """Return in a sentence without its subject how often the model agrees, and whether that is any good."""
        accuracy, gain = self.estimates()
        longer = float(self.length_right.mean())
        return agreement_verdict(
            plain(accuracy),
            plain(gain),
            pairs=len(self.logit),
            longer=longer,
            few=len(np.unique(self.question)) < FEW_CLUSTERS,
            whom=whom,
        )

    def summary(self) -> "Summary":
        """Return the means over at least one pair.

        Raises:
            ValueError: if there is no decided pair.
        """
        if not len(self.logit):
            raise ValueError("there is no decided pair to evaluate on")
        return Summary(
            pairs=len(self.logit),
            accuracy=float(self.right.mean()),
            negative_log_likelihood=float(np.logaddexp(0.0, -self.logit).mean()),
            margin=float(self.logit.mean()),
            length_accuracy=float(self.length_right.mean()),
            matched_pairs=int(self.matched.sum()),
            matched_accuracy=float(self.right[self.matched].mean()) if self.matched.any() else float("nan"),
        )


@dataclass(frozen=True)
class Summary:
    """Means over decided pairs.

    Attributes:
        accuracy: share on which the model agrees with people; a logit of 0 counts ½.
        negative_log_likelihood: of people's preference, in nats.
        margin: logit in favour of the preferred response.
        length_accuracy: of "prefer the longer one" on the same pairs.
        matched_accuracy: the model's on the length-matched pairs; NaN where there are none.
    """

    pairs: int
    accuracy: float
    negative_log_likelihood: float
    margin: float
    length_accuracy: float
    matched_pairs: int
    matched_accuracy: float

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the numbers by name, for a log."""
        return {f"{prefix}_{name}": float(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Orders:
    """What the order of a pair does to a model that reads both responses at once.

    Attributes:
        agree: share of the pairs of which both orders name the same winner.
        first_shown: probability that the response shown first is given, a mean over both orders; ½ without bias.
    """

    agree: float
    first_shown: float


@dataclass(frozen=True)
class Examined:
    """What a network said about held-out rows: about the pairs, and how far its ratings are off; None without any.

    Attributes:
        fidelity: of a model that was taught by another one.
        orders: of a model that reads both responses at once.
    """

    judged: Judged | None = None
    errors: RatingErrors | None = None
    fidelity: Fidelity | None = None
    orders: Orders | None = None

    def loses_to(self, other: "Examined") -> bool:
        """Return whether agreement is lower, or, where nothing was compared, the ratings are farther off.

        A student loses if it is farther from its teacher.
        """
        if self.fidelity and other.fidelity:
            return self.fidelity.divergence > other.fidelity.divergence
        if self.judged and other.judged:
            ours, theirs = self.judged.summary(), other.judged.summary()
            return (ours.accuracy, -ours.negative_log_likelihood) < (theirs.accuracy, -theirs.negative_log_likelihood)
        if self.errors and other.errors:
            return sum(self.errors.error) > sum(other.errors.error)
        return False

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the numbers by name, for a log; a mean over nothing is left out."""
        rated = self.errors.metrics(prefix) if self.errors else {}
        named = rated | (self.judged.summary().metrics(prefix) if self.judged else {})
        named |= self.fidelity.metrics(prefix) if self.fidelity else {}
        if self.orders:
            named |= {f"{prefix}_orders_agree": self.orders.agree, f"{prefix}_first_shown": self.orders.first_shown}
        return {name: value for name, value in named.items() if math.isfinite(value)}


class HeldOut:
    """Held-out rows, read once, and what a network says about them."""

    def __init__(
        self,
        groups: Sequence[PromptGroup],
        readings: Sequence[Sequence[Reading]],
        attributes: Sequence[str],
        pad_id: int,
    ) -> None:
        rows = list(zip(groups, readings, strict=True))
        self._labelled = [(group, seen) for group, seen in rows if group.labels]
        self._rated = [(group, seen) for group, seen in rows if group.rated]
        self._attributes, self._pad_id = attributes, pad_id

    def __bool__(self) -> bool:
        return bool(self._labelled or self._rated)

    def examined(self, network: nn.Module, objective: Objective) -> Examined:
        """Return what the network says; a model that cannot compare yet says nothing about pairs."""
        # Both may be absent: a kind that rates alone has no pairs, and a reward has no ratings.
        compared, errors = Examined(), None
        if self._labelled and objective.compares:
            groups, readings = zip(*self._labelled, strict=True)
            outputs = _represented_groups(network, readings, pad_id=self._pad_id)
            compared = examined_pairs(groups, _logits(objective, groups, outputs), distils=objective.distils)
            if objective.symmetrise is not None:
                compared = replace(compared, orders=_orders(objective, groups, outputs))
        if self._rated:
            # A helpsteer representation begins with its reward; the attributes are its last entries.
            values = [represented(network, seen, pad_id=self._pad_id).double().numpy() for _, seen in self._rated]
            ratings = np.array([row for group, _ in self._rated for row in group.ratings], dtype=np.float64)
            predicted = np.concatenate(values)[:, -len(self._attributes) :]
            errors = rating_errors(predicted, ratings, self._attributes)
        return replace(compared, errors=errors)


def examined_pairs(
    groups: Sequence[PromptGroup], logits: Sequence[Sequence[float]], *, distils: bool = False
) -> Examined:
    """Return what log-odds of every label of every group say beside the labels; nothing where none is decided.

    Args:
        distils: the labels are another model's probabilities.
    """
    result = judged(groups, logits)
    taught = fidelity(groups, logits) if distils else None
    return Examined(result if len(result.logit) else None, fidelity=taught)


def judge(
    network: nn.Module,
    objective: Objective,
    groups: Sequence[PromptGroup],
    readings: Sequence[Sequence[Reading]],
    *,
    pad_id: int,
    budget: int = _BUDGET,
) -> Judged:
    """Return what a network says about every decided pair; each distinct response passes it once.

    Args:
        network: in any mode; it is put back into that.
    """
    return judged(
        groups, _logits(objective, groups, _represented_groups(network, readings, pad_id=pad_id, budget=budget))
    )


def _represented_groups(
    network: nn.Module, readings: Sequence[Sequence[Reading]], *, pad_id: int, budget: int = _BUDGET
) -> list[torch.Tensor]:
    """Return the representations of each group's responses; each passes once, however many pairs it is part of."""
    whole = represented(network, [one for seen in readings for one in seen], pad_id=pad_id, budget=budget)
    return list(whole.split([len(seen) for seen in readings]))


def _label_pairs(group: PromptGroup) -> torch.Tensor:
    return torch.tensor([(label.first, label.second) for label in group.labels], dtype=torch.long).reshape(-1, 2)


def _logits(objective: Objective, groups: Sequence[PromptGroup], values: Sequence[torch.Tensor]) -> list[list[float]]:
    return [objective.logits(rows, _label_pairs(group)).tolist() for group, rows in zip(groups, values, strict=True)]


def _orders(objective: Objective, groups: Sequence[PromptGroup], values: Sequence[torch.Tensor]) -> Orders:
    both = torch.cat(
        [objective.orders(rows, _label_pairs(group)) for group, rows in zip(groups, values, strict=True)], 1
    )
    shown = torch.sigmoid(torch.stack([both[0], -both[1]]).double() / objective.temperature)
    return Orders(float((both[0].sign() == both[1].sign()).double().mean()), float(shown.mean()))


def judged(groups: Sequence[PromptGroup], logits: Sequence[Sequence[float]]) -> Judged:
    """Return log-odds of every label of every group beside what people said; ties are left out."""
    rows = [row for group, values in zip(groups, logits, strict=True) for row in _rows(group, values)]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return Judged(
        np.array(columns[0], dtype=np.float64),
        np.array(columns[1], dtype=np.float64),
        np.array(columns[2], dtype=np.float64),
        np.array(columns[3], dtype=np.bool_),
        np.array(columns[4], dtype=np.str_),
    )


@torch.no_grad()
def represented(network: nn.Module, readings: Sequence[Reading], *, pad_id: int, budget: int = _BUDGET) -> torch.Tensor:
    """Return the representations of what a network reads, on the CPU, in order, without gradients or dropout, [n, d].

    Args:
        network: in any mode; it is put back into that.

    Raises:
        DivergedError: if one of them is NaN or infinite.
    """
    device = next(network.parameters()).device
    # Readings of like length pass together: most of a batch would be padding otherwise.
    order = sorted(range(len(readings)), key=lambda index: len(readings[index].token_ids))
    parts = []
    with _evaluating(network):
        for start in range(0, len(order), budget):
            chosen = [readings[index] for index in order[start : start + budget]]
            batch = assemble(
                [reading.token_ids for reading in chosen], [reading.reads for reading in chosen], [], pad_id=pad_id
            )
            parts.append(
                network(
                    input_ids=batch["input_ids"].to(device),
                    reads=batch["reads"].to(device),
                    attention_mask=batch["attention_mask"].to(device),
                ).cpu()
            )
    whole = torch.cat(parts)
    if not bool(torch.isfinite(whole).all()):
        # Compared with 0, NaN would count as a wrong choice.
        raise DivergedError("the model computes NaN or infinity for rows that are read: no measure means anything")
    # The inverse of the order, so that results stand where their readings stood.
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return whole[back]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)


def _rows(group: PromptGroup, logits: Sequence[float]) -> Iterator[tuple[float, float, float, bool, str]]:
    pair = group.pair
    # The name that evaluation has for it: intervals resample questions in the order of their names, and are the same.
    own = pair.question == pair.prompt
    question = prompt_name(pair.prompt_messages, json.loads(pair.tools or "null")) if own else pair.question
    for label, logit in zip(group.labels, logits, strict=True):
        if not label.strength:
            continue
        # From here on the preferred response comes first, and its win is what a logit measures.
        sign = 1 if label.strength > 0 else -1
        preferred, other = (len(group.responses[index]) for index in (label.first, label.second)[::sign])
        yield (
            sign * logit,
            abs(label.strength),
            0.5 if preferred == other else float(preferred > other),
            abs(preferred - other) <= _LENGTHS_MATCHED_WITHIN * max(preferred, other),
            question,
        )
