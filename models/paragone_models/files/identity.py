"""What a model is (identity), what computed its numbers (numerics), and both together (fingerprint)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paragone_models.spec import ModelSpec

__all__ = ["fingerprint_of", "hash_files", "identity_of", "tokenizer_hash"]

# Fields of a spec that change a representation; temperature, weights and calibration only change answers.
_IDENTITY_FIELDS = (
    "kind",
    "dimension",
    "pooling",
    "gate",
    "normalise",
    "max_length",
    "special_tokens",
    "bos",
    "reasoning",
    "final_eos",
)


def hash_files(paths: Iterable[Path]) -> str:
    """Return a hash of the files' contents, in the order of their names."""
    total = hashlib.sha256()
    # A digest of digests, so that the borders between files count.
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        total.update(digest)
    return total.hexdigest()


def tokenizer_hash(tokenizer: Any, template: str) -> str:
    """Return a hash of what turns text into tokens.

    Args:
        template: its chat template, date frozen.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    named = json.dumps(tokenizer.special_tokens_map, sort_keys=True)  # templates write these, policies append them
    # With its length before each part, so that no two pairs of texts join to the same bytes.
    return hashlib.sha256(f"{len(table)}:{table}{len(named)}:{named}{template}".encode()).hexdigest()


def identity_of(weights: str, spec: ModelSpec, tokenizer: str | None) -> str:
    """Return the identity of a model: equal if and only if its representations of all texts are meant to be equal.

    Args:
        weights: content hash, or hub id and commit, of backbone and head.
        spec: see ``_IDENTITY_FIELDS``.
        tokenizer: from ``tokenizer_hash``, or None where the model has none.

    Returns:
        64 hexadecimal digits.
    """
    fields = asdict(spec)
    parts = {"weights": weights, "tokenizer": tokenizer, **{name: fields[name] for name in _IDENTITY_FIELDS}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_of(identity: str, numerics: Mapping[str, str], spec: ModelSpec) -> str:
    """Return the fingerprint of a model's answers: identity, numerics, and what turns representations into answers.

    Args:
        identity: from ``identity_of``.

    Returns:
        32 hexadecimal digits.
    """
    answers = [spec.temperature, spec.weights, spec.attributes, spec.calibrated]
    parts = [identity, dict(numerics), answers]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
