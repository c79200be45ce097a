"""Content hashes of everything that changes a model's numbers: weights, adapters, configurations, and code."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paragone_models.files.sources import Resolved

__all__ = ["code_hash", "hash_files", "weights_hash"]

# Files of weights that are not in use are no mistake here: more is another name for the same, less one for two models.
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
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


def code_hash(objects: Iterable[Any]) -> str | None:
    """Return a hash of the code that came with a checkpoint and that these objects run, or None if there is none."""
    folders = {
        Path(str(sys.modules[type(one).__module__].__file__)).parent
        for one in objects
        if type(one).__module__.startswith(_REMOTE_CODE)
    }
    if not folders:
        return None
    return hash_files(path for folder in folders for path in folder.glob("*.py"))


def hash_files(paths: Iterable[Path]) -> str:
    """Return a hash of the files' contents, in the order of their names."""
    total = hashlib.sha256()
    # A digest of digests, so that the borders between files count.
    for path in sorted(set(paths), key=lambda path: (path.name, str(path))):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        total.update(digest)
    return total.hexdigest()
