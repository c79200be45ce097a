"""Hidden states of a frozen backbone, each computed once and kept on disk, so that a fit takes seconds the second time.

A response passes the backbone once, whatever is fitted to it: all that a head can read of a text is read in one pass
(its last token, the mean over it, the prompt's end for a gate) and kept, each under a name of its own. In a causal
backbone a state depends on nothing behind it, so that of a prompt is kept once for all responses. Parts are written
every half minute; a run that was killed goes on.

Shapes: n readings, R reads of each, H hidden size.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from paragone_models.errors import NonFiniteError
from paragone_models.files.loading import Backbone
from paragone_models.forward import LocalForward
from paragone_models.machine import DEFAULTS
from paragone_models.network import PreferenceNetwork, RepresentationHead, output_width
from paragone_models.rotary import depending_on_length
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem, Read, Reading, read_plan

__all__ = ["FrozenBackbone"]

logger = logging.getLogger(__name__)

_CHUNK = 32
_PART_S = 30.0
_REWARD = ModelSpec(kind="bradley-terry", dimension=1)
_GATED = ModelSpec(kind="general-preference", dimension=4, gate="softmax")

_Key = bytes


def _unwatched(_done: int, _total: int) -> None:
    """Say nothing."""


class FrozenBackbone:
    """Run a frozen backbone, and remember what it gave.

    Args:
        folder: of the kept states; those of other backbones may lie there too.

    Attributes:
        computed: how many sequences passed the backbone so far, because their states were not on disk.
    """

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        parameter = next(backbone.module.parameters())
        # The head is never applied; a network needs one.
        network = PreferenceNetwork(backbone.module, RepresentationHead(output_width(backbone.module.config), _REWARD))
        self._network, self._max_tokens = network, DEFAULTS.get(parameter.device.type, DEFAULTS["cpu"])
        self._prefixes_suffice = network.causal and not depending_on_length(network.config)
        self._width = output_width(network.config)
        name = f"{backbone.reference.identity} {parameter.dtype}"
        self._folder = folder / hashlib.sha256(name.encode()).hexdigest()[:20]
        self._known: dict[_Key, NDArray[np.float32]] = {}
        self._new: list[_Key] = []
        self.computed = 0

    def states(self, readings: Sequence[Reading]) -> NDArray[np.float32]:
        """Return the hidden states at each reading's reads. [n, R, H].

        Args:
            readings: at least one, all with the same number of reads.

        Raises:
            NonFiniteError: if a state has NaN or infinity in it.
        """
        self.complete(readings)
        return np.stack([np.stack([self._known[key] for key in self._keys(reading)]) for reading in readings])

    def complete(self, readings: Sequence[Reading], *, on_progress: Callable[[int, int], None] = _unwatched) -> None:
        """Have the states of all readings: those that are not on disk are computed.

        Args:
            on_progress: told how many of how many distinct texts have their states, first of all those on disk.

        Raises:
            NonFiniteError: if a state has NaN or infinity in it.
        """
        self._read_parts()
        distinct = {self._key(reading, (0, len(reading.token_ids))): reading for reading in readings}
        missing = [reading for reading in distinct.values() if not self._known.keys() >= set(self._keys(reading))]
        known = len(distinct) - len(missing)
        on_progress(known, len(distinct))
        self._compute(missing, lambda done: on_progress(known + done, len(distinct)))

    def _keys(self, reading: Reading) -> list[_Key]:
        return [self._key(reading, read) for read in reading.reads]

    def _key(self, reading: Reading, read: Read) -> _Key:
        tokens = reading.token_ids[: read[1]] if self._prefixes_suffice else reading.token_ids
        content = np.asarray(tokens, dtype=np.int64).tobytes() + np.array([read]).tobytes()
        return hashlib.blake2b(content, digest_size=16).digest()

    def _compute(self, missing: Sequence[Reading], on_chunk: Callable[[int], None]) -> None:
        if not missing:
            return
        known = f"{len(self._known)} states are" if self._known else "none of their states is"
        logger.info("%d sequences have to pass the backbone (%s on disk)", len(missing), known)
        # Only now: it tries the ways to run the backbone, which takes seconds, and often everything is on disk.
        local = LocalForward(self._network, max_batch_tokens=self._max_tokens)
        written = time.monotonic()
        for first in range(0, len(missing), _CHUNK):
            chunk = missing[first : first + _CHUNK]
            items = [EncodeItem(one.token_ids, _all_reads(one), one.prompt_length) for one in chunk]
            hidden = local.encode(items).float().numpy(force=True)
            if not np.isfinite(hidden).all():
                raise NonFiniteError("a hidden state has NaN or infinity in it: check the backbone and head.dtype")
            for reading, item, states in zip(chunk, items, hidden, strict=True):
                self._keep({self._key(reading, read): state for read, state in zip(item.reads, states, strict=True)})
            self.computed += len(chunk)
            on_chunk(first + len(chunk))
            if time.monotonic() - written > _PART_S:
                self._write_part()
                written = time.monotonic()
                logger.info("%d of %d sequences", first + len(chunk), len(missing))
        self._write_part()

    def _keep(self, states: dict[_Key, NDArray[np.float32]]) -> None:
        # The first one stays: siblings give the same prompt's state but for rounding.
        new = {key: state for key, state in states.items() if key not in self._known}
        self._known |= new
        self._new += new

    def _write_part(self) -> None:
        if not self._new:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(self._new), dtype=np.uint8).reshape(len(self._new), -1),
            "states": np.stack([self._known[key] for key in self._new]),
        }
        name = hashlib.sha256(tensors["keys"].tobytes()).hexdigest()[:20]
        # Under its name only once it is whole: a killed run leaves no half part behind.
        unfinished = self._folder / f"{name}.{os.getpid()}.tmp"
        save_file(tensors, unfinished)
        unfinished.replace(self._folder / f"{name}.safetensors")
        self._new = []

    def _read_parts(self) -> None:
        if self._known or not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.safetensors")):
            tensors = load_file(path)
            self._known |= zip((row.tobytes() for row in tensors["keys"]), tensors["states"], strict=True)


def _all_reads(reading: Reading) -> tuple[Read, ...]:
    """Return the reads of a text that any head's plan has: the prompt's end, the last token, the mean. [3]."""
    length, prompt = len(reading.token_ids), reading.prompt_length
    gate, last = read_plan(_GATED, prompt, length)
    # Without a token behind the prompt there is no mean; the number of reads is the same for all.
    mean = read_plan(replace(_GATED, pooling="mean"), prompt, length)[1] if prompt < length else last
    return gate, last, mean
