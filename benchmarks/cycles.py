"""Cyclic preferences: sets made of several ratings, sets with a known answer, and the cycles in people's votes.

A scalar model can satisfy at most n - 1 of the n preferences of a cycle, 2 of 3 on triples and 4 of 5 on pentads; a
general preference model of dimension 2 can satisfy all, with unit vectors at equal angles: its score is then
sin(2 pi k / n) if they go k times around.

Equal representations are a trap on the way there. Each response is preferred once and rejected once, so the first order
of the loss cancels, and -log sigmoid is convex. With L2-normalised vectors of dimension 2 the point is a local minimum;
without normalisation, or with two blocks, it is a saddle that training leaves. docs/kinds.md has what follows from it.

Source: Zhang et al. (arXiv 2410.02197), §6.1 and Appendix E, whose data was not released.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from paragone_evaluation.readers import Pair, Rating
from paragone_training.data import group_pairs

__all__ = [
    "Cycle",
    "HumanCycles",
    "cycle_pairs",
    "cycles_from_ratings",
    "disjoint_cycles",
    "human_cycles",
    "scalar_ceiling",
    "synthetic_cycles",
    "vector_floor",
]


@dataclass(frozen=True)
class Cycle:
    """Responses to one prompt, each preferred to the next one, and the last one to the first.

    Attributes:
        prompt: text, or messages as JSON.
        responses: in order. n
        criteria: what decides each preference, or empty. n
        messages: True where ``prompt`` is JSON of messages.
        group: of the rows it was made of.
    """

    prompt: str
    responses: tuple[str, ...]
    criteria: tuple[str, ...] = ()
    messages: bool = False
    group: str = ""


@dataclass(frozen=True)
class HumanCycles:
    """Cyclic triples in votes.

    Attributes:
        triangles: triples of responses whose three pairs were all judged, none of them a tie.
        cycles: those of them that are cyclic.
        certain: cycles whose every preference has at least the strength asked for.
        by_chance: cycles among as many triangles if every preference were a coin's toss: a quarter of them.
    """

    triangles: int
    cycles: tuple[Cycle, ...]
    certain: int

    @property
    def by_chance(self) -> float:
        """How many cycles coins would give."""
        return self.triangles / 4

    @property
    def share(self) -> float:
        """Share of the triangles that are cyclic; 0 without any."""
        return len(self.cycles) / self.triangles if self.triangles else 0.0


def cycles_from_ratings(ratings: Iterable[Rating], criteria: Sequence[str]) -> list[Cycle]:
    """Return cycles in which each preference is decided by another criterion.

    With criteria (c1, c2, c3) and responses A, B, C: A is rated higher by c1 than B, B by c2 than C, and C by c3 than
    A. A response is in one cycle at most, so that no two cycles contradict each other.

    Args:
        ratings: several responses per prompt; those without one of the criteria are left out.
        criteria: at least three names, as many as a cycle has responses. The paper has four cycles over three of
            UltraFeedback's, honesty, truthfulness and helpfulness say; all four of them make cycles of four. A name
            may be repeated: (c1, c1, c2) closes a ranking by c1 with one preference by c2.

    Raises:
        ValueError: if there are fewer than three criteria.
    """
    if len(criteria) < 3:
        raise ValueError(f"a cycle needs at least three criteria, not {len(criteria)}: two responses have no cycle")
    prompts: dict[tuple[str, bool], dict[str, Rating]] = {}
    for rating in ratings:
        if all(name in rating.ratings for name in criteria):
            prompts.setdefault((rating.prompt, rating.messages), {}).setdefault(rating.response, rating)
    cycles = []
    for (prompt, messages), rated in prompts.items():
        used = set[str]()
        for chosen in _closing(rated, criteria, (), used):
            used |= set(chosen)
            cycles.append(Cycle(prompt, chosen, tuple(criteria), messages, rated[chosen[0]].group))
    return cycles


def synthetic_cycles(prompts: int, *, length: int = 3, seed: int = 0) -> list[Cycle]:
    """Return one cycle per prompt, with a known answer: ``scalar_ceiling`` and ``vector_floor``.

    The responses are the same words for every prompt in another order, so that no word is better than another.

    Args:
        prompts: how many.
        length: responses of each cycle, 3 to 26.
        seed: of the orders.

    Raises:
        ValueError: if the length is out of range.
    """
    if not 3 <= length <= 26:
        raise ValueError(f"length is {length}; a cycle has 3 to 26 responses here")
    draw = random.Random(seed)  # noqa: S311 - made-up data, not secrets
    cycles = []
    for number in range(prompts):
        names = [chr(ord("a") + index) for index in range(length)]
        draw.shuffle(names)
        responses = tuple(f"option {name} of question {number}" for name in names)
        cycles.append(Cycle(f"Question {number}: which option?", responses, group=f"synthetic-{number}"))
    return cycles


def cycle_pairs(cycles: Iterable[Cycle]) -> list[Pair]:
    """Return the preferences of cycles as pairs of strength 1, every other one with the preferred response second.

    Args:
        cycles: from anywhere.
    """
    pairs = []
    for number, cycle in enumerate(cycles):
        for index, winner in enumerate(cycle.responses):
            loser = cycle.responses[(index + 1) % len(cycle.responses)]
            swapped = bool((number + index) % 2)
            first, second = (loser, winner) if swapped else (winner, loser)
            strength = -1.0 if swapped else 1.0
            pairs.append(
                Pair(
                    cycle.prompt,
                    first,
                    second,
                    strength,
                    messages=cycle.messages,
                    group=cycle.group or cycle.prompt,
                    reason=cycle.criteria[index] if cycle.criteria else None,
                )
            )
    return pairs


def human_cycles(pairs: Iterable[Pair], *, strength: float = 2.0) -> HumanCycles:
    """Return the cyclic triples in people's preferences.

    Votes are noisy, and one wrong preference can close a triangle: take the share as an upper bound on true cycles.
    ``certain`` counts those that no weak preference holds together.

    Args:
        pairs: labelled rows; ties are left out, and of several rows on the same two responses the sum counts.
        strength: least strength of a certain preference.
    """
    triangles, certain = 0, 0
    cycles: list[Cycle] = []
    for group in group_pairs(pairs):
        beats: dict[tuple[int, int], float] = {}
        for label in group.labels:
            for one, two, signed in (
                (label.first, label.second, label.strength),
                (label.second, label.first, -label.strength),
            ):
                beats[one, two] = beats.get((one, two), 0.0) + signed
        after: dict[int, list[int]] = {}
        for (one, two), signed in sorted(beats.items()):
            if one < two and signed:
                after.setdefault(one, []).append(two)
        for one, others in after.items():
            for two, three in itertools.combinations(others, 2):
                if not beats.get((two, three)):
                    continue
                triangles += 1
                order = (one, two, three) if beats[one, two] > 0 else (one, three, two)
                edges = [beats[order[index], order[(index + 1) % 3]] for index in range(3)]
                if min(edges) > 0:
                    certain += min(edges) >= strength
                    texts = tuple(group.responses[index] for index in order)
                    cycles.append(Cycle(group.pair.prompt, texts, (), group.pair.messages, group.pair.group))
    return HumanCycles(triangles, tuple(cycles), certain)


def disjoint_cycles(cycles: Iterable[Cycle]) -> list[Cycle]:
    """Return cycles that share no response to one prompt, the first come first.

    On these the bounds are exact: no preference belongs to two cycles, and none contradicts another.

    Args:
        cycles: from anywhere.
    """
    used = dict[tuple[str, bool], set[str]]()
    kept = []
    for cycle in cycles:
        seen = used.setdefault((cycle.prompt, cycle.messages), set())
        if not seen & set(cycle.responses):
            seen |= set(cycle.responses)
            kept.append(cycle)
    return kept


def scalar_ceiling(length: int) -> float:
    """Return the largest accuracy that any scalar model can have on cycles: (n - 1) / n.

    Args:
        length: responses of a cycle.

    >>> round(scalar_ceiling(3), 3)
    0.667
    """
    return (length - 1) / length


def vector_floor(length: int, *, temperature: float = 0.1) -> float:
    """Return the smallest loss of a normalised general preference model on cycles, in nats.

        -log sigmoid(max_k sin(2 pi k / n) / temperature)

    It is that of every even dimension: the scores of a cycle are a quadratic form whose largest eigenvalue the maximum
    is, and -log sigmoid is convex. Dimension 2 reaches it.

    Args:
        length: responses of a cycle.
        temperature: of the model.

    >>> round(vector_floor(3), 7)
    0.0001733
    """
    largest = max(math.sin(2 * math.pi * turns / length) for turns in range(1, length))
    return math.log1p(math.exp(-largest / temperature))


def _closing(
    rated: Mapping[str, Rating], criteria: Sequence[str], chosen: tuple[str, ...], used: Set[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the cycles that begin with ``chosen``, leaving out responses that are used by the time they come up.

    Each preference is checked as soon as both responses are there: all orders of five out of 26 responses are eight
    million, and almost none of them begins like a cycle.
    """
    if used & set(chosen):
        return
    place = len(chosen)
    if place == len(criteria):
        if rated[chosen[-1]].ratings[criteria[-1]] > rated[chosen[0]].ratings[criteria[-1]]:
            yield chosen
        return
    for text, rating in rated.items():
        if text in chosen:
            continue
        if place and rated[chosen[-1]].ratings[criteria[place - 1]] <= rating.ratings[criteria[place - 1]]:
            continue
        yield from _closing(rated, criteria, (*chosen, text), used)
