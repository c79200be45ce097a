"""Reference sets of a server: stored by one request, looked up by others, bound to a model's identity.

A set has representations and no texts, so a win rate against a fixed policy costs the forward of the response alone.
It is looked up by the digest of the prompt and its tools, before any truncation.
"""

import dataclasses
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import ReferenceItem, ReferenceSet
from paragone.wire.conversations import Referenced
from paragone_service.cache.keys import prompt_digest
from paragone_service.http.errors import ServiceError, printable
from paragone_service.references.stores import Head, Store
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Problems, Represented, RequestItem

__all__ = ["ReferenceSets", "Stored", "with_references"]

Vectors = NDArray[np.float32]

_TRIES = 8
"""How often a set is looked up that is replaced in between."""


@dataclass(frozen=True)
class Stored:
    """The references that a set has for one prompt.

    Attributes:
        vectors: their representations. [R, d]
        version: of the set; another one if it was stored anew.
    """

    vectors: Vectors
    version: str


class ReferenceSets:
    """Store and find reference sets."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self, model: HostedModel, name: str, items: Sequence[ReferenceItem], call: Call, *, ttl_s: float | None
    ) -> ReferenceSet:
        """Represent responses, store them in place of what the name had before, and return what is stored.

        Raises:
            ServiceError: for the first response that cannot be scored: a set is stored whole or not at all; else as
                ``HostedModel.represent``.
        """
        prompts = [prompt_digest(item.prompt, item.tools) for item in items]
        asked = [
            RequestItem(index, item.prompt, item.tools, item.responses, len(item.responses))
            for index, item in enumerate(items)
        ]
        sizes = [len(item.responses) for item in items]
        represented = await model.represent(asked, call)
        vectors: dict[bytes, Vectors] = {}
        start = 0
        for prompt, size in zip(prompts, sizes, strict=True):
            own = represented.vectors[start : start + size]
            start += size
            # A copy: a view would keep the whole request's numbers alive.
            vectors[prompt] = np.concatenate([vectors[prompt], own]) if prompt in vectors else own.copy()
        now = time.time()
        head = Head(
            birth=secrets.token_hex(8),
            name=name,
            model=model.name,
            identity=model.model.identity,
            dimension=represented.vectors.shape[1],
            items=len(vectors),
            responses=sum(sizes),
            created=now,
            expires=None if ttl_s is None else now + ttl_s,
        )
        await self._store.put(call.tenant, head, vectors)
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
        model: HostedModel,
        tenant: str | None,
        items: Sequence[Referenced],
        indices: Sequence[int],
        problems: Problems,
    ) -> Mapping[int, Stored]:
        """Return the stored references of those items that name a set, by the items' indices.

        Raises:
            ServiceError: ``reference_unknown``, ``reference_stale`` or ``reference_missing`` for the first item whose
                set does not fit, unless errors are reported.
        """
        wanted: dict[str, list[tuple[int, bytes]]] = {}
        for index, item in zip(indices, items, strict=True):
            if item.reference_set is not None:
                wanted.setdefault(item.reference_set, []).append((index, prompt_digest(item.prompt, item.tools)))
        found: dict[int, Stored] = {}
        for name, places in wanted.items():
            found |= await self.by_prompt(model, tenant, name, places, problems)
        return found

    async def by_prompt(
        self,
        model: HostedModel,
        tenant: str | None,
        name: str,
        places: Sequence[tuple[int, bytes]],
        problems: Problems,
    ) -> dict[int, Stored]:
        """Return what one set has, by the items' indices.

        Args:
            places: index and digest of the prompt of each item.

        Raises:
            ServiceError: as ``find``.
        """
        try:
            head, vectors = await self._vectors(model, tenant, name, {prompt for _, prompt in places})
        except ServiceError as error:
            if error.code not in (ErrorCode.REFERENCE_UNKNOWN, ErrorCode.REFERENCE_STALE):
                raise
            for index, _ in places:
                problems.add(index, error)
            return {}
        found = {}
        for index, prompt in places:
            stored = vectors[prompt]
            if stored is None:
                problems.add(index, _missing(head))
            else:
                found[index] = Stored(stored, head.birth)
        return found

    async def _vectors(
        self, model: HostedModel, tenant: str | None, name: str, prompts: Collection[bytes]
    ) -> tuple[Head, dict[bytes, Vectors | None]]:
        """Return what a set has for prompts; one that is stored anew meanwhile is looked up anew."""
        head = await self._head(tenant, name)
        asked = list(prompts)
        for left in reversed(range(_TRIES)):
            _check_identity(head, model)
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


def with_references(represented: Represented, sizes: Sequence[int], stored: Mapping[int, Stored]) -> Represented:
    """Return the representations of a request with those of its stored references behind each item's own rows.

    Args:
        sizes: how many rows each item has without them.
    """
    if not stored:
        return represented
    vectors: list[Vectors] = []
    dropped, shown, ids = [], [], []
    start = 0
    for item, size in zip(represented.items, sizes, strict=True):
        rows = slice(start, start + size)
        start += size
        added = stored[item].vectors if item in stored else np.empty((0, represented.vectors.shape[1]), np.float32)
        vectors += [represented.vectors[rows], added]
        dropped += [represented.dropped[rows], np.zeros(len(added), np.uint32)]
        shown += [represented.shown[rows], np.ones(len(added), np.bool_)]
        ids += [*represented.ids[rows], *[None] * (len(added) if represented.ids else 0)]
    return dataclasses.replace(
        represented,
        vectors=np.concatenate(vectors),
        dropped=np.concatenate(dropped),
        shown=np.concatenate(shown),
        ids=ids,
    )


def _check_identity(head: Head, model: HostedModel) -> None:
    if head.identity != model.model.identity:
        raise ServiceError(
            ErrorCode.REFERENCE_STALE,
            f"the reference set {head.name} was stored with model {head.model} of identity {head.identity[:16]}…, and "
            f"{model.name} has {model.model.identity[:16]}… now: store it again",
        )


def _missing(head: Head) -> ServiceError:
    return ServiceError(
        ErrorCode.REFERENCE_MISSING,
        f"the reference set {head.name} has {head.items} prompts, and not this one (with these tools): store a set "
        "that has it, or list the references",
    )


def _described(head: Head) -> ReferenceSet:
    return ReferenceSet(**{name: getattr(head, name) for name in ReferenceSet.model_fields})
