"""What a family of checkpoints is: how it is told from the others by config and tensors, and how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paragone_models.files import checkpoints
from paragone_models.files.families.backbone import Options, all_shapes
from paragone_models.files.heads import StoredHead, stored_head
from paragone_models.network import PreferenceNetwork
from paragone_models.spec import Head, ModelSpec

__all__ = ["Checkpoint", "Family", "Loaded"]


@dataclass(frozen=True)
class Loaded:
    """A model read from its files.

    Attributes:
        network: backbone and head, on the CPU or where ``device`` said.
        spec: read from the folder, before the caller's overrides.
        first_token: True for encoders that are read at their first token.
    """

    network: PreferenceNetwork
    spec: ModelSpec
    first_token: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights, and what the caller says of it.

    Attributes:
        kind: the kind asked for, or ``auto``.
        head: where its head is, if the caller says so.
    """

    folder: Path
    options: Options
    kind: str = "auto"
    head: Head = "auto"

    @cached_property
    def stated(self) -> Mapping[str, Any]:
        """What config.json says, as it stands there."""
        return checkpoints.read_config(self.folder)

    @property
    def architecture(self) -> str:
        """The class that its publisher saved."""
        return str((self.stated.get("architectures") or ["none"])[0])

    @property
    def is_classifier(self) -> bool:
        """Whether transformers' own sequence classifier was saved, or one that calls itself so."""
        return self.architecture.endswith("ForSequenceClassification")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors, those of heads and an adapter beside them included."""
        return all_shapes(self.folder, self.options)

    @cached_property
    def stored(self) -> StoredHead | None:
        """The head that its tensors' names tell, or None; see ``stored_head`` for what it raises."""
        return stored_head(self.shapes, self.stated)


@dataclass(frozen=True)
class Family:
    """One family of checkpoints: a row of the table in docs/models.md.

    Attributes:
        name: as the table calls it.
        found_by: what tells it from the others, in words.
        becomes: the kind of model, and what is read where, in words.
        weights: the published weights that it was run on here, in words.
        finds: whether a checkpoint is of this family.
        reads: a checkpoint of this family; raises ``ModelLoadError`` unless it is whole.
    """

    name: str
    found_by: str
    becomes: str
    finds: Callable[[Checkpoint], bool]
    reads: Callable[[Checkpoint], Loaded]
    weights: str = "none"

    @property
    def row(self) -> str:
        """Its row of the table."""
        return f"| {self.name} | {self.found_by} | {self.becomes} | {self.weights} |"
