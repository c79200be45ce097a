"""Heads that were saved alone: a folder of kilobytes that names its backbone, which is loaded from its own place.

The name is worth nothing without the content: a head reads directions of one backbone's hidden states, and another
backbone, or another chat template, would give numbers that mean nothing. So a reference carries an identity, and what
is found under the name has to have it.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paragone_models.errors import ModelLoadError
from paragone_models.files.adapters import base_of, find_adapter
from paragone_models.files.checkpoints import HEAD_FILE
from paragone_models.files.families.own import SPEC_FILE
from paragone_models.files.hashes import backbone_identity
from paragone_models.files.sources import Resolved, resolve
from paragone_models.spec import BackboneReference, ModelSpec

__all__ = ["Resident", "Residents", "home_of", "reference_to", "save_head"]


@dataclass
class Resident:
    """A backbone that is in memory, and was found to be finite.

    Attributes:
        way: how its passes are packed, once that was tried.
    """

    backbone: nn.Module
    way: str | None = None


Residents: TypeAlias = MutableMapping[tuple[str, ...], Resident]
"""Backbones by identity, dtype and device: heads of one backbone share it."""


def home_of(where: Resolved, backbone: str | None = None) -> tuple[Resolved, str | None]:
    """Return the files of a model's backbone, and its identity where its head was saved alone.

    Args:
        backbone: where that of a head is now, in place of the place that the head names.

    Raises:
        ModelLoadError: if the backbone that a head names is not there, is another one, or is a head itself; or one is
            given to a model that has its own.
    """
    reference = _reference(where.folder)
    if reference is None:
        if backbone is not None:
            raise ModelLoadError(f"{where.source} is no head alone, and has its own backbone: leave {backbone} out")
        return where, None
    try:
        home = _found(reference, where.folder) if backbone is None else resolve(backbone, None)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{where.source} is a head, and its backbone cannot be had: {error}; say where it is, by the setting "
            f"backbone or in {SPEC_FILE} (backbone.source)"
        ) from error
    if _reference(home.folder) is not None:
        raise ModelLoadError(f"{where.source} names {home.source} as its backbone, which is a head alone")
    identity = _identity(home)
    if identity != reference.identity:
        raise ModelLoadError(
            f"{where.source} is a head for the backbone {reference.source} with identity {reference.identity}, and "
            f"{home.source} has identity {identity}: its weights, tokenizer or chat template are others, so the head "
            "would read noise. Give it the backbone that it was fitted on, or fit it anew"
        )
    return home, identity


def _found(reference: BackboneReference, folder: Path) -> Resolved:
    try:
        return resolve(reference.source, reference.revision)
    except ModelLoadError:
        # Moved together, head and backbone lie side by side; the identity says whether it is the one.
        beside = folder.parent / Path(reference.source).name
        if not beside.is_dir():
            raise
        return resolve(str(beside), None)


def _reference(folder: Path) -> BackboneReference | None:
    path = folder / SPEC_FILE
    return ModelSpec.from_json(path.read_bytes()).backbone if path.is_file() else None


def _identity(home: Resolved) -> str:
    return backbone_identity((home, home if find_adapter(home.folder) is None else base_of(home)))


def reference_to(source: str, revision: str | None = None) -> BackboneReference:
    """Return a reference to a backbone as it is now.

    Raises:
        ModelLoadError: if it is not there, or is a head alone.
    """
    home = resolve(source, revision)
    inner = _reference(home.folder)
    if inner is not None:
        raise ModelLoadError(f"{source} is a head alone; name its backbone, {inner.source}")
    # A relative path would be looked up from wherever the server is started.
    name = str(home.folder.resolve()) if Path(source).expanduser().is_dir() else source
    return BackboneReference(name, home.commit, _identity(home))


def save_head(
    folder: str | Path,
    tensors: dict[str, Tensor],
    spec: ModelSpec,
    backbone: BackboneReference,
    *,
    card: str | None = None,
) -> Path:
    """Write a head alone and return its folder, which ``load_model`` and ``paragone serve`` read.

    Args:
        folder: created where needed; files of the same names are replaced.
        tensors: by the names of ``RepresentationHead``; stored in float32.
        card: text of README.md, or None for no card.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().to(torch.float32).cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, target / HEAD_FILE, metadata={"format": "pt"})
    (target / HEAD_FILE).chmod(0o644)
    (target / SPEC_FILE).write_text(replace(spec, backbone=backbone).to_json(), encoding="utf-8")
    if card is not None:
        (target / "README.md").write_text(card, encoding="utf-8")
    return target
