"""Whose references a set has: a model that represents responses keeps these, one that compares keeps the texts.

R is the number of responses to a prompt, d the length of a representation.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from paragone.codes import ErrorCode
from paragone.wire import ReferenceItem, Response
from paragone.wire.conversations import Referenced
from paragone_service.cache.keys import prompt_digest
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.source import PairSource
from paragone_service.references.sets import Packed, Stored
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Represented, RequestItem

__all__ = ["TextOwner", "VectorOwner", "Vectors", "check_stored", "with_listed", "with_references"]

Vectors = NDArray[np.float32]
AnyReferenced = TypeVar("AnyReferenced", bound=Referenced)

_MOST_BYTES = 256_000_000
"""Of a request's stored representations, each as often as an item needs it: a short body must not become gigabytes."""
_RESPONSES: TypeAdapter[list[Response]] = TypeAdapter(list[Response])


class VectorOwner:
    """A model that represents responses: what a set has costs no forward any more."""

    def __init__(self, model: HostedModel) -> None:
        self.name = model.name
        self._model = model

    @property
    def identity(self) -> str:
        """What the model is."""
        return self._model.model.identity

    async def packed(self, items: Sequence[ReferenceItem], call: Call) -> Packed:
        """Return the representations of responses, as the contract says.

        Raises:
            ServiceError: ``preferences_unavailable``; for the first response that cannot be scored; else as
                ``HostedModel.represent``.
        """
        self._model.check_preferences()
        asked = [
            RequestItem(index, item.prompt, item.tools, item.responses, len(item.responses))
            for index, item in enumerate(items)
        ]
        represented = await self._model.represent(asked, call)
        contents: dict[bytes, bytes] = {}
        start = 0
        for item in items:
            prompt, stop = prompt_digest(item.prompt, item.tools), start + len(item.responses)
            own = represented.vectors[start:stop].astype("<f4").tobytes()
            contents[prompt] = contents.get(prompt, b"") + own
            start = stop
        return Packed(contents, represented.vectors.shape[1])

    def unpacked(self, content: bytes) -> Vectors:
        """Return representations; [R, d]."""
        return np.frombuffer(content, "<f4").reshape(-1, self._model.model.comparator.dimension)


class TextOwner:
    """A model that reads both responses of a comparison at once: a set saves their bytes on the wire."""

    def __init__(self, source: PairSource) -> None:
        self.name = source.name
        self._source = source

    @property
    def identity(self) -> str:
        """What the model is, an ensemble for example by what its members are now."""
        return str(self._source.header["identity"])

    async def packed(self, items: Sequence[ReferenceItem], call: Call) -> Packed:
        """Return the texts of responses, as the contract says.

        Raises:
            ServiceError: ``invalid_request``, if they are to be cut or refused by their length.
        """
        if call.truncation == "error":
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"model {self.name} reads references when they are compared: leave truncation out here, and say it in "
                "the requests that name the set",
            )
        responses: dict[bytes, list[Response]] = {}
        for item in items:
            responses.setdefault(prompt_digest(item.prompt, item.tools), []).extend(item.responses)
        return Packed(
            {prompt: _RESPONSES.dump_json(some, exclude_none=True) for prompt, some in responses.items()}, None
        )

    def unpacked(self, content: bytes) -> list[Response]:
        """Return the responses; [R]."""
        return _RESPONSES.validate_json(content)


def with_listed(
    asked: Sequence[AnyReferenced], indices: Sequence[int], stored: Mapping[int, Stored[list[Response]]]
) -> list[AnyReferenced]:
    """Return the items of a request with the texts of a set in the place of its name."""
    return [
        one.model_copy(update={"references": stored[index].references}) if index in stored else one
        for index, one in zip(indices, asked, strict=True)
    ]


def check_stored(stored: Mapping[int, Stored[Vectors]]) -> None:
    """Refuse a request whose items name more stored references than can be held beside them.

    Raises:
        ServiceError: ``too_many_items``.
    """
    size = sum(one.references.nbytes for one in stored.values())
    if size > _MOST_BYTES:
        count = sum(len(one.references) for one in stored.values())
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS,
            f"the items of this request are held against {count} stored references, {size} bytes of representations; "
            f"the limit is {_MOST_BYTES}: send fewer items at a time",
        )


def with_references(
    represented: Represented, sizes: Sequence[int], stored: Mapping[int, Stored[Vectors]]
) -> Represented:
    """Return the representations of a request with those of its stored references behind each item's own rows.

    Args:
        sizes: how many rows each item has without them.
    """
    if not stored:
        return represented
    vectors: list[Vectors] = []
    dropped, shown, ids = [], [], []
    none: Vectors = np.empty((0, represented.vectors.shape[1]), np.float32)
    start = 0
    for item, size in zip(represented.items, sizes, strict=True):
        rows = slice(start, start + size)
        start += size
        added = stored[item].references if item in stored else none
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
