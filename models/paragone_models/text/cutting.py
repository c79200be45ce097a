"""Cut a conversation that is too long: whole messages first, then texts from their left, and never half an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paragone_models.errors import TextError
from paragone_models.images import IMAGE_MARK, Image
from paragone_models.text.rendering import StoppedError
from paragone_models.text.template import ChatTemplate, Message

__all__ = ["Cutter", "Draft"]

# Where a template wants whole turns, how many cuts are tried beyond the one that would do.
_CUTS_TRIED = 8
# Inside a message, how many steps towards the cut that is just enough.
_STEPS = 8
# Processor time for which a template may render what is left of one conversation, again and again, while it is cut.
_CUTTING_S = 1.0


@dataclass(slots=True)
class Draft:
    """A conversation on its way: messages normalised, text rendered, tokens counted.

    Attributes:
        prompt_text: the prompt alone, or why it has no text; None where it was not rendered yet.
        steps: how many steps its response has, for a process model; else 0.
        images: those of all its messages, by the numbers in their marks.
    """

    prompt: tuple[dict[str, Any], ...]
    response: tuple[dict[str, Any], ...]
    tools: tuple[Message, ...] | None
    text: str
    token_ids: list[int]
    prompt_text: str | TextError | None = None
    prompt_key: bytes = b""
    steps: int = 0
    images: tuple[Image, ...] = ()


class Cutter:
    """Cut drafts to what one model reads.

    Args:
        max_length: most tokens.
        tokens: gives those of a text of some messages.
    """

    def __init__(self, template: ChatTemplate, max_length: int, tokens: Callable[[Draft], list[int]]) -> None:
        self._template = template
        self._max_length = max_length
        self._tokens = tokens
        self._until_s = 0.0

    def fit(self, draft: Draft) -> Draft:
        """Return the draft with its prompt cut from the left until it fits.

        Raises:
            TextError: ``response_too_long`` if even an empty prompt leaves too many tokens.
        """
        self._until_s = self._template.turn.used_s + _CUTTING_S
        # Whole messages first: what is left of a message is read as if it were all of it.
        fitted = self._drop_messages(draft)
        if len(fitted.token_ids) > self._max_length:
            fitted = self._cut_messages(fitted)
        if len(fitted.token_ids) > self._max_length:
            raise TextError(
                "response_too_long",
                f"the response needs {len(fitted.token_ids)} tokens without any text of its prompt (of which "
                f"{len(fitted.prompt)} messages are kept: system messages and the last user message) and the limit is "
                f"{self._max_length}: shorten it, or serve the model with a larger max_length",
            )
        return fitted

    def _drop_messages(self, draft: Draft) -> Draft:
        """Drop whole messages from the left, as few as make it fit, but not a system or the last user message."""
        # A system message says how to answer, and the last user message is what is answered: they go last.
        users = [index for index, message in enumerate(draft.prompt) if message["role"] == "user"]
        kept = {index for index, message in enumerate(draft.prompt) if message["role"] in ("system", "developer")}
        kept.update(users[-1:])
        droppable = [index for index in range(len(draft.prompt)) if index not in kept]
        best, low, high = draft, 1, len(droppable)
        while low <= high:  # bisection: a long chat is not rendered and tokenised once for every message
            middle = (low + high) // 2
            count, shorter = self._without(draft, droppable, middle)
            if shorter is None:  # nothing from here on renders
                high = middle - 1
            elif len(shorter.token_ids) <= self._max_length:
                best, high = shorter, middle - 1
            else:
                # Nothing fits so far: the shortest is the best start for cuts inside messages.
                if len(best.token_ids) > self._max_length:
                    best = shorter
                low = count + 1
        return best

    def _without(self, draft: Draft, droppable: Sequence[int], count: int) -> tuple[int, Draft | None]:
        """Return the draft without its first ``count`` droppable messages, or more where the template wants it so."""
        for more in self._cuts(draft, droppable, count):
            dropped = set(droppable[:more])
            prompt = tuple(message for index, message in enumerate(draft.prompt) if index not in dropped)
            try:
                return more, self._redraft(draft, prompt)
            except StoppedError:
                raise  # another try takes as long again
            except TextError:
                continue  # the template wants whole turns: drop one message more
        return len(droppable), None

    @staticmethod
    def _cuts(draft: Draft, droppable: Sequence[int], count: int) -> list[int]:
        """Return how many messages to try to drop, fewest first, and a few only: each try renders all that is left."""
        counts = range(count, len(droppable) + 1)
        # Whole turns begin with a user message, however many calls and results the one before it has.
        turns = [more for more in counts if more == len(droppable) or draft.prompt[droppable[more]]["role"] == "user"]
        return sorted({*counts[:_CUTS_TRIED], *turns[:_CUTS_TRIED], len(droppable)})

    def _cut_messages(self, draft: Draft) -> Draft:
        """Cut texts from the left until the conversation fits: whole ones first, and the next one as far as needed."""
        low, high = 0, len(draft.prompt)
        while low < high:  # bisection: the fewest texts without which the rest fits
            middle = (low + high) // 2
            if len(self._emptied(draft, middle + 1).token_ids) <= self._max_length:
                high = middle
            else:
                low = middle + 1
        whole = self._emptied(draft, low) if low else draft
        return self._cut_message(whole, low) if low < len(draft.prompt) else whole

    def _emptied(self, draft: Draft, count: int) -> Draft:
        empty = tuple({**message, "content": ""} for message in draft.prompt[:count])
        return self._redraft(draft, empty + draft.prompt[count:])

    def _cut_message(self, draft: Draft, position: int) -> Draft:
        """Cut one message's text from its left until the conversation fits or the text is empty."""
        content: str = draft.prompt[position]["content"]
        # Cuts fall between the message's own tokens, so that no character is torn, and no image.
        starts = self._starts(content, draft.images)
        low, high = 0, len(starts)  # the cuts of which the one is known to be too small, and the other is the largest
        for _ in range(_STEPS):
            # At least as many tokens as are too many; a cut in the middle of a word can make one token into two.
            low = min(low + len(draft.token_ids) - self._max_length, high)
            draft = self._cut_at(draft, position, content, starts, low)
            if low == high or len(draft.token_ids) <= self._max_length:
                return draft
        # Where steps lead nowhere, as among tokens that share a character, bisection bounds the number of tries.
        draft = self._cut_at(draft, position, content, starts, high)
        while high - low > 1 and len(draft.token_ids) <= self._max_length:
            middle = (low + high) // 2
            shorter = self._cut_at(draft, position, content, starts, middle)
            if len(shorter.token_ids) <= self._max_length:
                draft, high = shorter, middle
            else:
                low = middle
        return draft

    def _cut_at(self, draft: Draft, position: int, content: str, starts: Sequence[int], cut: int) -> Draft:
        prompt = list(draft.prompt)
        prompt[position] = {**prompt[position], "content": content[starts[cut] :] if cut < len(starts) else ""}
        return self._redraft(draft, tuple(prompt))

    def _starts(self, content: str, images: Sequence[Image]) -> list[int]:
        """Return the character at which each token of a text begins; those of an image but the first, where it ends."""
        starts: list[int] = []
        place = 0
        for mark in IMAGE_MARK.finditer(content) if images else ():
            starts += [place + start for start in self._template.offsets(content[place : mark.start()])]
            starts += [mark.start(), *[mark.end()] * (images[int(mark[1])].tokens - 1)]
            place = mark.end()
        return starts + [place + start for start in self._template.offsets(content[place:])]

    def _redraft(self, draft: Draft, prompt: tuple[dict[str, Any], ...]) -> Draft:
        if self._template.turn.used_s > self._until_s:
            raise StoppedError(
                "unsupported_content",
                f"the model's chat template takes more than {_CUTTING_S:g} s to render what is left of a conversation "
                "that is too long: shorten it",
            )
        text = self._template.render(prompt + draft.response, draft.tools)
        shorter = replace(draft, prompt=prompt, text=text, token_ids=[], prompt_text=None, prompt_key=b"")
        shorter.token_ids = self._tokens(shorter)
        return shorter
