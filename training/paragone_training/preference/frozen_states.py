"""Hidden states of a frozen backbone, each computed once and kept on disk, so that a fit takes seconds the second time.

What is kept is the state of one read: a response's last token, or the mean over it, or the prompt's end for a gate. In
a causal backbone it depends on nothing behind it, so a prompt's state is computed once for all its responses, and heads
of other kinds find what one of them has computed. Parts are written every half minute; a run that was killed goes on.

Shapes: n readings, R reads of each, H hidden size.
"""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from paragone_models.errors import NonFiniteError
from paragone_models.files.loading import Backbone
from paragone_models.machine import DEFAULTS
from paragone_models.model import LocalForward
from paragone_models.network import PreferenceNetwork, RepresentationHead, output_width
from paragone_models.rotary import depending_on_length
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem, Reading

__all__ = ["FrozenBackbone"]

logger = logging.getLogger(__name__)

_CHUNK = 32
_PART_S = 30.0
_REWARD = ModelSpec(kind="bradley-terry", dimension=1)

_Key = bytes


class FrozenBackbone:
    """Run a frozen backbone, and remember what it gave.

    Args:
        folder: of the kept states; those of other backbones may lie there too.

    Attributes:
        computed: how many reads were run so far, and not found on disk.
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
        self._read_parts()
        items = [[self._item(reading, read) for read in range(len(reading.reads))] for reading in readings]
        keys = [[_key(item) for item in row] for row in items]
        missing = {
            key: item
            for row, row_keys in zip(items, keys, strict=True)
            for item, key in zip(row, row_keys, strict=True)
            if key not in self._known
        }
        self._compute(missing)
        return np.stack([np.stack([self._known[key] for key in row]) for row in keys])

    def _item(self, reading: Reading, read: int) -> EncodeItem:
        start, stop = reading.reads[read]
        tokens = reading.token_ids[:stop] if self._prefixes_suffice else reading.token_ids
        return EncodeItem(tokens, ((start, stop),), min(reading.prompt_length, len(tokens)))

    def _compute(self, missing: dict[_Key, EncodeItem]) -> None:
        if not missing:
            return
        logger.info("%d states to compute, %d on disk", len(missing), len(self._known))
        # Only now: it tries the ways to run the backbone, which takes seconds, and often everything is on disk.
        local = LocalForward(self._network, max_batch_tokens=self._max_tokens)
        written = time.monotonic()
        keys = list(missing)
        for first in range(0, len(keys), _CHUNK):
            chunk = keys[first : first + _CHUNK]
            hidden = local.encode([missing[key] for key in chunk])[:, 0].float().numpy(force=True)
            if not np.isfinite(hidden).all():
                raise NonFiniteError("a hidden state has NaN or infinity in it: check the backbone and head.dtype")
            self._known |= zip(chunk, hidden, strict=True)
            self._new += chunk
            self.computed += len(chunk)
            if time.monotonic() - written > _PART_S:
                self._write_part()
                written = time.monotonic()
                logger.info("%d of %d states", first + len(chunk), len(keys))
        self._write_part()

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


def _key(item: EncodeItem) -> _Key:
    tokens = np.asarray(item.token_ids, dtype=np.int64)
    return hashlib.blake2b(tokens.tobytes() + np.array(item.reads).tobytes(), digest_size=16).digest()
