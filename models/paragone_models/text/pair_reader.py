"""Read two responses to one prompt as one text, for models that read both at once.

letters   "[CONTEXT] … [RESPONSE A] … [RESPONSE B] … " in one user turn, read where the answer "A" or "B" would come
markers   prompt and responses behind three marker tokens, each read at its marker (PairRM)
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from paragone_models.errors import ModelLoadError, TextError
from paragone_models.spec import ModelSpec
from paragone_models.text.messages import plain_text, strip_reasoning
from paragone_models.text.pairs import PairText, letter_ids
from paragone_models.text.probes import PROBE
from paragone_models.text.reader import Readable, Reading, TextReader, Truncation
from paragone_models.text.rendering import Turn
from paragone_models.text.template import Message, encoded_texts, most_characters

__all__ = ["PairReader"]

_MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
_SOURCE_BUDGET, _CANDIDATE_BUDGET = 1224, 412
"""Tokens of PairRM's source, and of each candidate before it is given what the source leaves."""
_LEAST_AT_MARKERS = 64
"""Tokens of a pair, below which its parts would be little more than their markers."""


class PairReader(TextReader):
    """Read pairs for one model, from any thread.

    Args:
        spec: length limit, special-token and reasoning policy, and which of the two forms it reads.
        chat_template: the name of one of the tokenizer's templates, or a file that holds one.

    Raises:
        ModelLoadError: if the tokenizer lacks the letters, the markers or a chat template that a user turn and the
            answer's header can be told from.
    """

    def __init__(self, tokenizer: Any, spec: ModelSpec, *, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, spec, chat_template=chat_template)
        if spec.pair_format == "letters":
            letter_ids(tokenizer)
            self._before, self._after, self._strips = _surroundings(tokenizer, self.template.sources.default)
        else:
            if spec.max_length < _LEAST_AT_MARKERS:
                raise ModelLoadError(f"max_length is {spec.max_length}; a pair needs at least {_LEAST_AT_MARKERS}")
            self._markers = [tokenizer.convert_tokens_to_ids(marker) for marker in _MARKERS]
            if tokenizer.unk_token_id in self._markers or None in self._markers:
                raise ModelLoadError(f"the tokenizer has no tokens {', '.join(_MARKERS)}")

    @cached_property
    def _control(self) -> list[str]:
        return [token.content for token in self.tokenizer.added_tokens_decoder.values()]

    def read(
        self, conversations: Sequence[Readable], *, truncation: Truncation = "prompt", turn: Turn | None = None
    ) -> list[Reading | TextError]:
        """Return what the model sees of each pair, or why it cannot be read, in order.

        A pair over the limit is refused where it is read by letters. Where it is read at markers its parts are cut on
        the right to their budgets, as published, unless ``truncation`` is ``error``.

        Returns:
            One reading or error per pair; if the turn is over, of the first pairs alone, at least one.
        """
        read = self._letters if self.spec.pair_format == "letters" else self._at_markers
        results: list[Reading | TextError] = []
        with self._lock:
            for pair in conversations:
                if results and turn is not None and turn.over:
                    break
                try:
                    if not isinstance(pair, PairText):
                        raise TextError(
                            "unsupported_content", "this model reads two responses at once, and no single one"
                        )
                    results.append(read(*self._texts(pair), truncation))
                except TextError as error:
                    results.append(error)
        return results

    def _texts(self, pair: PairText) -> tuple[list[dict[str, Any]], str, str]:
        if pair.characters > most_characters(self.spec.max_length):
            raise self._too_long(f"{pair.characters} characters")
        prompt = [plain_text(message) for message in pair.prompt]
        if not any(message["content"].strip() for message in prompt):
            raise TextError("empty_prompt", "the prompt is empty: there is nothing that a response could answer")
        if any(message.get("tool_calls") or message["role"] == "tool" for message in prompt):
            raise TextError("unsupported_content", f"a model of format {self.spec.pair_format} reads no tool calls")
        return prompt, self._response(pair.first), self._response(pair.second)

    def _response(self, messages: Sequence[Message]) -> str:
        if len(messages) != 1 or messages[0]["role"] != "assistant" or messages[0].get("tool_calls"):
            raise TextError("unsupported_content", "this model reads one message of the assistant a response, no turns")
        message = plain_text(messages[0])
        if self.spec.reasoning == "keep" and "reasoning_content" in message:
            raise TextError(
                "unsupported_content",
                "this model reads the content of a response alone: leave reasoning_content out, or write it into the "
                "content",
            )
        return str((strip_reasoning(message) if self.spec.reasoning == "strip" else message)["content"])

    def _letters(self, prompt: list[dict[str, Any]], first: str, second: str, truncation: Truncation) -> Reading:
        del truncation  # what was cut would be judged as if it had not been said
        # Roles by the turns' parity and not by their names, as the models of this format were trained.
        turns = "".join(
            f"\n\n<turn> {'assistant' if place % 2 else 'user'}\n {message['content']}"
            for place, message in enumerate(prompt)
        )
        shared = f"[CONTEXT] \n{turns}\n\n\n [RESPONSE A] "
        content = f"{shared}{first} [RESPONSE B] {second} \n"
        content = content.strip() if self._strips else content
        if self.spec.special_tokens == "escape" and any(control in content for control in self._control):
            middle = encoded_texts(self.tokenizer, [content], split_special_tokens=True)[0]
            if not set(self.tokenizer.all_special_ids).isdisjoint(middle):
                raise TextError("unsupported_content", "a special token's string cannot be kept as text")
            start, end = encoded_texts(self.tokenizer, [self._before, self._after])
            ids, hint = [*start, *middle, *end], len(start)
        else:
            ids, common = encoded_texts(
                self.tokenizer, [self._before + content + self._after, self._before + shared.rstrip()]
            )
            hint = len(common)
        if len(ids) > self.spec.max_length:
            raise self._too_long(f"{len(ids)} tokens")
        return Reading(self._before + content + self._after, ids, min(hint, len(ids) - 1), ((len(ids) - 1, len(ids)),))

    def _at_markers(self, prompt: list[dict[str, Any]], first: str, second: str, truncation: Truncation) -> Reading:
        if len(prompt) != 1:
            raise TextError(
                "unsupported_content",
                f"{len(prompt)} messages of a prompt: this model reads one text; send the turns as one",
            )
        texts = [prompt[0]["content"], first, second]
        if self.spec.special_tokens == "escape" and any(control in text for text in texts for control in self._control):
            raise TextError("unsupported_content", "a special token's string cannot be kept as text by this tokenizer")
        parts = [
            self.tokenizer(marker + text, verbose=False)["input_ids"]
            for marker, text in zip(_MARKERS, texts, strict=True)
        ]
        whole = sum(map(len, parts))
        published = _SOURCE_BUDGET + 2 * _CANDIDATE_BUDGET
        most = min(published, self.spec.max_length)
        # In the published proportion, so that a lower limit leaves the candidates their share.
        source = min(len(parts[0]), _SOURCE_BUDGET * most // published)
        candidate = (most - source) // 2
        cut = [_cut(part, most) for part, most in zip(parts, (source, candidate, candidate), strict=True)]
        ids = [token for part in cut for token in part]
        if len(ids) < whole and truncation == "error":
            raise self._too_long(f"{whole} tokens")
        # Each in its own part: where special tokens are parsed, a text may hold the marker of another.
        starts = itertools.accumulate(map(len, cut), initial=0)
        places = [start + part.index(marker) for start, part, marker in zip(starts, cut, self._markers, strict=False)]
        reads = tuple((place, place + 1) for place in places)
        return Reading("".join(map(str.__add__, _MARKERS, texts)), ids, len(cut[0]), reads, whole - len(ids))

    def _too_long(self, length: str) -> TextError:
        return TextError(
            "conversation_truncated",
            f"prompt and both responses have {length} and the limit is {self.spec.max_length} tokens: shorten them",
        )


def _cut(part: list[int], most: int) -> list[int]:
    """Return a part cut on the right to so many tokens; the last one, which ends every part, stays."""
    return part if len(part) <= most else [*part[: most - 1], part[-1]]


def _surroundings(tokenizer: Any, template: str) -> tuple[str, str, bool]:
    """Return what a chat template writes before and after one user turn, and whether it strips the turn's text.

    The end is where the answer comes: what is rendered with an answer has to begin with it.
    """
    if not template:
        raise ModelLoadError("there is no chat template, which the prompt of a model that answers A or B needs")

    def rendered(content: str, *answer: str, prompted: bool) -> str:
        messages = [{"role": "user", "content": content}, *({"role": "assistant", "content": one} for one in answer)]
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompted
            )
        )

    content = f"\n {PROBE} \n"
    text, stripped = rendered(content, prompted=True), rendered(PROBE, prompted=True)
    strips = text == stripped
    before, found, after = text.partition(PROBE if strips else content)
    answered = rendered(content, "A", prompted=False)
    if not found or PROBE in after or not answered.startswith(f"{before}{found}{after}A"):
        raise ModelLoadError(
            "the chat template does not end a prompt where the answer begins: a model that answers A or B cannot be "
            "read there"
        )
    # Published models of this form are read without a beginning-of-sequence token.
    return before.removeprefix(tokenizer.bos_token or ""), after, strips
