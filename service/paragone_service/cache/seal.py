"""The seal of a value in Redis: a checksum that a damaged, misplaced or forged value does not have.

    sealed = mark u8 | format u8 | blake2b-16( key | value ) | value

Other programs, other replicas and broken memory write into a Redis too. What comes from it counts only if its seal fits
both the value and the key that it was found under: a sound value under another key is as wrong as a damaged one.
Without a secret the seal finds accidents; with one, nobody who lacks the secret can make a value that counts.
Memory keeps bare values: the seal is checked where a value enters the process, and not at each hit.
"""

import hashlib
import hmac

__all__ = ["Seal"]

_MARK = 0xB5  # no value of before there were seals begins with it
_FORMAT = 1
_TAG_BYTES = 16
_HEAD = bytes((_MARK, _FORMAT))
_START = len(_HEAD) + _TAG_BYTES
_PERSON = b"paragone-cache"
_UNSEALED_HEAD = b"\x50\x01"
"""How the values of earlier releases begin, which had no seal."""


class Seal:
    """Seal values, and open what was sealed.

    Args:
        secret: what the checksum is keyed with; empty for one that anybody can make.
    """

    def __init__(self, secret: bytes = b"") -> None:
        # Copied for each value: hashing the secret anew would cost as much as hashing the value.
        self._fresh = hashlib.blake2b(key=secret, digest_size=_TAG_BYTES, person=_PERSON)

    def close(self, key: bytes, value: bytes) -> bytes:
        """Return the sealed form of a value."""
        return _HEAD + self._tag(key, value) + value

    def open(self, key: bytes, sealed: bytes) -> bytes | None:
        """Return the value, or None if this seal was not made for it under this key."""
        value = sealed[_START:]
        if sealed[: len(_HEAD)] != _HEAD or not hmac.compare_digest(sealed[len(_HEAD) : _START], self._tag(key, value)):
            return None
        return value

    @staticmethod
    def outdated(sealed: bytes) -> bool:
        """Return whether this looks like a value of a release that had no seals: replaced, and no sign of damage."""
        return sealed.startswith(_UNSEALED_HEAD)

    def _tag(self, key: bytes, value: bytes) -> bytes:
        tag = self._fresh.copy()
        tag.update(key)  # the keys of a cache all have one length: no border is needed
        tag.update(value)
        return tag.digest()
