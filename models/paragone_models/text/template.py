"""Render and tokenise conversations with a model's own chat template, the same way every day.

What the day, the caller's text or the tokenizer's habits could change is fixed here: the date that a template asks for,
special-token strings inside messages, and doubled beginning-of-sequence tokens.
"""

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any

from paragone_models.errors import ModelLoadError, TextError
from paragone_models.images import IMAGE_MARK
from paragone_models.spec import ModelSpec
from paragone_models.text.named_templates import sources_of
from paragone_models.text.probes import (
    PROBE,
    PROBE_TOOL,
    Arguments,
    arguments_form,
    leaves_out,
    notes_of,
    with_arguments,
)
from paragone_models.text.rendering import TemplateProcess, Turn
from paragone_models.text.stepping import STEP_END

__all__ = [
    "OPTIONAL_FIELDS",
    "ChatTemplate",
    "Message",
    "Talk",
    "most_characters",
    "surroundings",
    "tokenizer_hash",
]

Message = Mapping[str, Any]
Talk = tuple[Sequence[Message], Sequence[Message] | None]
"""What is rendered: messages and tools."""

OPTIONAL_FIELDS = ("tool_calls", "tool_call_id", "reasoning_content", "name")
"""What a message may have beside role and content."""

# Texts beyond the first, and beyond so many for each token of the limit, are not read: a tokenizer takes half a
# gigabyte and ten seconds for a million characters, to find that next to nothing of them fits.
_CHARACTERS, _CHARACTERS_A_TOKEN = 1 << 18, 16
# Added tokens that responses rightly contain; every other one that a template writes marks a turn.
_CONTENT_TAGS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"})


def most_characters(max_length: int) -> int:
    """Return how many characters of a conversation are read by a model that reads ``max_length`` tokens."""
    return max(_CHARACTERS, _CHARACTERS_A_TOKEN * max_length)


class ChatTemplate:
    """Render and tokenise messages as one model expects them.

    Args:
        text_pair: without a template, give prompt and response to the tokenizer as a pair, as encoders are trained.
        chosen: the name of one of the tokenizer's templates, or a file that holds one, in place of its default.

    Attributes:
        turn: when rendering has to end; set by whoever renders.
        step_end: the token behind each step of a process model's texts; empty for other models.
        image: what the template writes for an image; empty where that is not known.

    Raises:
        ModelLoadError: see ``sources_of``.
    """

    def __init__(
        self,
        tokenizer: Any,
        spec: ModelSpec,
        *,
        text_pair: bool = False,
        chosen: str | None = None,
    ) -> None:
        self.turn = Turn()
        self._tokenizer = tokenizer
        self.sources = sources_of(tokenizer, chosen)
        self.has_template = bool(self.sources.default)
        self._text_pair = text_pair and not self.has_template
        self._escape = spec.special_tokens == "escape"
        self._keeps_thoughts = spec.reasoning == "keep"
        # A template writes its own BOS; without one the tokenizer does.
        self._adds_special = spec.bos == "as-published" or not self.has_template
        # Texts are tokenised without special tokens, because the escaped ones come in pieces; these are put around
        # them.
        self._prefix, self._suffix = surroundings(tokenizer) if self._adds_special else ([], [])
        self._answers = spec.principle_question is not None
        self.step_end = "" if spec.step_token is None else str(tokenizer.convert_ids_to_tokens(spec.step_token))
        self.image = ""
        self._closing = [] if spec.reward_token is None else [spec.reward_token]
        self._shown: dict[tuple[object, ...], bool] = {}
        self._arguments: dict[str, Arguments] = {}
        self._process = TemplateProcess(
            self.sources.both, tokenizer.special_tokens_map, most_characters=2 * most_characters(spec.max_length)
        )
        control = sorted(self._control_strings(), key=len, reverse=True) if self._escape else []
        # Only a conversation that holds a control string needs the slow way.
        self._control = re.compile("|".join(map(re.escape, control))) if control else None
        # What stands for unknown letters may come of any text.
        self._control_ids = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content in control and number != tokenizer.unk_token_id
        }
        self._special_ids = frozenset(self._control_ids.values())
        if self._escape:
            tokenizer.chat_control_tokens = control

    @property
    def signature(self) -> str:
        """All that decides how messages become text: the templates, and how they take a tool call's arguments."""
        # A template alone stands for itself, as it did before there were several.
        parts = [*self.sources.both, *(self.arguments_of(source) for source in self.sources.both)]
        return self.sources.default if len(parts) == 2 and not self._calls(parts[0]) else "\0".join(parts)

    @cached_property
    def notes(self) -> list[str]:
        """What the model does not see of the messages it is sent, in sentences; empty where it sees everything."""
        if self._text_pair:
            return []
        if not self.has_template:
            return [
                "there is no chat template: the messages are joined by spaces, and who speaks is not seen; if the "
                "model was trained with a template, set chat_template (a file)"
            ]

        def probed(messages: Sequence[Message]) -> str | TextError:
            try:
                self._check_expressible(messages, None)
                return self._applied([(messages, None)])[0]
            except TextError as error:
                return error

        source = self.sources.default
        return notes_of(
            probed,
            keeps_thoughts=self._keeps_thoughts,
            arguments=self.arguments_of(source) if self._calls(source) else None,
        )

    def prepared(self, message: dict[str, Any], tools: Sequence[Message] | None) -> dict[str, Any]:
        """Return a message as the template takes it: a tool call's arguments as a mapping, or as its text.

        Raises:
            TextError: ``unsupported_content``, if a text that the template needs as a mapping holds none.
        """
        return with_arguments(message, self.arguments_of(self._source(tools))) if "tool_calls" in message else message

    def arguments_of(self, source: str) -> Arguments:
        """Return how one of the templates takes the arguments of a tool call; tried once."""
        if source not in self._arguments:
            place = self.sources.both.index(source)
            tools = [PROBE_TOOL] if source != self.sources.default else None
            self._arguments[source] = (
                arguments_form(lambda messages: self._process.render([(place, messages, tools)])[0])
                if self._calls(source)
                else "mapping"
            )
        return self._arguments[source]

    @staticmethod
    def _calls(source: str) -> bool:
        return "tool_calls" in source

    def _source(self, tools: Sequence[Message] | None) -> str:
        return self.sources.with_tools if tools else self.sources.default

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message] | None = None, *, closed: bool = True
    ) -> str:
        """Return the text of one conversation; see ``render_all``.

        Raises:
            TextError: ``unsupported_content`` where the template refuses the messages or would leave something out.
        """
        (text,) = self.render_all([(messages, tools)], closed=closed)
        if isinstance(text, TextError):
            raise text
        return text

    def render_all(
        self, talks: Sequence[Talk], *, closed: bool = True, prompts: Container[int] = (), least: int = 1
    ) -> list[str | TextError]:
        """Return the text of each conversation, without a generation prompt, or why there is none.

        Args:
            talks: the messages, with the JSON schemas of tools or None.
            closed: False for prompts alone, which a model without a template does not end by its EOS token.
            prompts: the places of prompts alone among whole conversations, each before those that begin with it.
            least: how many are rendered though the turn be over.

        Returns:
            Fewer than were given if the turn is over. Errors have the code ``unsupported_content``: the template
            refuses the messages or would leave something out, or it ran into a limit.
        """
        results: list[str | TextError] = []
        for place, (messages, tools) in enumerate(talks):
            try:
                self._check_expressible(messages, tools)
                results.append("" if self.has_template else self._joined(messages, closed and place not in prompts))
            except TextError as error:
                results.append(error)
        if not self.has_template:
            return results
        asked = [place for place, result in enumerate(results) if isinstance(result, str)]
        texts = self._applied(
            [talks[place] for place in asked],
            least=sum(place < least for place in asked),
            prompts={number for number, place in enumerate(asked) if place in prompts or not closed},
        )
        if len(texts) < len(asked):
            del results[asked[len(texts)] :]
        for place, text in zip(asked, texts, strict=False):
            results[place] = text
            if isinstance(text, str):
                try:
                    self._check_shown(*talks[place])
                except TextError as error:
                    results[place] = error
        return results

    def shows(self, messages: Sequence[Message], text: str) -> bool:
        """Return whether the rendered text holds all words of the messages, and tells who says them."""
        if self._text_pair:
            return True
        if not self.has_template:
            return len(messages) <= 2
        return not leaves_out(messages, text)

    def with_ends(self, text: str) -> str:
        """Return a text with what marks stand for: the separator of steps, and what the template writes for images."""
        if self.image:
            text = IMAGE_MARK.sub(lambda _: self.image, text)
        return text.replace(STEP_END, self.step_end) if self.step_end else text

    def learn_image(self, token: int) -> bool:
        """Find out what the template writes for an image, and return whether a mark in a text can stand for it.

        Args:
            token: the one token that it must hold, in whose place the image's own go.
        """
        if not self.has_template:
            return False
        first, last = f"{PROBE} a", f"b {PROBE}"
        parts = [{"type": "text", "text": first}, {"type": "image"}, {"type": "text", "text": last}]
        texts = self._applied([([{"role": "user", "content": content}], None) for content in (parts, first + last)])
        if any(isinstance(text, TextError) for text in texts):
            return False
        own, plain = map(str, texts)
        start, end = own.find(first) + len(first), own.rfind(last)
        image = own[start:end]
        # A template may number images, or write them at the end: then a mark would stand for another text.
        if not image or own[:start] + own[end:] != plain:
            return False
        if encoded_texts(self._tokenizer, [image])[0].count(token) != 1:
            return False
        self.image = image
        return True

    def _joined(self, messages: Sequence[Message], closed: bool) -> str:
        if self._text_pair:  # for people; what the model sees is the pair
            return "\n\n".join(message["content"] for message in messages)
        # The published general preference models' rule for tokenizers without a template.
        joined = " ".join(message["content"] for message in messages)
        return joined + " " + (self._tokenizer.eos_token or "") if closed else joined

    def tokenize(
        self, conversations: Sequence[tuple[str, Sequence[Message], Sequence[Message] | None]], *, closed: bool = True
    ) -> list[list[int]]:
        """Return token ids of rendered conversations, special tokens only where the template wrote them.

        Args:
            conversations: the rendered text with the messages and tools that it came from.

        Raises:
            TextError: ``unsupported_content`` where a special-token string cannot be kept as text.
        """
        if self._text_pair:
            return [self._tokenize_pair(messages) for _, messages, _ in conversations]
        closing = self._closing if closed else []
        ids: list[list[int]] = [[] for _ in conversations]
        plain = [
            index for index, (_, messages, tools) in enumerate(conversations) if not self.holds_control(messages, tools)
        ]
        suffix = self._suffix if closed else []
        if plain:
            texts = [self.with_ends(conversations[index][0]) for index in plain]
            for index, text, sequence in zip(plain, texts, encoded_texts(self._tokenizer, texts), strict=True):
                self._check_control(sequence, text)
                ids[index] = [*self._prefix, *sequence, *suffix] if self._adds_special else sequence
        # The slow way, one by one: the tokenizer has to be told for each text what is a token and what is not.
        for index in set(range(len(conversations))) - set(plain):
            _, messages, tools = conversations[index]
            if self.has_template:
                body = self._escaped_chat(messages, tools, closed)
            else:
                body = self._escaped_text(messages, closed)
            ids[index] = [*self._prefix, *body, *suffix]
        return [[*one, *closing] for one in ids] if closing else ids

    def offsets(self, text: str) -> list[int]:
        """Return the character at which each token of a text on its own begins, for cutting it."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=self._escape
        )
        return [start for start, _ in encoded["offset_mapping"]]

    def _applied(
        self, talks: Sequence[Talk], *, least: int | None = None, prompts: Container[int] = ()
    ) -> list[str | TextError]:
        places = self.sources.both
        # A model that answers a question is read where the answer would begin.
        return self._process.render(
            [
                (places.index(self._source(tools)), messages, tools or None, self._answers and place not in prompts)
                for place, (messages, tools) in enumerate(talks)
            ],
            self.turn,
            least=len(talks) if least is None else least,
            prompts=prompts,
        )

    def _tokenize_pair(self, messages: Sequence[Message]) -> list[int]:
        texts = [message["content"] for message in messages]
        # Encoders are trained on two texts; joined turns would be a text that they never saw.
        if len(texts) > 2:
            raise TextError("unsupported_content", "this model reads one prompt and one response, not several turns")
        encoded = self._pair(texts)
        if self._control is not None and self._special_in(encoded) - self._special_in(self._pair(["a", "a"])):
            raise _kept_no_text()
        return encoded

    def _pair(self, texts: Sequence[str]) -> list[int]:
        ids: list[int] = self._tokenizer(*texts, split_special_tokens=self._escape, verbose=False)["input_ids"]
        return ids

    def _escaped_text(self, messages: Sequence[Message], closed: bool) -> list[int]:
        text = " ".join(message["content"] for message in messages)
        ending = [] if not closed or self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
        return self._split([text + " " if closed else text])[0] + ending

    def _split(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of texts in which no special token may come up, whatever strings they hold."""
        ids = encoded_texts(self._tokenizer, texts, split_special_tokens=True)
        # Some tokenizers have no switch for it, and give the special token all the same.
        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        if any(not special.isdisjoint(sequence) for sequence in ids):
            raise _kept_no_text()
        return ids

    def _escaped_chat(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, closed: bool = True
    ) -> list[int]:
        mark = getattr(self._tokenizer, "_mark_chat_inputs", None)
        if (
            mark is None
            or "sanitize_control_tokens" not in inspect.signature(self._tokenizer.apply_chat_template).parameters
        ):
            raise TextError(
                "unsupported_content",
                "a special token's string inside a message cannot be kept as text by this version of transformers: "
                "5.23 or later can",
            )
        # As ``apply_chat_template(sanitize_control_tokens=True)`` does: strings of special tokens are marked, rendered,
        # and encoded as text where the marks are. It renders in this process, so its two halves are called apart.
        (marked,), marked_tools, _, _ = mark(self._source(tools), [list(messages)], tools, None, {}, True, False)
        # transformers escapes no names of fields. What the template writes itself is what is left without the strings.
        harmless: Talk = (self._without_control(messages), self._without_control(tools))
        text, own = self._applied([(marked, marked_tools), harmless], prompts=() if closed else (0, 1))
        for rendered in (text, own):
            if isinstance(rendered, TextError):
                raise rendered
        try:
            encoded: list[int] = self._tokenizer(
                self.with_ends(str(text)), add_special_tokens=False, sanitize_control_tokens=True
            )["input_ids"]
        except (ValueError, NotImplementedError) as error:
            raise TextError(
                "unsupported_content", f"a special token's string inside a message cannot be kept as text: {error}"
            ) from error
        self._check_control(encoded, self.with_ends(str(own)))
        return encoded

    def _check_control(self, ids: Sequence[int], text: str) -> None:
        """Refuse tokens in which there are more control tokens than a text holds strings of them.

        Letters that the tokenizer folds (``＜/s＞``) and texts that a template joins become special tokens that stood
        in no message, so they are counted where they count: in what the model reads.
        """
        if self._control is None or self._special_ids.isdisjoint(ids):
            return
        if self._special_in(ids) - Counter(map(self._control_ids.get, self._control.findall(text))):
            raise _kept_no_text()

    def _special_in(self, ids: Sequence[int]) -> Counter[int | None]:
        return Counter(filter(self._special_ids.__contains__, ids))

    def _without_control(self, value: Any) -> Any:
        """Return the same object with a letter for each string of a special token in its texts and names."""
        if isinstance(value, str):
            return value if self._control is None else self._control.sub("x", value)
        if isinstance(value, Mapping):
            return {self._without_control(name): self._without_control(inner) for name, inner in value.items()}
        return [self._without_control(inner) for inner in value] if isinstance(value, list | tuple) else value

    def _control_strings(self) -> list[str]:
        return [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if not token.content.isspace()
            and (
                token.special
                or (any(token.content in source for source in self.sources.both) and token.content not in _CONTENT_TAGS)
            )
        ]

    def holds_control(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> bool:
        """Return whether a special token's string stands in a message or a tool, where it must stay text."""
        if self._control is None:
            return False
        for message in messages:
            if self._control.search(message["content"]) or self._control.search(message["role"]):
                return True
            # Tool calls and the like may be nested to any depth; their JSON holds every string of them.
            if len(message) > 2 and self._control.search(json.dumps(dict(message), ensure_ascii=False)):
                return True
        return bool(tools) and self._control.search(json.dumps(list(tools or ()), ensure_ascii=False)) is not None

    def _check_expressible(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> None:
        """Refuse what the template has no place for."""
        source = self._source(tools)
        if tools and "tools" not in source:
            raise TextError("unsupported_content", "this model's chat template has no place for tools")
        for message in messages:
            if not self.has_template and message["role"] not in ("user", "assistant"):
                raise TextError(
                    "unsupported_content",
                    f"this model has no chat template and cannot tell a {message['role']} message",
                )
            for field in OPTIONAL_FIELDS:
                # Many templates tell tool results by their order alone: the id says nothing that they would lose.
                if field in message and field not in source and field != "tool_call_id":
                    raise TextError("unsupported_content", f"this model's chat template has no place for {field}")

    def _check_shown(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> None:
        """Refuse messages whose content or name the template leaves out without a word.

        A template that leaves a message out would have the model judge something else, and say nothing.
        """
        # Probing renders the conversation once more: once for each role and place, and not for each message.
        source = self._source(tools)
        for index, message in enumerate(messages):
            place = (source, message["role"], index == 0, "tool_calls" in message)
            if message["content"].strip() and not self._probed((*place, "content"), messages, index, tools):
                raise TextError(
                    "unsupported_content",
                    f"this model's chat template leaves out the text of a {message['role']} message",
                )
            if "name" in message and not self._probed((*place, "name"), messages, index, tools):
                raise TextError(
                    "unsupported_content",
                    f"this model's chat template has no place for name in a {message['role']} message",
                )

    def _probed(
        self, place: tuple[object, ...], messages: Sequence[Message], index: int, tools: Sequence[Message] | None
    ) -> bool:
        """Return whether the template writes a field (the last part of the place) of messages of a role and place."""
        if not self._shown.get(place):  # what another conversation lacked may be shown in this one
            probe = {**messages[index], str(place[-1]): PROBE}
            (text,) = self._applied([([*messages[:index], probe, *messages[index + 1 :]], tools)])
            # One that refuses the probe wants something of that text, so it reads it.
            self._shown[place] = isinstance(text, TextError) or PROBE in text
        return self._shown[place]


def _kept_no_text() -> TextError:
    return TextError(
        "unsupported_content",
        "a special token's string inside a message or a tool cannot be kept as text: this tokenizer makes the special "
        "token from plain text too, perhaps from other letters (＜ for <) or from the name of a field; leave it out",
    )


def tokenizer_hash(tokenizer: Any, template: str) -> str:
    """Return a hash of what turns text into tokens.

    Args:
        template: the signature of its chat templates.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    named = json.dumps(tokenizer.special_tokens_map, sort_keys=True)  # templates write these, policies append them
    # With its length before each part, so that no two pairs of texts join to the same bytes.
    return hashlib.sha256(f"{len(table)}:{table}{len(named)}:{named}{template}".encode()).hexdigest()


def encoded_texts(tokenizer: Any, texts: list[str], *, split_special_tokens: bool = False) -> list[list[int]]:
    """Return the tokens of each text, and nothing around them.

    Args:
        split_special_tokens: whether the strings of special tokens are text like any other.
    """
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    raise ModelLoadError("the tokenizer changes a text when it adds its special tokens: it cannot be hosted")
