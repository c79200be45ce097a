"""Reference sets of a server: stored by one request, looked up by others, bound to a model's identity.

A set is looked up by the digest of the prompt and its tools, before any truncation. What it has for a prompt is its
model's affair (``owners.py``): representations, or the texts themselves.
"""

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from paragone.codes import ErrorCode
from paragone.wire import ReferenceItem, ReferenceSet
from paragone.wire.conversations import Referenced
from paragone_service.cache.keys import prompt_digest
from paragone_service.http.errors import ServiceError, printable
from paragone_service.references.stores import Head, Store
from paragone_service.scoring.request import Call, Problems

__all__ = ["Owner", "Packed", "ReferenceSets", "Stored"]

References = TypeVar("References")
KeptAs = TypeVar("KeptAs", covariant=True)

_TRIES = 8
"""How often a set is looked up that is replaced in between."""


class Packed(NamedTuple):
    """Responses as a set keeps them.

    Attributes:
        contents: by the digest of their prompt.
        dimension: as ``Head`` has it.
    """

    contents: Mapping[bytes, bytes]
    dimension: int | None


class Owner(Protocol[KeptAs]):
    """The model that a set belongs to, and the form in which it keeps responses."""

    @property
    def name(self) -> str:
        """What the model is called in requests."""

    @property
    def identity(self) -> str:
        """What the model is now: a set of another identity is of no use to it."""

    async def packed(self, items: Sequence[ReferenceItem], call: Call) -> Packed:
        """Return responses as they are kept.

        Raises:
            ServiceError: for the first that cannot be: a set is stored whole or not at all.
        """

    def unpacked(self, content: bytes) -> KeptAs:
        """Return the responses to one prompt, from what is kept."""


@dataclass(frozen=True)
class Stored(Generic[References]):
    """The references that a set has for one prompt.

    Attributes:
        references: as their model keeps them.
        version: of the set; another one if it was stored anew.
    """

    references: References
    version: str


class ReferenceSets:
    """Store and find reference sets."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self,
        owner: Owner[object],
        name: str,
        items: Sequence[ReferenceItem],
        call: Call,
        *,
        ttl_s: float | None,
    ) -> ReferenceSet:
        """Store responses in place of what the name had before, and return what is stored.

        Raises:
            ServiceError: as ``Owner.packed`` and ``Store.put``.
        """
        contents, dimension = await owner.packed(items, call)
        now = time.time()
        head = Head(
            birth=secrets.token_hex(8),
            name=name,
            model=owner.name,
            identity=owner.identity,
            dimension=dimension,
            items=len(contents),
            responses=sum(len(item.responses) for item in items),
            created=now,
            expires=None if ttl_s is None else now + ttl_s,
        )
        await self._store.put(call.tenant, head, contents)
        return _described(head)

    async def listed(self, tenant: str | None) -> list[ReferenceSet]:
        """Return what is stored, by name."""
        return [_described(head) for head in await self._store.heads(tenant)]

    async def named(self, tenant: str | None, name: str) -> ReferenceSet:
        """Return what is stored under a name.

        Raises:
            ServiceError: ``reference_unknown``.
        """
        return _described(await self._head(tenant, name))

    async def delete(self, tenant: str | None, name: str) -> ReferenceSet:
        """Forget a set and return what it was.

        Raises:
            ServiceError: ``reference_unknown``.
        """
        head = await self._head(tenant, name)
        await self._store.delete(tenant, name)
        return _described(head)

    async def find(
        self,
        owner: Owner[References],
        tenant: str | None,
        items: Sequence[Referenced],
        indices: Sequence[int],
        problems: Problems,
    ) -> Mapping[int, Stored[References]]:
        """Return the stored references of those items that name a set, by the items' indices.

        Raises:
            ServiceError: ``reference_unknown``, ``reference_stale`` or ``reference_missing`` for the first item whose
                set does not fit, unless errors are reported.
        """
        wanted: dict[str, list[tuple[int, bytes]]] = {}
        for index, item in zip(indices, items, strict=True):
            if item.reference_set is not None:
                wanted.setdefault(item.reference_set, []).append((index, prompt_digest(item.prompt, item.tools)))
        found: dict[int, Stored[References]] = {}
        for name, places in wanted.items():
            found |= await self.by_prompt(owner, tenant, name, places, problems)
        return found

    async def by_prompt(
        self,
        owner: Owner[References],
        tenant: str | None,
        name: str,
        places: Sequence[tuple[int, bytes]],
        problems: Problems,
    ) -> dict[int, Stored[References]]:
        """Return what one set has, by the items' indices.

        Args:
            places: index and digest of the prompt of each item.

        Raises:
            ServiceError: as ``find``.
        """
        try:
            head, contents = await self._contents(owner, tenant, name, {prompt for _, prompt in places})
        except ServiceError as error:
            if error.code not in (ErrorCode.REFERENCE_UNKNOWN, ErrorCode.REFERENCE_STALE):
                raise
            for index, _ in places:
                problems.add(index, error)
            return {}
        # Thousands of items may be of one prompt: they share what it has.
        unpacked = {
            prompt: Stored(owner.unpacked(content), head.birth)
            for prompt, content in contents.items()
            if content is not None
        }
        for index, prompt in places:
            if prompt not in unpacked:
                problems.add(index, _missing(head))
        return {index: unpacked[prompt] for index, prompt in places if prompt in unpacked}

    async def _contents(
        self, owner: Owner[object], tenant: str | None, name: str, prompts: Collection[bytes]
    ) -> tuple[Head, dict[bytes, bytes | None]]:
        """Return what a set has for prompts; one that is stored anew meanwhile is looked up anew."""
        head = await self._head(tenant, name)
        asked = list(prompts)
        for left in reversed(range(_TRIES)):
            _check_identity(head, owner)
            try:
                return head, dict(zip(asked, await self._store.get(tenant, head, asked), strict=True))
            except ServiceError:
                newest = await self._head(tenant, name)
                if newest.birth == head.birth or not left:
                    raise
                head = newest
        raise AssertionError("the last try returns or raises")

    async def _head(self, tenant: str | None, name: str) -> Head:
        head = await self._store.head(tenant, name)
        if head is None:
            raise ServiceError(
                ErrorCode.REFERENCE_UNKNOWN,
                f"no reference set {printable(name)} is stored here (any more): store it by POST /v1/references",
            )
        return head


def _check_identity(head: Head, owner: Owner[object]) -> None:
    if head.identity != owner.identity:
        raise ServiceError(
            ErrorCode.REFERENCE_STALE,
            f"the reference set {head.name} was stored with model {head.model} of identity {head.identity[:16]}…, and "
            f"{owner.name} has {owner.identity[:16]}… now: store it again",
        )


def _missing(head: Head) -> ServiceError:
    return ServiceError(
        ErrorCode.REFERENCE_MISSING,
        f"the reference set {head.name} has {head.items} prompts, and not this one (with these tools): store a set "
        "that has it, or list the references",
    )


def _described(head: Head) -> ReferenceSet:
    return ReferenceSet(**{name: getattr(head, name) for name in ReferenceSet.model_fields})
