"""Other prompts around a text: what a network tells of a response must not hang on the few training prompts."""

import random
from collections.abc import Sequence
from itertools import takewhile

from paragone_training.scratch.teacher import Frame, Lesson

__all__ = ["Rewording"]

_OWN_PROMPT = 0.2
"""Share of texts that keep their lesson's prompt."""
_PROMPT_TOKENS = (3, 40)
"""Shortest and longest made-up prompt."""


class Rewording:
    """Puts a made-up prompt around most texts: a crop of a random response, inside the template.

    A comparison does not notice what a network adds to all responses of a prompt; a rating does. With a few training
    prompts a network learns an offset for each, and rates under a new prompt by accident.

    Args:
        lessons: their frames show the template: what all begin and end with. A single prompt shows none.
    """

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        befores = [lesson.frame.before for lesson in lessons]
        self._first = _alike(befores)
        self._last = min(_alike([before[::-1] for before in befores]), min(map(len, befores)) - self._first)
        self._pool = [response for lesson in lessons for response in lesson.responses if len(response)]

    def __call__(self, frame: Frame, draw: random.Random) -> Frame:
        """Return the frame, or one with another prompt.

        Args:
            frame: of a lesson.
            draw: source of chance.
        """
        if draw.random() < _OWN_PROMPT:
            return frame
        source = draw.choice(self._pool)
        start = draw.randint(0, max(0, len(source) - 2))
        prompt = source[start : start + draw.randint(*_PROMPT_TOKENS)]
        end = len(frame.before) - self._last
        before = (*frame.before[: self._first], *prompt, *frame.before[end:])
        return Frame(before, frame.after, frame.prompt_length + len(before) - len(frame.before))


def _alike(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
