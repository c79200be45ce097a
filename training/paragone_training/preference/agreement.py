"""How well a network agrees with labelled pairs, and with the plainest competitor: prefer the longer response."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paragone_models.text.reader import Reading
from paragone_training.data.batches import assemble
from paragone_training.data.groups import PromptGroup
from paragone_training.preference.objective import Objective

__all__ = ["LENGTHS_MATCHED_WITHIN", "Judged", "Summary", "judge", "represented", "summarise"]

LENGTHS_MATCHED_WITHIN = 0.15
"""Two responses are length-matched if their lengths differ by at most this share of the longer one."""


@dataclass(frozen=True)
class Judged:
    """What a model said about decided pairs, beside what people said; all arrays are [P].

    Attributes:
        logit: log-odds that the preferred response is preferred.
        strength: how strongly people preferred it, positive.
        length_right: 1 where the preferred response is the longer one, ½ where both are as long.
        matched: True where lengths are within ``LENGTHS_MATCHED_WITHIN``.
        question: which question a pair belongs to.
    """

    logit: NDArray[np.float64]
    strength: NDArray[np.float64]
    length_right: NDArray[np.float64]
    matched: NDArray[np.bool_]
    question: NDArray[np.str_]

    @property
    def right(self) -> NDArray[np.float64]:
        """1 where the model agrees, ½ where it cannot tell."""
        return np.where(self.logit == 0, 0.5, (self.logit > 0).astype(float))


@dataclass(frozen=True)
class Summary:
    """Means over decided pairs.

    Attributes:
        pairs: how many.
        accuracy: share on which the model agrees with people; a logit of 0 counts ½.
        negative_log_likelihood: of people's preference, in nats.
        margin: logit in favour of the preferred response.
        length_accuracy: of "prefer the longer one" on the same pairs.
        matched_pairs: how many are length-matched.
        matched_accuracy: the model's on those; NaN where there are none.
    """

    pairs: int
    accuracy: float
    negative_log_likelihood: float
    margin: float
    length_accuracy: float
    matched_pairs: int
    matched_accuracy: float

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the numbers by name, for a log.

        Args:
            prefix: put before every name.
        """
        return {f"{prefix}_{name}": float(value) for name, value in asdict(self).items()}


def judge(
    network: nn.Module,
    objective: Objective,
    groups: Sequence[PromptGroup],
    readings: Sequence[Sequence[Reading]],
    *,
    budget: int,
    pad_id: int,
) -> Judged:
    """Return what a network says about every decided pair; each distinct response passes it once.

    Args:
        network: in any mode; it is put back into that.
        objective: turns representations into logits.
        groups: prompts with their responses and labels.
        readings: what the model sees of them.
        budget: responses of one forward pass.
        pad_id: of the tokenizer.
    """
    rows: list[tuple[float, float, float, bool, str]] = []
    mode = network.training
    network.eval()
    with torch.no_grad():
        for group, read in zip(groups, readings, strict=True):
            pairs = torch.tensor([(label.first, label.second) for label in group.labels])
            logits = objective.logits(represented(network, read, budget=budget, pad_id=pad_id), pairs).tolist()
            rows += _rows(group, logits)
    network.train(mode)
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return Judged(
        np.array(columns[0], dtype=np.float64),
        np.array(columns[1], dtype=np.float64),
        np.array(columns[2], dtype=np.float64),
        np.array(columns[3], dtype=np.bool_),
        np.array(columns[4], dtype=np.str_),
    )


def summarise(judged: Judged) -> Summary:
    """Return the means.

    Args:
        judged: at least one pair.

    Raises:
        ValueError: if there is no decided pair.
    """
    if not len(judged.logit):
        raise ValueError("there is no decided pair to evaluate on")
    return Summary(
        pairs=len(judged.logit),
        accuracy=float(judged.right.mean()),
        negative_log_likelihood=float(np.logaddexp(0.0, -judged.logit).mean()),
        margin=float(judged.logit.mean()),
        length_accuracy=float(judged.length_right.mean()),
        matched_pairs=int(judged.matched.sum()),
        matched_accuracy=float(judged.right[judged.matched].mean()) if judged.matched.any() else float("nan"),
    )


def represented(network: nn.Module, readings: Sequence[Reading], *, budget: int, pad_id: int) -> torch.Tensor:
    """Return the representations of what a network reads, on the CPU, in order.

    Args:
        network: in whatever mode it is.
        readings: at least one.
        budget: responses of one forward pass.
        pad_id: of the tokenizer.

    Returns:
        Representations. [n, d]
    """
    device = next(network.parameters()).device
    order = sorted(range(len(readings)), key=lambda index: len(readings[index].token_ids))
    parts = []
    for start in range(0, len(order), budget):
        chosen = [readings[index] for index in order[start : start + budget]]
        batch = assemble([one.token_ids for one in chosen], [one.reads for one in chosen], [], pad_id=pad_id)
        parts.append(
            network(
                input_ids=batch["input_ids"].to(device),
                reads=batch["reads"].to(device),
                attention_mask=batch["attention_mask"].to(device),
            ).cpu()
        )
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back]


def _rows(group: PromptGroup, logits: Sequence[float]) -> Iterator[tuple[float, float, float, bool, str]]:
    for label, logit in zip(group.labels, logits, strict=True):
        if not label.strength:
            continue
        preferred, other = (label.first, label.second) if label.strength > 0 else (label.second, label.first)
        one, two = len(group.responses[preferred]), len(group.responses[other])
        yield (
            logit if label.strength > 0 else -logit,
            abs(label.strength),
            0.5 if one == two else float(one > two),
            abs(one - two) <= LENGTHS_MATCHED_WITHIN * max(one, two),
            group.pair.question,
        )
