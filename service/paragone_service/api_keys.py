"""The keys of a server: named, known by their hashes alone, read from a file, and found in constant time.

A file has one key a line, with options behind it, as ``paragone key new`` writes it:

    # name:hash, the hash being the SHA-256 of the key in hexadecimal
    training:9f86d081884c7d65…
    acme:60303ae22b998861…  tenant=acme requests_per_minute=600 tokens_per_minute=2000000
    ops:2c26b46b68ffc68f…  admin=yes

A plain hash is enough, because a key is 256 random bits and cannot be guessed. A file with one word and no name is the
key itself, for servers that have just one.
"""

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["NAME", "ApiKey", "KeyRing", "hash_of", "parse_keys", "plain_key"]

logger = logging.getLogger("paragone.service")

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What names of keys and tenants look like."""
_LINE = re.compile(rf"({NAME}):([0-9a-fA-F]{{64}})((?:\s+\S+)*)")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_HASH_GONE_WRONG = re.compile(rf"{NAME}:[0-9a-fA-F]*")
_COUNTS = ("requests_per_minute", "tokens_per_minute")
_OPTIONS = ("tenant", *_COUNTS, "admin")
_PLAIN_NAME = "default"


@dataclass(frozen=True)
class ApiKey:
    """One key, as the server knows it.

    Attributes:
        name: what logs and metrics call it.
        digest: SHA-256 of the key; the key itself is nowhere.
        tenant: whose representations are cached apart from everybody else's; None shares them.
        requests_per_minute: how many requests it may send; None: the server's own limit.
        tokens_per_minute: how many tokens it may have run; None: the server's own limit.
        admin: whether it may load and unload models.
        listed: whether it stands in a list with its hash; else the server was given the key itself.
    """

    name: str
    digest: bytes
    tenant: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    admin: bool = False
    listed: bool = True


def hash_of(key: str) -> str:
    """Return what stands for a key in a file."""
    return hashlib.sha256(key.encode()).hexdigest()


def plain_key(text: str) -> ApiKey:
    """Return a key that is given itself.

    Raises:
        ValueError: if no header can carry it.
    """
    if not _PRINTABLE.fullmatch(text):
        raise ValueError("the API key is empty or has characters that a header cannot carry: use printable ASCII")
    return ApiKey(_PLAIN_NAME, bytes.fromhex(hash_of(text)), listed=False)


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """Return the keys of a file.

    Raises:
        ValueError: if there is none, a line has another form, or a name comes twice. No message repeats a line, which
            may hold a key.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    # A hash of another length is a mistake, or half a file: taken as a key it would shut everybody out without a word.
    if len(lines) <= 1 and not any(_LINE.fullmatch(line) or _HASH_GONE_WRONG.fullmatch(line) for _, line in lines):
        return (plain_key(lines[0][1] if lines else ""),)
    keys: dict[str, ApiKey] = {}
    names: dict[bytes, str] = {}
    for number, line in lines:
        key = _parse_line(number, line)
        if key.name in keys:
            raise ValueError(f"line {number}: the name {key.name} comes twice; a key needs a name of its own")
        if key.digest in names:
            raise ValueError(f"line {number}: {key.name} has the hash of {names[key.digest]}; make each its own key")
        keys[key.name], names[key.digest] = key, key.name
    return tuple(keys.values())


def _parse_line(number: int, line: str) -> ApiKey:
    parts = _LINE.fullmatch(line)
    if parts is None:
        raise ValueError(f"line {number} is not NAME:HASH with a SHA-256 in 64 digits: `paragone key new` writes one")
    options: dict[str, str] = {}
    for option in parts[3].split():
        name, _, value = option.partition("=")
        if name not in _OPTIONS or not value:
            raise ValueError(f"line {number}: options are {', '.join(f'{known}=…' for known in _OPTIONS)}")
        options[name] = value
    for name in _COUNTS:
        if name in options and not re.fullmatch(r"[1-9]\d{0,17}", options[name]):
            raise ValueError(f"line {number}: {name} must be a whole number, at least 1")
    if "tenant" in options and not re.fullmatch(NAME, options["tenant"]):
        raise ValueError(f"line {number}: a tenant's name has letters, digits, '.', '_' and '-'")
    if options.get("admin", "yes") != "yes":
        raise ValueError(f"line {number}: admin must be yes, or left out")
    requests, tokens = (int(options[name]) if name in options else None for name in _COUNTS)
    return ApiKey(parts[1], bytes.fromhex(parts[2]), options.get("tenant"), requests, tokens, "admin" in options)


class KeyRing:
    """Find the key that a request presents.

    Args:
        keys: none let everybody in.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._blind = secrets.token_bytes(32)
        self._keys: dict[bytes, ApiKey] = {}
        self._exchange(keys)

    @property
    def wanted(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    def find(self, presented: bytes) -> ApiKey | None:
        """Return the key that was presented, or None."""
        # Found by a hash under a secret of this process: how long the look-up takes says nothing that anybody could
        # have aimed at, and it is the same for one key and for a thousand.
        return self._keys.get(self._place(hashlib.sha256(presented).digest()))

    async def follow(self, read: Callable[[], Sequence[ApiKey]], *, every_s: float) -> None:
        """Exchange the keys whenever ``read`` gives others, twice alike; keep them while it raises ``ValueError``."""
        before: Sequence[ApiKey] | str = ()
        while True:
            await asyncio.sleep(every_s)
            try:
                keys = await asyncio.to_thread(read)
                self._check_exchange(keys)
            except ValueError as error:
                if str(error) != before:  # once for each mistake, and not every second
                    logger.error("the keys stay as they were: %s", error)
                before = str(error)
                continue
            # Twice, because an editor may be half-way through writing the file.
            settled, before = keys == before, keys
            if settled and set(keys) != set(self._keys.values()):
                self._exchange(keys)
                logger.warning("the keys were exchanged; they are now: %s", ", ".join(key.name for key in keys))

    def _check_exchange(self, keys: Sequence[ApiKey]) -> None:
        # The beginning of a list, cut off, would be such a word, and a guessable key.
        if any(key.listed for key in self._keys.values()) and not all(key.listed for key in keys):
            raise ValueError("a list of keys is not exchanged for a single word while the server runs: restart it")

    def _exchange(self, keys: Sequence[ApiKey]) -> None:
        self._keys = {self._place(key.digest): key for key in keys}

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._blind).digest()
