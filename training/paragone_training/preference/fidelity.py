"""How much a student keeps of the model that labelled its rows: winners, probabilities and cycles, on held-out groups.

Shapes: K responses of a group.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from paragone_evaluation.readers import STRONGEST
from paragone_training.data import PromptGroup

__all__ = ["Fidelity", "fidelity"]


@dataclass(frozen=True)
class Fidelity:
    """Means over the comparisons that a teacher made.

    Attributes:
        agreement: share of the teacher's winners that are the student's; a logit of 0 counts ½. NaN where all are ties.
        entropy: of the teacher's probabilities, in nats: the least cross-entropy that any student can have.
        divergence: KL divergence of the student from the teacher, in nats, which is the cross-entropy above that.
        chance: KL divergence of a coin from the teacher, in nats.
        cycles: triples of responses that beat each other in a circle by the teacher.
        cycles_kept: those that do so in the same direction by the student.
        triples: of which the teacher compared all three pairs.
    """

    comparisons: int
    groups: int
    agreement: float
    entropy: float
    divergence: float
    chance: float
    cycles: int
    cycles_kept: int
    triples: int

    @property
    def kept(self) -> float:
        """Share of the teacher's information that the student has: 0 for a coin, 1 for the teacher itself."""
        return 1 - self.divergence / self.chance if self.chance else math.nan

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the numbers by name, for a log."""
        values = {"agreement": self.agreement, "divergence": self.divergence, "kept": self.kept}
        return {f"{prefix}_teacher_{name}": value for name, value in values.items()}

    def describe(self) -> str:
        """Return what is kept, in one line."""
        cycles = f", {self.cycles_kept} of its {self.cycles} cycles" if self.cycles else ""
        return (
            f"on {self.comparisons} held-out comparisons in {self.groups} groups the student has {self.agreement:.4f} "
            f"of the teacher's winners, {self.kept:.4f} of its information ({self.divergence:.4f} nats from it, a coin "
            f"{self.chance:.4f}){cycles}"
        )

    def table(self) -> Iterator[str]:
        """Yield the numbers as lines of a table for a card."""
        share = f"{self.cycles_kept} of {self.cycles}" if self.cycles else "none to keep"
        yield f"{self.comparisons} comparisons in {self.groups} groups, none of them learned from."
        yield ""
        yield "| | this model | a coin |"
        yield "|---|---|---|"
        yield f"| the teacher's winner | {self.agreement:.3f} | 0.500 |"
        yield f"| distance from the teacher's probability (KL, nats) | {self.divergence:.4f} | {self.chance:.4f} |"
        yield f"| share of the teacher's information | {self.kept:.3f} | 0 |"
        yield f"| cycles of the teacher's, of {self.triples} triples | {share} | |"
        yield ""
        yield (
            f"The teacher's own probabilities have an entropy of {self.entropy:.4f} nats, which no student can go "
            "below; the cross-entropy with them is that plus the distance."
        )


def fidelity(groups: Sequence[PromptGroup], logits: Sequence[Sequence[float]]) -> Fidelity | None:
    """Return how a student's log-odds compare with the probabilities that label groups; None without a label.

    Args:
        logits: of each label of each group, that its first response is preferred.
    """
    student = np.array([value for values in logits for value in values], dtype=np.float64)
    if not len(student):
        return None
    teacher = np.array([_probability(label.strength) for group in groups for label in group.labels])
    entropy = entr(teacher) + entr(1 - teacher)
    crossed = np.logaddexp(0.0, student) - teacher * student
    decided = teacher != 0.5
    right = np.where(student == 0, 0.5, (student > 0) == (teacher > 0.5))[decided]
    prompts = _by_prompt(groups, logits)
    cycles = np.array([_cycles(edges) for edges in prompts]).sum(axis=0)
    return Fidelity(
        comparisons=len(student),
        groups=len(prompts),
        agreement=float(right.mean()) if decided.any() else math.nan,
        entropy=float(entropy.mean()),
        divergence=float((crossed - entropy).mean()),
        chance=float(math.log(2) - entropy.mean()),
        cycles=int(cycles[0]),
        cycles_kept=int(cycles[1]),
        triples=int(cycles[2]),
    )


def _probability(strength: float) -> float:
    # Outside [0, 1] by rounding alone.
    return min(max(0.5 + strength / (2 * STRONGEST), 0.0), 1.0)


class _Edge(NamedTuple):
    first: str
    second: str
    teacher: float
    student: float


def _by_prompt(groups: Sequence[PromptGroup], logits: Sequence[Sequence[float]]) -> list[list[_Edge]]:
    """Return the comparisons of each prompt; a model that reads pairs has a group of each of them."""
    prompts: dict[tuple[str, bool, str], list[_Edge]] = {}
    for group, values in zip(groups, logits, strict=True):
        for label, logit in zip(group.labels, values, strict=True):
            edges = prompts.setdefault((group.pair.prompt, group.pair.messages, group.pair.tools), [])
            edges.append(_Edge(group.responses[label.first], group.responses[label.second], label.strength, logit))
    return list(prompts.values())


def _cycles(edges: Sequence[_Edge]) -> tuple[int, int, int]:
    """Return the teacher's cyclic triples, those of the student's among them, and all triples that were compared."""
    places = {text: at for at, text in enumerate(dict.fromkeys(text for edge in edges for text in edge[:2]))}
    compared, teacher, student = (np.zeros((len(places), len(places)), dtype=np.int64) for _ in range(3))
    for edge in edges:
        first, second = places[edge.first], places[edge.second]
        _mark(teacher, first, second, edge.teacher)
        _mark(student, first, second, edge.student)
        compared[first, second] = compared[second, first] = 1
    return _triangles(teacher), _triangles(teacher * student), _triangles(compared) // 2


def _mark(beats: NDArray[np.int64], first: int, second: int, lead: float) -> None:
    if lead:
        winner, loser = (first, second) if lead > 0 else (second, first)
        beats[winner, loser] = 1


def _triangles(edges: NDArray[np.int64]) -> int:
    """Return the directed triangles of a graph: each is walked from three corners."""
    return int(np.trace(np.linalg.matrix_power(edges, 3))) // 3
