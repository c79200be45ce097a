"""Folders that this project wrote: a backbone with its head beside it, or a head alone."""

from pathlib import Path

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.families.backbone import bare_backbone, read_backbone, with_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.spec import ModelSpec

__all__ = ["OWN", "SPEC_FILE", "read_own"]

SPEC_FILE = "paragone.json"


def read_own(place: Checkpoint, home: Path | None = None) -> Loaded:
    """Read a folder written by ``paragone_models.files.saving``.

    Args:
        home: folder of the backbone, of a head that was saved alone.

    Raises:
        ModelLoadError: if the spec is impossible, of another kind than asked for, or a tensor is missing or of the
            wrong shape.
    """
    folder, options = place.folder, place.options
    # The spec first: whatever is wrong with it is said before any weight is read.
    spec = ModelSpec.from_json((folder / SPEC_FILE).read_bytes())
    if place.head != "auto":
        raise ModelLoadError(f"{folder} has a head of its own: leave head={place.head!r} out")
    path = folder / checkpoints.HEAD_FILE
    if not path.is_file():
        raise ModelLoadError(f"{folder} has no {checkpoints.HEAD_FILE}: a model without its head would score at random")
    shapes = checkpoints.tensor_shapes([path])
    tensors = checkpoints.read_tensors([path], set(shapes))
    backbone = bare_backbone(folder, options) if home is None else read_backbone(home, options)
    network = with_head(backbone, spec, tensors)
    if place.kind not in ("auto", spec.kind):
        raise ModelLoadError(f"{folder} is a {spec.kind} model, not {place.kind}")
    return Loaded(network, spec)


OWN = Family(
    "this project's folders",
    found_by="`paragone.json`",
    becomes="what it says",
    finds=lambda place: (place.folder / SPEC_FILE).is_file(),
    reads=read_own,
)
