"""The cache key of a conversation, and the ids that stand for one on the wire, so that a long text travels once.

A key is a hash of what was said, before any truncation, under one model's identity:

    key = namespace (8 bytes) + blake2b-16( form | prompt | tools | response )

Every part is length-prefixed, so that the border between prompt and response is part of the key. A string prompt is
its one user message, a string response its one assistant message: they share an entry with the long form. An image
is the hash of its bytes, however they are written. The form
byte keeps conversations apart from what other routes may cache: ``M`` messages, ``T`` raw text, ``I`` token ids, ``P``
a pair of responses in one order.

An id is made of the two digests that lead to the key, sealed with the server's secret:

    id   = base64url( tag (16) | mask XOR (prompt digest (16) | response digest (16)) )      64 letters
    tag  = blake2b-16( model's namespace | both digests ), keyed by the server's secret
    mask = blake2b-32( tag ), keyed by the same secret

The tag makes an id impossible to forge, to splice from two others or to carry over to another model or to a server
with another key; the mask keeps it from telling, to whoever has no key, whether it stands for a text that they guess.
(Tag first, then a mask made of it: the scheme of a synthetic initialisation vector, RFC 5297.) Nothing is stored: the
digests lead to the cache's own entry, so that an id is known exactly as long as its representation is, in every
replica that shares Redis and key. An id is the same each time, and says no more than that.
"""

import base64
import binascii
import hashlib
import hmac
import json
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import JsonValue

from paragone.wire import Message, Prompt, Response, canonical_json
from paragone_models.errors import TextError
from paragone_models.images import data_of
from paragone_models.text.pairs import PairText
from paragone_models.text.rendered import Rendered

__all__ = ["NO_SECRET", "Ids", "carried", "conversation_keys", "namespace", "prompt_digest", "secret_of", "text_key"]

NO_SECRET = bytes(32)
"""What a server without a key has; its ids keep nothing from anybody."""

_NAMESPACE_BYTES = 8
_DIGEST_BYTES = 16
_TAG_BYTES = 16
_ID_BYTES = _TAG_BYTES + 2 * _DIGEST_BYTES
_TAG = b"paragone-id-tag"
_MASK = b"paragone-id-mask"
_MESSAGES = b"M"
_TEXT = b"T"
_TOKENS = b"I"
_STEPS = b"steps"
_PRINCIPLE = b"principle"
_PAIR = b"P"
_IMAGE = "image_sha256"


def _size(length: int) -> bytes:
    return length.to_bytes(8, "little")


# A message of role and text alone, as nearly all are, is hashed without a detour over JSON. The first letter keeps the
# two forms apart: p(lain) and f(ull).
def _plain_head(role: str) -> bytes:
    return b"p" + _size(len(role)) + role.encode()


_NO_TOOLS = b"-"
_ONE = _size(1)
_STRING_PROMPT = _MESSAGES + _ONE + _plain_head("user")
_STRING_RESPONSE = _ONE + _plain_head("assistant")


def namespace(identity: str, numerics: dict[str, str] | None = None, *, tenant: str | None = None) -> bytes:
    """Return the 8 bytes that keep the entries of one model apart from those of every other.

    Args:
        tenant: whose entries they are; None for those that everybody shares.
        numerics: dtype, kernels and versions, to keep apart also what differs only in rounding; None shares it.
    """
    if numerics is None and tenant is None:
        return bytes.fromhex(identity)[:_NAMESPACE_BYTES]
    text = json.dumps([identity, numerics] if tenant is None else [identity, numerics, tenant], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=_NAMESPACE_BYTES).digest()


def carried(key: bytes, space: bytes) -> bytes:
    """Return the key of the same response in the namespace of another model."""
    return space + key[_NAMESPACE_BYTES:]


def conversation_keys(
    space: bytes,
    prompt: Prompt,
    tools: list[dict[str, JsonValue]] | None,
    responses: Sequence[Response | tuple[str, ...]],
    principle: str | None = None,
) -> list[bytes]:
    """Return one key per response to a prompt.

    Args:
        responses: a tuple of texts is a response that came as single steps.
        principle: what they are judged by, if the request says.
    """
    shared = _hashed(prompt, tools, principle)
    keys = []
    for response in responses:
        own = shared.copy()  # the prompt is hashed once for all its responses
        if type(response) is str:
            text = response.encode()
            own.update(_STRING_RESPONSE + _size(len(text)) + text)
        elif isinstance(response, tuple):
            own.update(_STEPS + _json(list(response)))
        else:
            own.update(_messages([response] if isinstance(response, Message) else response))
        keys.append(space + own.digest())
    return keys


def text_key(space: bytes, text: Rendered | PairText, parts: dict[int, bytes] | None = None) -> bytes:
    """Return the key of what comes as one text: rendered already, or a pair in one order.

    Args:
        parts: digests of the parts of earlier pairs, by the ids of the objects, which must all be alive. A prompt that
            ten thousand pairs share is then hashed once.
    """
    if isinstance(text, Rendered):
        return _rendered_key(space, text)
    return _pair_key(space, text, {} if parts is None else parts)


def _pair_key(space: bytes, text: PairText, parts: dict[int, bytes]) -> bytes:
    whole = hashlib.blake2b(_PAIR, digest_size=_DIGEST_BYTES, usedforsecurity=False)
    for part in (text.prompt, text.first, text.second):
        digest = parts.get(id(part))
        if digest is None:
            own = hashlib.blake2b(_json(part), digest_size=_DIGEST_BYTES, usedforsecurity=False)
            digest = parts[id(part)] = own.digest()
        whole.update(digest)
    return space + whole.digest()


def _rendered_key(space: bytes, text: Rendered) -> bytes:
    """Return the key of a text that is rendered already, or of its tokens."""
    if isinstance(text.content, str):
        content = text.content.encode("utf-8", "surrogatepass")  # such a text is refused, but by the reader
        form = _TEXT
    else:
        content, form = array("q", text.content).tobytes(), _TOKENS
    how = json.dumps([text.ends, text.most_tokens, text.keeps_start]).encode()
    start = form + _size(len(content)) + content + how
    return space + hashlib.blake2b(start, digest_size=_DIGEST_BYTES, usedforsecurity=False).digest()


def prompt_digest(prompt: Prompt, tools: list[dict[str, JsonValue]] | None, principle: str | None = None) -> bytes:
    """Return the 16 bytes that all conversations with one prompt, one set of tools and one principle share."""
    return _hashed(prompt, tools, principle).digest()


def _hashed(prompt: Prompt, tools: list[dict[str, JsonValue]] | None, principle: str | None) -> "hashlib.blake2b":
    offered = _NO_TOOLS if tools is None else _json(tools)
    if principle is not None:
        offered += _PRINCIPLE + _json(principle)
    # ``type`` and not isinstance: this is the warm path, and the wire types make nothing but plain strings.
    if type(prompt) is str:
        text = prompt.encode()
        start = _STRING_PROMPT + _size(len(text)) + text + offered
    else:
        start = _MESSAGES + _messages(prompt) + offered
    # 16 bytes: two of 10^12 texts collide with a probability of about 10^-15.
    return hashlib.blake2b(start, digest_size=_DIGEST_BYTES, usedforsecurity=False)


def _messages(messages: Sequence[Message] | str) -> bytes:
    assert not isinstance(messages, str)
    return _size(len(messages)) + b"".join(map(_message, messages))


def _message(message: Message) -> bytes:
    fields = message.model_dump(mode="json", exclude_none=True)
    if fields.keys() == {"role", "content"} and isinstance(fields["content"], str):
        content = fields["content"].encode()
        return _plain_head(fields["role"]) + _size(len(content)) + content
    if isinstance(fields.get("content"), list):
        fields["content"] = [_part(part) for part in fields["content"]]
    return b"f" + _json(fields)


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Return a content part with the hash of an image's bytes in the place of its data URL."""
    image = part.get("image_url")
    if image is None:
        return part
    try:
        data = data_of(image.get("url"))
    except TextError:
        return part  # it is refused, but by the reader
    others = {name: value for name, value in image.items() if name != "url"}
    # No part that is sent has a field of this name, so that none can pass for an image by its hash.
    return {**part, "image_url": others, _IMAGE: hashlib.sha256(data).hexdigest()}


def _json(value: object) -> bytes:
    text = canonical_json(value)
    return b"j" + _size(len(text)) + text


def secret_of(api_key: bytes | None) -> bytes:
    """Return the 32 bytes that a server keys its ids with.

    Args:
        api_key: the key, or its hash, which is all that the server may have.

    It is stretched, because an id for a known text would else let a weak key be guessed fast. A server without one
    listens on loopback only, and its ids keep nothing from the users of that machine.
    """
    if api_key is None:
        return NO_SECRET
    return hashlib.scrypt(api_key, salt=b"paragone-ids", n=2**14, r=8, p=1, dklen=32)


class _Target(NamedTuple):
    """What an id stands for.

    Attributes:
        prompt: digest of its prompt and tools; None for an id that this server has not made.
        key: cache key of its conversation; for an id that is not ours, one that no conversation has.
    """

    prompt: bytes | None
    key: bytes


class Ids:
    """Make and read the ids of one model.

    Attributes:
        space: its namespace, with which its keys begin.
    """

    def __init__(self, secret: bytes, space: bytes) -> None:
        self._secret = secret
        self.space = space

    def id_of(self, prompt: bytes, key: bytes) -> str:
        """Return the id of a response."""
        digests = prompt + key[len(self.space) :]
        tag = self._tag(digests)
        return base64.urlsafe_b64encode(tag + self._masked(digests, tag)).decode()

    def read(self, id: str) -> _Target:
        """Return what an id stands for."""
        try:
            raw = base64.b64decode(id.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raw = b""
        # What is no id goes the same way as a foreign one: it costs the same time, and leads to a key that no
        # conversation has, so that nobody can tell either from an id whose representation was evicted.
        sealed = raw if len(raw) == _ID_BYTES else bytes(_ID_BYTES)
        tag = sealed[:_TAG_BYTES]
        digests = self._masked(sealed[_TAG_BYTES:], tag)
        if hmac.compare_digest(tag, self._tag(digests)):
            return _Target(digests[:_DIGEST_BYTES], self.space + digests[_DIGEST_BYTES:])
        return _Target(None, self.space + self._tag(digests + tag))

    def _tag(self, digests: bytes) -> bytes:
        text = self.space + digests
        return hashlib.blake2b(text, digest_size=_TAG_BYTES, key=self._secret, person=_TAG).digest()

    def _masked(self, digests: bytes, tag: bytes) -> bytes:
        mask = hashlib.blake2b(tag, digest_size=len(digests), key=self._secret, person=_MASK).digest()
        return (int.from_bytes(digests, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(mask), "big")
