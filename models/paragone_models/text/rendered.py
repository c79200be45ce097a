"""Texts that somebody else has rendered, or their tokens: where they begin and end, and where the response starts.

Trainers and reward servers send one text a response, in a chat template of their own: its special tokens are tokens.
Nothing is rendered here. What is added is the one beginning-of-sequence token that the tokenizer adds, if the text has
none; a doubled one is one too many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from paragone_models.errors import ModelLoadError, TextError
from paragone_models.spec import ModelSpec
from paragone_models.text.probes import PROBE
from paragone_models.text.template import ChatTemplate, encoded_texts, surroundings

__all__ = ["Rendered", "RenderedTexts", "Sequenced"]

_CHARACTERS_A_TOKEN = 4
_RESPONSE = f"{PROBE}response"
# Thoughts are no part of the header, though some templates write empty ones into it.
_THOUGHTS = "<think>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text that is rendered already, or its tokens.

    Attributes:
        content: the text, with its special tokens; or its token ids.
        ends: append the end-of-sequence token unless it is there.
        most_tokens: how many tokens are read of it; None for as many as the model reads.
        keeps_start: whether those are the first ones, and not the last.
        tokens_only: whether nobody wants more of it than its tokens: then the response need not be found.
    """

    content: str | tuple[int, ...]
    ends: bool = False
    most_tokens: int | None = None
    keeps_start: bool = False
    tokens_only: bool = False

    @property
    def characters(self) -> int:
        """About how long it is, in characters."""
        return len(self.content) * (1 if isinstance(self.content, str) else _CHARACTERS_A_TOKEN)


@dataclass(slots=True)
class Sequenced:
    """The tokens of a rendered text.

    Attributes:
        prompt_length: tokens before the header of the last response; 0 where it is not found and need not be.
        dropped_tokens: how many were cut because there are more than the model reads.
    """

    token_ids: list[int]
    prompt_length: int = 0
    dropped_tokens: int = 0


class RenderedTexts:
    """Turn rendered texts into tokens for one model.

    Args:
        needs_prompt: whether the model must know where the response begins.
        vocabulary: how many tokens the model has embeddings for.
    """

    def __init__(
        self, tokenizer: Any, spec: ModelSpec, template: ChatTemplate, *, needs_prompt: bool, vocabulary: int
    ) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._template = template
        self._needs_prompt = needs_prompt
        self._vocabulary = vocabulary

    def sequences(self, texts: Sequence[Rendered], *, may_cut: bool) -> list[Sequenced | TextError]:
        """Return the tokens of each text, or why there are none; one call to the tokenizer.

        Args:
            may_cut: whether a text over the model's limit loses its first tokens, and is not refused.
        """
        results: list[Sequenced | TextError | None] = [None] * len(texts)
        written: dict[int, str] = {}
        for place, text in enumerate(texts):
            try:
                self._check(text)
            except TextError as error:
                results[place] = error
                continue
            if isinstance(text.content, str):
                written[place] = text.content
        encoded = dict(zip(written, encoded_texts(self._tokenizer, list(written.values())), strict=True))
        for place, text in enumerate(texts):
            if results[place] is None:
                try:
                    own = encoded[place] if isinstance(text.content, str) else list(text.content)
                    results[place] = self._within_limit(self._sequenced(text, own), may_cut)
                except TextError as error:
                    results[place] = error
        return [result for result in results if result is not None]

    def _check(self, text: Rendered) -> None:
        content = text.content
        if not content:
            raise TextError("empty_prompt", "the text is empty: there is nothing to score")
        if isinstance(content, str):
            if not content.isascii():
                try:
                    content.encode()
                except UnicodeEncodeError:
                    raise TextError("unsupported_content", "the text holds a lone surrogate: no text") from None
        elif not 0 <= min(content) <= max(content) < self._vocabulary:
            raise TextError(
                "unsupported_content", f"a token id is not in 0 … {self._vocabulary - 1}, which the model knows"
            )

    def _sequenced(self, text: Rendered, own: list[int]) -> Sequenced:
        as_text = isinstance(text.content, str)
        ids = self._begun(own, as_text)
        before = 0 if text.tokens_only else self._prompt_length(text.content, ids)
        # As for conversations: only without a template the tokenizer, and nobody else, closes a text.
        if as_text and not self._template.has_template and ids[-len(self._suffix) :] != self._suffix:
            ids = [*ids, *self._suffix]
        if text.ends:
            eos = self._tokenizer.eos_token_id
            if eos is None:
                raise TextError("unsupported_content", "the model's tokenizer has no end-of-sequence token to append")
            if ids[-1] != eos:
                ids = [*ids, eos]
        closing = [] if self._spec.reward_token in (None, ids[-1]) else [self._spec.reward_token]
        ids = [*ids, *closing]
        if text.most_tokens is not None and len(ids) > text.most_tokens:
            if not text.keeps_start:
                return self._cut(ids, before, text.most_tokens, whole_response=self._needs_prompt)
            ids = [*ids[: text.most_tokens - len(closing)], *closing]
        return Sequenced(ids, min(before, len(ids) - 1))

    def _within_limit(self, whole: Sequenced, may_cut: bool) -> Sequenced:
        length, limit = len(whole.token_ids), self._spec.max_length
        if length <= limit:
            return whole
        if not may_cut:
            raise TextError(
                "conversation_truncated",
                f"the text has {length} tokens and the limit is {limit}: shorten it, or allow it to be cut from the "
                "left",
            )
        shorter = self._cut(whole.token_ids, whole.prompt_length, limit, whole_response=True)
        shorter.dropped_tokens = length - limit
        return shorter

    def _cut(self, ids: list[int], before: int, most: int, *, whole_response: bool) -> Sequenced:
        """Return the last tokens behind the beginning of sequence, which is kept."""
        kept = len(self._prefix) if ids[: len(self._prefix)] == self._prefix and most > len(self._prefix) else 0
        cut = len(ids) - most
        if whole_response and before and cut > before - kept:
            raise TextError("response_too_long", f"the response does not fit into {most} tokens: shorten it")
        return Sequenced([*ids[:kept], *ids[kept + cut :]], max(0, before - cut))

    def _begun(self, ids: list[int], as_text: bool) -> list[int]:
        """Return the tokens with exactly one beginning of sequence, where the tokenizer adds one."""
        prefix = self._prefix
        if not prefix:
            return ids
        if self._spec.bos == "as-published":  # trained with whatever the template wrote behind the tokenizer's own
            return [*prefix, *ids] if as_text else ids
        while ids[: len(prefix)] == prefix:
            ids = ids[len(prefix) :]
        return [*prefix, *ids]

    def _prompt_length(self, content: str | tuple[int, ...], ids: list[int]) -> int:
        place = _last_place(self._header_ids, ids)
        if place >= 0:
            return place
        if not self._needs_prompt:
            return 0  # it tells the engine what siblings share, and no more
        place = content.rfind(self._header) if self._header and isinstance(content, str) else -1
        if isinstance(content, str) and place >= 0:  # its first token is one with what stands before it
            return len(self._begun(encoded_texts(self._tokenizer, [content[:place]])[0], True))
        what = "averages over the tokens of the response" if self._spec.gate == "none" else "reads the prompt's end too"
        raise TextError(
            "unsupported_content",
            f"the model {what}, and this text does not show where its last response begins"
            + (f": its chat template writes {self._header.strip()!r} there" if self._header else "")
            + "; send prompt and response apart, or as messages",
        )

    @cached_property
    def _header(self) -> str:
        """What the template writes between a prompt and its response; empty if it cannot be told."""
        if not self._template.has_template:
            return ""
        prompt, response = {"role": "user", "content": PROBE}, {"role": "assistant", "content": _RESPONSE}
        try:
            before, whole = self._template.render([prompt]), self._template.render([prompt, response])
        except TextError:
            return ""
        place = whole.find(_RESPONSE, len(before))
        if not whole.startswith(before) or place < 0:
            return ""
        return whole[len(before) : place].partition(_THOUGHTS)[0]

    @cached_property
    def _header_ids(self) -> list[int]:
        # Without its white space, which a tokenizer may join with what comes after.
        return encoded_texts(self._tokenizer, [self._header.strip()])[0] if self._header.strip() else []

    @cached_property
    def _surroundings(self) -> tuple[list[int], list[int]]:
        try:
            return surroundings(self._tokenizer)
        except ModelLoadError as error:
            raise TextError("unsupported_content", f"rendered texts cannot be read: {error}") from None

    @property
    def _prefix(self) -> list[int]:
        return self._surroundings[0]

    @property
    def _suffix(self) -> list[int]:
        return self._surroundings[1]


def _last_place(part: list[int], whole: list[int]) -> int:
    """Return where a part begins for the last time, -1 if it is not there."""
    if not part:
        return -1
    backwards, start = whole[::-1], 0
    while True:
        try:
            start = backwards.index(part[0], start)  # a header's first token is hardly ever another's
        except ValueError:
            return -1
        place = len(whole) - 1 - start
        if whole[place : place + len(part)] == part:
            return place
        start += 1
