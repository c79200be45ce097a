"""Content hashes of everything that changes a model's numbers: weights, adapters, configurations, and code."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paragone_models.files.checkpoints import HEAD_FILE
from paragone_models.files.sources import BIN_HEADS, Resolved

__all__ = ["TOKENIZER_FILES", "backbone_identity", "code_hash", "hash_files", "weights_hash"]

# Files of weights that are not in use are no mistake here: more is another name for the same, less one for two models.
_WEIGHTS = ("*.safetensors", "*.bin", *BIN_HEADS, "config.json", "adapter_config.json")
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spm.model",
    "*.jinja",
)
"""Patterns of everything that turns conversations into tokens."""

_REMOTE_CODE = "transformers_modules"


def weights_hash(places: Iterable[Resolved]) -> str:
    """Return what names the weights of a model that lie in one folder, or in a base's and an adapter's."""
    # A commit names its content; local files have to be read for it.
    names = [
        f"{where.source}@{where.commit}"
        if where.commit is not None
        else hash_files(path for pattern in _WEIGHTS for path in where.folder.glob(pattern))
        for where in dict.fromkeys(places)
    ]
    return "+".join(names)


def backbone_identity(places: Iterable[Resolved]) -> str:
    """Return what names everything that hidden states of a text depend on: weights, tokenizer, chat template, code.

    Args:
        places: the folder of the backbone, or a base's and an adapter's.
    """
    names = []
    for where in dict.fromkeys(places):
        if where.commit is not None:
            names.append(f"{where.source}@{where.commit}")
            continue
        paths = [path for pattern in (*_WEIGHTS, "*.py") for path in where.folder.glob(pattern)]
        paths += [path for pattern in TOKENIZER_FILES for path in where.tokenizer_folder.glob(pattern)]
        names.append(hash_files(path for path in paths if path.name != HEAD_FILE))
    return "+".join(names)


def code_hash(objects: Iterable[Any], places: Iterable[Resolved]) -> str | None:
    """Return a hash of the code that came with a checkpoint and that these objects run, or None if there is none.

    Args:
        objects: backbone, configuration and tokenizer of a model.
        places: its folders.
    """
    copies = {
        Path(str(sys.modules[type(one).__module__].__file__))
        for one in objects
        if type(one).__module__.startswith(_REMOTE_CODE)
    }
    if not copies:
        return None
    # All files of the folder, so that a model has one name wherever its backbone runs. transformers runs copies; those
    # of another place, which a config may name too, lie in folders of their own.
    own = {path for where in places for path in where.folder.glob("*.py")}
    names = {path.name for path in own}
    foreign = {path for copy in copies if copy.name not in names for path in copy.parent.glob("*.py")}
    return hash_files(own | foreign)


def hash_files(paths: Iterable[Path]) -> str:
    """Return a hash of the files' contents, in the order of their names."""
    total = hashlib.sha256()
    # A digest of digests, so that the borders between files count.
    for path in sorted(set(paths), key=lambda path: (path.name, str(path))):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        total.update(digest)
    return total.hexdigest()
