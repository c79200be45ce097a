"""Handles: the ids that stand for a (model identity, prompt, response) on the wire, so that a long text travels once.

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
from dataclasses import dataclass

from paragone_service.cache.keys import DIGEST_BYTES

__all__ = ["NO_SECRET", "Handle", "Handles", "secret_of"]

NO_SECRET = bytes(32)
"""What a server without a key has; its ids keep nothing from anybody."""

_TAG_BYTES = 16
_BYTES = _TAG_BYTES + 2 * DIGEST_BYTES
_TAG = b"paragone-id-tag"
_MASK = b"paragone-id-mask"


def secret_of(api_key: str | None) -> bytes:
    """Return the 32 bytes that a server keys its ids with.

    The key is stretched, because an id for a known text would else let a weak key be guessed fast. A server without one
    listens on loopback only, and its ids keep nothing from the users of that machine.

    Args:
        api_key: the key that its clients send, or None.
    """
    if api_key is None:
        return NO_SECRET
    return hashlib.scrypt(api_key.encode(), salt=b"paragone-ids", n=2**14, r=8, p=1, dklen=32)


@dataclass(frozen=True, slots=True)
class Handle:
    """What an id stands for.

    Attributes:
        prompt: digest of its prompt and tools; None for an id that this server has not made.
        key: cache key of its conversation; for an id that is not ours, one that no conversation has.
    """

    prompt: bytes | None
    key: bytes


class Handles:
    """Make and read the ids of one model.

    Args:
        secret: from ``secret_of``.
        space: the model's namespace in the cache.
    """

    def __init__(self, secret: bytes, space: bytes) -> None:
        self._secret = secret
        self._space = space

    def id_of(self, prompt: bytes, key: bytes) -> str:
        """Return the id of a response.

        Args:
            prompt: digest of its prompt.
            key: cache key of its conversation.
        """
        digests = prompt + key[len(self._space) :]
        tag = self._tag(digests)
        return base64.urlsafe_b64encode(tag + self._masked(digests, tag)).decode()

    def read(self, id: str) -> Handle:
        """Return what an id stands for; reading a foreign one costs and tells the same as one that was evicted."""
        try:
            raw = base64.b64decode(id.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raw = b""
        sealed = raw if len(raw) == _BYTES else bytes(_BYTES)
        tag = sealed[:_TAG_BYTES]
        digests = self._masked(sealed[_TAG_BYTES:], tag)
        if hmac.compare_digest(tag, self._tag(digests)):
            return Handle(digests[:DIGEST_BYTES], self._space + digests[DIGEST_BYTES:])
        return Handle(None, self._space + self._tag(digests + tag))

    def _tag(self, digests: bytes) -> bytes:
        said = self._space + digests
        return hashlib.blake2b(said, digest_size=_TAG_BYTES, key=self._secret, person=_TAG).digest()

    def _masked(self, digests: bytes, tag: bytes) -> bytes:
        mask = hashlib.blake2b(tag, digest_size=len(digests), key=self._secret, person=_MASK).digest()
        return (int.from_bytes(digests, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(mask), "big")
