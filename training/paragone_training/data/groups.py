"""Pairs by prompt: the distinct responses of each prompt, and the labels between them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from paragone_training.data.pairs import Pair

__all__ = ["Label", "PromptGroup", "group_pairs"]


@dataclass(frozen=True, slots=True)
class Label:
    """One judgement between two responses of a group.

    Attributes:
        first: index of the response whose win is measured.
        second: index of the other one.
        strength: −3..3, positive where the first was preferred.
    """

    first: int
    second: int
    strength: float


@dataclass
class PromptGroup:
    """A prompt, its distinct responses and every judgement between them.

    Attributes:
        pair: the first row of the group, for its prompt and names.
        responses: distinct texts, in order of appearance.
        labels: by index into ``responses``.
    """

    pair: Pair
    responses: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


def group_pairs(pairs: Iterable[Pair], *, ties: bool = False) -> list[PromptGroup]:
    """Return the pairs by prompt, each distinct response once.

    Args:
        pairs: rows, in any order.
        ties: keep judgements of strength 0.

    Returns:
        Groups in order of appearance; none without a label. Rows whose two responses are the same text say nothing
        about the text and are left out.
    """
    groups: dict[tuple[str, bool], PromptGroup] = {}
    indices: dict[tuple[str, bool], dict[str, int]] = {}
    for pair in pairs:
        if (not pair.strength and not ties) or pair.first == pair.second:
            continue
        key = (pair.prompt, pair.messages)
        group = groups.setdefault(key, PromptGroup(pair))
        index = indices.setdefault(key, {})
        for text in (pair.first, pair.second):
            if text not in index:
                index[text] = len(group.responses)
                group.responses.append(text)
        group.labels.append(Label(index[pair.first], index[pair.second], pair.strength))
    return list(groups.values())
