"""The cache key of a conversation: what was said, before any truncation, under one model's identity.

    key = namespace (8 bytes) + blake2b-16( form | prompt | tools | response )

Every part is length-prefixed, so that the border between prompt and response is part of the key. A string prompt is
its one user message, a string response its one assistant message: they share an entry with the long form. The form
byte keeps conversations apart from what other routes may cache: ``M`` messages, ``T`` raw text, ``I`` token ids.
"""

import hashlib
import json
from collections.abc import Sequence

from pydantic import JsonValue

from paragone.wire import Message, Prompt, Response

__all__ = ["DIGEST_BYTES", "NAMESPACE_BYTES", "conversation_keys", "namespace", "prompt_digest"]

NAMESPACE_BYTES = 8
DIGEST_BYTES = 16
_MESSAGES = b"M"


def _size(length: int) -> bytes:
    return length.to_bytes(8, "little")


def _plain_head(role: str) -> bytes:
    return b"p" + _size(len(role)) + role.encode()


_NO_TOOLS = b"-"
_ONE = _size(1)
_STRING_PROMPT = _MESSAGES + _ONE + _plain_head("user")
_STRING_RESPONSE = _ONE + _plain_head("assistant")


def namespace(identity: str, numerics: dict[str, str] | None = None) -> bytes:
    """Return the 8 bytes that keep the entries of one model apart from those of every other.

    Args:
        identity: the model's identity, hexadecimal.
        numerics: dtype, kernels and versions, to keep apart also what differs only in rounding; None shares it.
    """
    if numerics is None:
        return bytes.fromhex(identity)[:NAMESPACE_BYTES]
    text = json.dumps([identity, numerics], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=NAMESPACE_BYTES).digest()


def conversation_keys(
    space: bytes, prompt: Prompt, tools: list[dict[str, JsonValue]] | None, responses: Sequence[Response]
) -> list[bytes]:
    """Return one key per response to a prompt; the prompt is hashed once.

    Args:
        space: the model's namespace.
        prompt: what was asked, as it came over the wire.
        tools: the tools on offer, or None.
        responses: the answers to it.
    """
    shared = _hashed(prompt, tools)
    keys = []
    for response in responses:
        own = shared.copy()
        if type(response) is str:
            text = response.encode()
            own.update(_STRING_RESPONSE + _size(len(text)) + text)
        else:
            own.update(_messages([response] if isinstance(response, Message) else response))
        keys.append(space + own.digest())
    return keys


def prompt_digest(prompt: Prompt, tools: list[dict[str, JsonValue]] | None) -> bytes:
    """Return the 16 bytes that all conversations with one prompt and one set of tools share.

    Args:
        prompt: what was asked, as it came over the wire.
        tools: the tools on offer, or None.
    """
    return _hashed(prompt, tools).digest()


def _hashed(prompt: Prompt, tools: list[dict[str, JsonValue]] | None) -> "hashlib.blake2b":
    offered = _NO_TOOLS if tools is None else _json(tools)
    if type(prompt) is str:
        text = prompt.encode()
        start = _STRING_PROMPT + _size(len(text)) + text + offered
    else:
        start = _MESSAGES + _messages(prompt) + offered
    return hashlib.blake2b(start, digest_size=DIGEST_BYTES, usedforsecurity=False)


def _messages(messages: Sequence[Message] | str) -> bytes:
    assert not isinstance(messages, str)
    return _size(len(messages)) + b"".join(map(_message, messages))


def _message(message: Message) -> bytes:
    said = message.model_dump(mode="json", exclude_none=True)
    if said.keys() == {"role", "content"} and isinstance(said["content"], str):
        content = said["content"].encode()
        return _plain_head(said["role"]) + _size(len(content)) + content
    return b"f" + _json(said)


def _json(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    return b"j" + _size(len(text)) + text
