"""From conversations to what a model sees: messages in one form, tokens, read positions, and what had to be cut.

A message is a mapping in OpenAI's shape: ``role``, ``content`` (text, text parts or None), and optionally
``tool_calls``, ``tool_call_id``, ``reasoning_content`` and ``name``. The reader raises nothing for a bad conversation:
it returns the error in its place, so that a batch loses nothing. What comes out is an ``EncodeItem``, the unit of work
of every engine: one sequence of tokens, and the places where its hidden states are read.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

from paragone_models.errors import TextError
from paragone_models.images import Image, ImageReader, mark_of, numbers_of
from paragone_models.spec import ModelSpec
from paragone_models.text.cutting import Cutter, Draft
from paragone_models.text.messages import plain_text, question_of, strip_reasoning
from paragone_models.text.pairs import PairText
from paragone_models.text.rendered import Rendered, RenderedTexts, Sequenced
from paragone_models.text.rendering import Turn
from paragone_models.text.sizes import check_size, sizes
from paragone_models.text.stepping import step_reads, stepped
from paragone_models.text.template import ChatTemplate, Message, Talk

__all__ = [
    "Conversation",
    "EncodeItem",
    "Read",
    "Readable",
    "Reading",
    "TextReader",
    "Truncation",
    "conversation",
    "evened",
    "read_plan",
]

Truncation = Literal["prompt", "error"]

Read = tuple[int, int]
"""Half-open span of positions; the value read is the mean of the last hidden states at start, …, stop - 1."""

_REMEMBERED_PROMPTS = 4096


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt, one response to it, and the tools that were on offer.

    Attributes:
        response: the messages whose quality is judged: one by the assistant, or an agent's turns.
        tools: JSON schemas of the tools, or None.
        principle: what a model judges by that follows one; None for every other model.
        steps: the response as single steps, for a process model; None: it is one text, taken apart at empty lines.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    tools: tuple[Message, ...] | None = None
    steps: tuple[str, ...] | None = None
    principle: str | None = None


Readable = Conversation | Rendered | PairText
"""What readers read; pairs, a reader of their own."""


def conversation(
    prompt: str | Sequence[Message],
    response: str | Message | Sequence[Message],
    tools: Sequence[Message] | None = None,
) -> Conversation:
    """Return the one form of a conversation.

    Args:
        prompt: one user message as text, or messages.
        response: the assistant's message as text, as a message, or an agent's messages.
        tools: JSON schemas of tools, or None.
    """
    before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    if isinstance(response, str):
        after: tuple[Message, ...] = ({"role": "assistant", "content": response},)
    elif isinstance(response, Mapping):
        after = (response,)
    else:
        after = tuple(response)
    return Conversation(before, after, tuple(tools) if tools else None)


@dataclass(frozen=True, slots=True)
class EncodeItem:
    """One sequence for an engine.

    Attributes:
        token_ids: the whole conversation, no padding.
        reads: spans whose mean hidden states are the result, in the order of the read plan.
        prompt_length: tokens of the prompt alone, before the response's header. A hint about what siblings share:
            sharing itself goes by the longest common token prefix.
        content_key: names content that is not in the tokens (an image, say); None for text.
        images: what the tokens of images stand for, in their order.
    """

    token_ids: Sequence[int]
    reads: tuple[Read, ...]
    prompt_length: int
    content_key: bytes | None = None
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        if length == 0:
            raise ValueError("token_ids is empty: a sequence needs at least one token")
        for start, stop in self.reads:
            if not 0 <= start < stop <= length:
                raise ValueError(f"read ({start}, {stop}) does not lie inside the {length} tokens of its sequence")


def read_plan(spec: ModelSpec, prompt_length: int, length: int, *, first_token: bool = False) -> tuple[Read, ...]:
    """Return where the hidden states of one sequence are read.

    The gate reads the prompt's last token, or one before it. The response is read at the last token, found by length
    (never by looking for padding), or averaged over the tokens after the prompt.

    Args:
        length: tokens of the whole sequence.
        first_token: read the first token instead, as encoders with a classification token do.

    Raises:
        ValueError: if the prompt is longer than the sequence, or nothing follows a prompt that mean pooling needs.
    """
    if not 0 <= prompt_length <= length:
        raise ValueError(f"prompt_length is {prompt_length}; it must lie between 0 and the {length} tokens in all")
    if first_token:
        response: Read = (0, 1)
    elif spec.pooling == "mean":
        if prompt_length == length:
            raise ValueError(f"mean pooling needs tokens after the prompt, and all {length} belong to it")
        response = (prompt_length, length)
    else:
        response = (length - 1, length)
    if spec.gate == "none":
        return (response,)
    # A prompt of no tokens has no last one; the gate then reads the first token there is.
    place = max(prompt_length - (spec.gate_distance or 1), 0)
    return ((place, place + 1), response)


def evened(items: Sequence[EncodeItem]) -> list[EncodeItem]:
    """Return the items with equal numbers of reads, as engines take them: the last of each is repeated."""
    most = max((len(item.reads) for item in items), default=0)
    return [
        item
        if len(item.reads) == most
        else replace(item, reads=item.reads + item.reads[-1:] * (most - len(item.reads)))
        for item in items
    ]


@dataclass(frozen=True, slots=True)
class Reading:
    """Exactly what the model sees of one conversation.

    Attributes:
        prompt_length: tokens of the prompt (the template applied to the prompt alone).
        reads: where hidden states are read.
        dropped_tokens: how many tokens were cut from the left of the prompt.
        dropped_messages: how many whole messages of the prompt went with them.
        shown: whether the text holds all words of the messages that were kept, and tells who says them.
        images: those that were kept, in the order of their tokens.
    """

    text: str
    token_ids: list[int]
    prompt_length: int
    reads: tuple[Read, ...]
    dropped_tokens: int = 0
    dropped_messages: int = 0
    shown: bool = True
    images: tuple[Image, ...] = ()

    @property
    def item(self) -> EncodeItem:
        """The unit of work for an engine."""
        key = blake2b(b"".join(image.key for image in self.images)).digest() if self.images else None
        return EncodeItem(self.token_ids, self.reads, self.prompt_length, key, self.images)


class TextReader:
    """Read conversations for one model, from any thread.

    Args:
        spec: length limit, special-token, BOS and reasoning policy, and the read plan.
        first_token: True for encoders that are read at their first token.
        vocabulary: how many tokens the model has embeddings for; where the tokenizer has more, a conversation that
            needs one of those is refused. None if it has no more.
        chat_template: the name of one of the tokenizer's templates, or a file that holds one.
        images: what reads images, or why none are read; None for a model of text.

    Attributes:
        images: the same, once the chat template has shown how it writes an image.

    Raises:
        ModelLoadError: see ``sources_of``.
    """

    def __init__(
        self,
        tokenizer: Any,
        spec: ModelSpec,
        *,
        first_token: bool = False,
        vocabulary: int | None = None,
        chat_template: str | None = None,
        images: ImageReader | str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self.template = ChatTemplate(tokenizer, spec, text_pair=first_token, chosen=chat_template)
        if isinstance(images, ImageReader) and not self.template.learn_image(images.token):
            images = "its chat template does not write an image as one token between texts"
        self.images = images
        self._first_token = first_token
        known = max(tokenizer.get_vocab().values(), default=-1) + 1
        self._vocabulary = vocabulary if vocabulary is not None and known > vocabulary else None
        self._rendered = RenderedTexts(
            tokenizer,
            spec,
            self.template,
            needs_prompt=spec.gate != "none" or (spec.pooling == "mean" and not first_token),
            vocabulary=known if vocabulary is None else vocabulary,
        )
        self._prompt_lengths: OrderedDict[bytes, int] = OrderedDict()
        # How special tokens are split, padding and truncation are states of a tokenizer, not arguments of a call.
        self._lock = threading.Lock()
        self._cutter = Cutter(self.template, spec.max_length, self._tokens)

    @property
    def signature(self) -> str:
        """All that decides how messages become what the model sees, but for the tokenizer."""
        if not isinstance(self.images, ImageReader):
            return self.template.signature
        return "\0".join((self.template.signature, self.template.image, self.images.signature))

    def read(
        self, conversations: Sequence[Readable], *, truncation: Truncation = "prompt", turn: Turn | None = None
    ) -> list[Reading | TextError]:
        """Return what the model sees of each conversation, or why it cannot be read, in order.

        A conversation over the limit loses its prompt from the left: whole messages first, the system message and the
        last user message only after all others; a rendered text loses its first tokens. A response that does not fit
        alone is refused, and so is a conversation that is many times too long, unread.

        Args:
            truncation: ``prompt`` cuts as described, ``error`` refuses instead (``conversation_truncated``).
            turn: when it is over, no further conversation is begun.

        Returns:
            One reading or error per conversation; if the turn is over, of the first conversations alone, at least one.
            Codes: ``empty_prompt``, ``unsupported_content``, ``response_too_long``, ``conversation_truncated``.

        Raises:
            TurnEndedError: if the turn was ended from outside.
        """
        with self._lock:
            self.template.turn = turn or Turn()
            return self._read(conversations, truncation)

    def _read(self, conversations: Sequence[Readable], truncation: Truncation) -> list[Reading | TextError]:
        results: list[Reading | TextError | None] = [None] * len(conversations)
        drafts: dict[int, Draft] = {}
        rendered: dict[int, Rendered] = {}
        began_s = time.thread_time()
        for index, (talk, size) in enumerate(zip(conversations, sizes(conversations), strict=True)):
            try:
                check_size(*size, self.spec.max_length)
                assert not isinstance(talk, PairText)
                if isinstance(talk, Rendered):
                    rendered[index] = talk
                else:
                    drafts[index] = self._draft(talk)
            except TextError as error:
                results[index] = error
            # Decoding takes time that no template spends, and the next ones have to wait for the next turn.
            if self.images is not None and time.thread_time() - began_s > self.template.turn.seconds:
                del results[index + 1 :]
                break
        sequences = self._rendered.sequences(list(rendered.values()), may_cut=truncation == "prompt")
        for index, sequence in zip(rendered, sequences, strict=True):
            results[index] = self._finish_rendered(rendered[index], sequence)
        reached = self._render(drafts, results) if drafts else len(results)
        # Two calls to the tokenizer, whatever the number of conversations: its threads work on a batch.
        self._tokenize(drafts, results)
        self._learn_prompts([draft for index, draft in drafts.items() if results[index] is None])
        # One conversation's error takes its own place and nobody else's.
        for index, draft in drafts.items():
            if results[index] is None:
                # A cut renders the conversation again and again: the next one's has to wait for the next turn.
                if index and self.template.turn.over and len(draft.token_ids) > self.spec.max_length:
                    reached = index
                    break
                try:
                    results[index] = self._finish(draft, truncation)
                except TextError as error:
                    results[index] = error
        return [result for result in results[:reached] if result is not None]

    def _draft(self, talk: Conversation) -> Draft:
        images: list[Image] = []
        marked = None if self.images is None else partial(mark_of, self.images, images)
        prompt = tuple(plain_text(message, marked) for message in talk.prompt)
        response = tuple(plain_text(message, marked) for message in talk.response)
        if not any(message["content"].strip() or message.get("tool_calls") for message in prompt):
            raise TextError("empty_prompt", "the prompt is empty: there is nothing that a response could answer")
        if not response:
            raise TextError("unsupported_content", "a response needs at least one message; an empty one has content ''")
        if self.spec.reasoning == "strip":
            response = tuple(
                strip_reasoning(message) if message["role"] == "assistant" else message for message in response
            )
        response += question_of(self.spec.principle_question, talk.principle)
        # Here, before anything looks for special tokens: the text of arguments may hide them behind its escapes.
        prompt = tuple(self.template.prepared(message, talk.tools) for message in prompt)
        response = tuple(self.template.prepared(message, talk.tools) for message in response)
        steps = 0
        if self.spec.step_token is not None:
            response, steps = stepped(response, talk.steps)
        elif talk.steps is not None:
            raise TextError("unsupported_content", "this model scores whole responses and no steps: send a response")
        return Draft(prompt, response, talk.tools, "", [], steps=steps, images=tuple(images))

    def _render(self, drafts: dict[int, Draft], results: list[Reading | TextError | None]) -> int:
        """Fill in the texts of drafts and their prompts, all in one call to the template's process.

        Drafts that have no text are dropped, and so are those that the turn does not come to.

        Returns:
            How many conversations it came to.
        """
        # Each prompt before the conversations that share it, so that what the turn came to is whole. Siblings come in a
        # row. Prompts are needed apart, because a token may span the border between prompt and response: where the
        # prompt ends cannot be seen in the tokens of the whole.
        talks: list[Talk] = []
        places: list[tuple[int | None, int]] = []
        prompts: set[int] = set()
        last: Draft | None = None
        for draft in drafts.values():
            if last is None or last.prompt != draft.prompt or last.tools != draft.tools:
                prompt = len(talks) if draft.prompt else None
                if draft.prompt:
                    prompts.add(len(talks))
                    talks.append((draft.prompt, draft.tools))
            last = draft
            places.append((prompt, len(talks)))
            talks.append((draft.prompt + draft.response, draft.tools))
        texts = self.template.render_all(talks, prompts=prompts, least=places[0][1] + 1 if places else 0)
        for (index, draft), (prompt, whole) in zip(list(drafts.items()), places, strict=True):
            if whole >= len(texts):
                for late in [late for late in drafts if late >= index]:
                    del drafts[late]
                return index
            text = texts[whole]
            draft.prompt_text = "" if prompt is None else texts[prompt]
            if isinstance(text, TextError):
                results[index] = text
                del drafts[index]
                continue
            draft.text = text
            # JSON may carry half a surrogate pair; a tokenizer would die of it in another language.
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    results[index] = TextError(
                        "unsupported_content", "the conversation holds a lone surrogate: no text"
                    )
                    del drafts[index]
        return len(results)

    def _tokenize(self, drafts: dict[int, Draft], results: list[Reading | TextError | None]) -> None:
        """Fill in the drafts' tokens, all in one call to the tokenizer; a draft that fails costs the others nothing."""
        try:
            talks = [(draft.text, draft.prompt + draft.response, draft.tools) for draft in drafts.values()]
            encoded: Sequence[list[int] | None] = self.template.tokenize(talks)
        except TextError:
            encoded = [None] * len(drafts)
        for (index, draft), token_ids in zip(list(drafts.items()), encoded, strict=True):
            try:
                draft.token_ids = self._tokens(draft, token_ids)
            except TextError as error:
                results[index] = error

    def _tokens(self, draft: Draft, token_ids: list[int] | None = None) -> list[int]:
        """Return the tokens of a draft's text, each image's in the place of its one.

        Args:
            token_ids: with one token an image, if they are known.
        """
        messages = draft.prompt + draft.response
        if token_ids is None:
            token_ids = self.template.tokenize([(draft.text, messages, draft.tools)])[0]
        if not isinstance(self.images, ImageReader):
            return token_ids
        if draft.images:
            sent = [number for message in messages for number in numbers_of(message["content"])]
            if sorted(sent) != sorted(numbers_of(draft.text)):
                raise TextError("unsupported_content", "this model's chat template leaves out an image, or repeats it")
        return self.images.expanded(token_ids, self._kept(draft.text, draft.images))

    @staticmethod
    def _kept(text: str, images: Sequence[Image]) -> list[Image]:
        return [images[number] for number in numbers_of(text)] if images else []

    def _finish(self, draft: Draft, truncation: Truncation) -> Reading:
        length = len(draft.token_ids)
        if length <= self.spec.max_length:
            return self._reading(draft, 0, 0)
        if truncation == "error":
            raise TextError(
                "conversation_truncated",
                f"the conversation has {length} tokens and the limit is {self.spec.max_length}: shorten it, or allow "
                'truncation "prompt"',
            )
        fitted = self._cutter.fit(draft)
        return self._reading(fitted, length - len(fitted.token_ids), len(draft.prompt) - len(fitted.prompt))

    def _finish_rendered(self, text: Rendered, sequence: Sequenced | TextError) -> Reading | TextError:
        try:
            if isinstance(sequence, TextError):
                raise sequence
            token_ids, before = self._final(sequence.token_ids), sequence.prompt_length
            if isinstance(self.images, ImageReader):
                self.images.expanded(token_ids, ())
        except TextError as error:
            return error
        try:
            reads = self._reads(token_ids, before, None)
        except TextError as error:
            return error
        written = text.content if isinstance(text.content, str) else ""
        return Reading(written, token_ids, before, reads, sequence.dropped_tokens)

    def _final(self, token_ids: list[int]) -> list[int]:
        if self.spec.final_eos and self.tokenizer.eos_token_id is not None:
            token_ids = [*token_ids[:-1], self.tokenizer.eos_token_id]  # overwritten, as those models were trained
        if self._vocabulary is not None and max(token_ids) >= self._vocabulary:
            raise TextError(
                "unsupported_content",
                f"the conversation has a token that the model has no embedding for: it has {self._vocabulary} of them",
            )
        return token_ids

    def _reading(self, draft: Draft, dropped_tokens: int, dropped_messages: int) -> Reading:
        token_ids = self._final(draft.token_ids)
        # Where a template closes the conversation differently with and without a response, the prompt alone can be the
        # longer of the two; at least one token is the response's.
        prompt_length = min(self._prompt_length(draft), len(token_ids) - 1)
        reads = self._reads(token_ids, prompt_length, draft.steps)
        shown = self.template.shows(draft.prompt + draft.response, draft.text)
        text = self.template.with_ends(draft.text)
        images = tuple(self._kept(draft.text, draft.images))
        return Reading(text, token_ids, prompt_length, reads, dropped_tokens, dropped_messages, shown, images)

    def _reads(self, token_ids: list[int], prompt_length: int, steps: int | None) -> tuple[Read, ...]:
        if self.spec.step_token is not None:
            return step_reads(token_ids, self.spec.step_token, self.template.step_end, expected=steps)
        return read_plan(self.spec, prompt_length, len(token_ids), first_token=self._first_token)

    def _learn_prompts(self, drafts: Sequence[Draft]) -> None:
        """Tokenise the prompts that are new, all in one call; what goes wrong is met again, and named, one by one."""
        new: dict[bytes, tuple[str, tuple[dict[str, Any], ...], tuple[Message, ...] | None]] = {}
        for draft in drafts:
            # With a special token's string inside, equal texts need not have equal tokens.
            if (
                draft.prompt_text
                and isinstance(draft.prompt_text, str)
                and not self.template.holds_control(draft.prompt, draft.tools)
            ):
                draft.prompt_key = blake2b(draft.prompt_text.encode(), digest_size=16).digest()
                if draft.prompt_key not in self._prompt_lengths:
                    new[draft.prompt_key] = (draft.prompt_text, draft.prompt, draft.tools)
        try:
            lengths = [len(tokens) for tokens in self.template.tokenize(list(new.values()), closed=False)]
        except TextError:
            return
        self._prompt_lengths.update(zip(new, lengths, strict=True))
        # The oldest goes: siblings come close together.
        while len(self._prompt_lengths) > _REMEMBERED_PROMPTS:
            self._prompt_lengths.popitem(last=False)

    def _prompt_length(self, draft: Draft) -> int:
        text = self._render_prompt(draft) if draft.prompt_text is None else draft.prompt_text
        if isinstance(text, TextError):
            raise text
        if not text:
            return 0
        length = self._prompt_lengths.get(draft.prompt_key)
        if length is None:
            length = len(self.template.tokenize([(text, draft.prompt, draft.tools)], closed=False)[0])
        return length + sum(image.tokens - 1 for image in self._kept(text, draft.images))

    def _render_prompt(self, draft: Draft) -> str:
        return self.template.render(draft.prompt, draft.tools, closed=False) if draft.prompt else ""
