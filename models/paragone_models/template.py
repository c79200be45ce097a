"""Rendering and tokenising conversations with a model's own chat template, the same way every day.

What the day, the caller's text or the tokenizer's habits could change is fixed here: the date that a template asks for,
special-token strings inside messages, and doubled beginning-of-sequence tokens.
"""

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from paragone_models.errors import ModelLoadError, TextError
from paragone_models.messages import Message
from paragone_models.spec import ModelSpec

__all__ = ["FROZEN_DATE", "ChatTemplate", "freeze_date"]

FROZEN_DATE = datetime.date(2024, 7, 26)
"""The day every template is told it is: Llama 3.1's own default, so that scores do not change overnight."""

_DATE_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_DATE_DEFINED = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
_CONTENT_TAGS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"})
"""Added tokens that responses rightly contain; every other one that a template writes marks a turn."""
_OPTIONAL_FIELDS = ("tool_calls", "tool_call_id", "reasoning_content", "name")


def freeze_date(template: str) -> str:
    """Return the template with every call for today's date replaced by a fixed one.

    Args:
        template: a Jinja chat template.

    Raises:
        ModelLoadError: if it formats the date in a way that cannot be fixed beforehand.
    """
    frozen = _DATE_CALL.sub(lambda call: json.dumps(FROZEN_DATE.strftime(call.group(2))), template)
    if "strftime_now" in _DATE_DEFINED.sub("", frozen):
        raise ModelLoadError("the chat template asks for today's date in a computed format: its scores would drift")
    return frozen


class ChatTemplate:
    """Render and tokenise messages as one model expects them.

    Args:
        tokenizer: a transformers tokenizer.
        spec: special-token and BOS policy.
        text_pair: without a template, give prompt and response to the tokenizer as a pair, as encoders are trained.
    """

    def __init__(self, tokenizer: Any, spec: ModelSpec, *, text_pair: bool = False) -> None:
        self._tokenizer = tokenizer
        self._text_pair = text_pair and not tokenizer.chat_template
        self._escape = spec.special_tokens == "escape"
        self._double_bos = spec.bos == "as-published"
        self.has_template = bool(tokenizer.chat_template)
        self.source = freeze_date(tokenizer.get_chat_template()) if self.has_template else ""
        control = sorted(self._control_strings(), key=len, reverse=True) if self._escape else []
        # Only a conversation that holds a control string needs the slow way.
        self._control = re.compile("|".join(map(re.escape, control))) if control else None
        if self._escape:
            tokenizer.chat_control_tokens = control

    def render(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str:
        """Return the text of the conversation, without a generation prompt.

        Args:
            messages: with string contents.
            tools: JSON schemas of tools, or None.

        Raises:
            TextError: ``unsupported_content`` where the template refuses the messages or would leave something out.
        """
        self._check_expressible(messages, tools)
        if self._text_pair:
            return "\n\n".join(message["content"] for message in messages)
        if not self.has_template:
            # The published general preference models' rule for tokenizers without a template.
            return " ".join(message["content"] for message in messages) + " " + (self._tokenizer.eos_token or "")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] if tools else None,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=False,
                )
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise TextError(
                "unsupported_content", f"the model's chat template refuses these messages: {error}"
            ) from error

    def tokenize(
        self, conversations: Sequence[tuple[str, Sequence[Message], Sequence[Message] | None]]
    ) -> list[list[int]]:
        """Return token ids of rendered conversations, special tokens only where the template wrote them.

        Args:
            conversations: the rendered text with the messages and tools that it came from.

        Raises:
            TextError: ``unsupported_content`` where a special-token string cannot be kept as text.
        """
        if self._text_pair:
            return [self._tokenize_pair(messages) for _, messages, _ in conversations]
        ids: list[list[int]] = [[] for _ in conversations]
        plain = [
            index
            for index, (_, messages, tools) in enumerate(conversations)
            if not self._holds_control(messages, tools)
        ]
        if plain:
            texts = [conversations[index][0] for index in plain]
            encoded = self._tokenizer(texts, add_special_tokens=self._double_bos)["input_ids"]
            for index, sequence in zip(plain, encoded, strict=True):
                ids[index] = sequence
        for index in set(range(len(conversations))) - set(plain):
            ids[index] = self._tokenize_escaped(conversations[index][1], conversations[index][2])
        return ids

    def offsets(self, text: str) -> list[int]:
        """Return the character at which each token of a text on its own begins, for cutting it."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=self._escape
        )
        return [start for start, _ in encoded["offset_mapping"]]

    def _tokenize_pair(self, messages: Sequence[Message]) -> list[int]:
        texts = [message["content"] for message in messages]
        if len(texts) > 2:
            raise TextError("unsupported_content", "this model reads one prompt and one response, not several turns")
        encoded: list[int] = self._tokenizer(*texts, split_special_tokens=self._escape)["input_ids"]
        return encoded

    def _tokenize_escaped(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[int]:
        prefix = [self._tokenizer.bos_token_id] if self._double_bos and self._tokenizer.bos_token_id is not None else []
        if not self.has_template:
            body: list[int] = self._tokenizer(
                " ".join(message["content"] for message in messages) + " ",
                add_special_tokens=False,
                split_special_tokens=True,
            )["input_ids"]
            ending = [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
            return prefix + body + ending
        try:
            encoded: list[int] = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                chat_template=self.source,
                tokenize=True,
                return_dict=False,
                add_generation_prompt=False,
                sanitize_control_tokens=True,
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise TextError(
                "unsupported_content", f"a special token's string inside a message cannot be kept as text: {error}"
            ) from error
        return prefix + encoded

    def _control_strings(self) -> list[str]:
        return [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if not token.content.isspace()
            and (token.special or (token.content in self.source and token.content not in _CONTENT_TAGS))
        ]

    def _holds_control(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> bool:
        if self._control is None:
            return False
        for message in messages:
            if self._control.search(message["content"]):
                return True
            if len(message) > 2 and self._control.search(json.dumps(dict(message), ensure_ascii=False)):
                return True
        return bool(tools) and self._control.search(json.dumps(list(tools or ()), ensure_ascii=False)) is not None

    def _check_expressible(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> None:
        """Refuse what the template would leave out without a word."""
        if tools and "tools" not in self.source:
            raise TextError("unsupported_content", "this model's chat template has no place for tools")
        for message in messages:
            if not self.has_template and message["role"] not in ("user", "assistant"):
                raise TextError(
                    "unsupported_content",
                    f"this model has no chat template and cannot tell a {message['role']} message",
                )
            for field in _OPTIONAL_FIELDS:
                if field in message and field not in self.source:
                    raise TextError("unsupported_content", f"this model's chat template has no place for {field}")
