"""Find a model's files: of a built-in name, a local folder, or a Hugging Face id.

The built-in models are small demonstrations, so that everything runs with no download and no GPU.
"""

from dataclasses import dataclass
from pathlib import Path

from paragone_models.errors import ModelLoadError

__all__ = [
    "BIN_HEADS",
    "HEADS",
    "HOSTED",
    "MODEL_FILES",
    "NAMES",
    "PICKLES",
    "POLICIES",
    "Resolved",
    "builtin_folder",
    "check_builtin",
    "completed",
    "resolve",
    "tokenizer_folder",
]

_ROOT = Path(__file__).parents[1] / "builtin"

NAMES = ("mini-bradley-terry", "mini-general-preference", "mini-regression", "mini-helpsteer")
"""Built-in models, loaded as ``builtin:NAME``."""

HEADS = ("everyday-head", "everyday-preferences")
"""Built-in heads of another model's backbone, loaded in the same way."""

HOSTED = (*NAMES, "everyday-preferences")
"""What a service hosts that was told of no models; others where it is asked to."""

POLICIES = ("mini-policy",)
"""Built-in causal language models that policy training starts from."""

_PREFIX = "builtin:"

BIN_HEADS = ("regression_layer.pt", "gating_layer.pt")
"""The heads of LDL-Reward beside its weights: what rates, and what weighs the ratings. They are pickles of tensors."""

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", *BIN_HEADS)
"""Patterns of what a model is read from, without copies for other frameworks."""

PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "value_head.bin")
"""What is read only where there are no safetensors: many repositories hold both."""


def completed(text: str) -> list[str]:
    """Return the built-in models and heads that the beginning of ``[NAME=]SOURCE`` may become, for a shell.

    >>> completed("judge=builtin:mini-b")
    ['judge=builtin:mini-bradley-terry']
    """
    given, sign, _ = text.rpartition("=")
    whole = [f"{given}{sign}{_PREFIX}{name}" for name in (*NAMES, *HEADS)]
    return [one for one in whole if one.startswith(text)]


def builtin_folder(name: str) -> Path:
    """Return the folder of a built-in model or policy.

    Raises:
        KeyError: if there is no such model.
    """
    if name not in (*NAMES, *HEADS, *POLICIES):
        raise KeyError(name)
    return _ROOT / name


def check_builtin(source: str) -> None:
    """Refuse a ``builtin:NAME`` that there is not; other sources pass.

    Raises:
        ModelLoadError: as described; it lists the models and heads that there are.
    """
    name = source.removeprefix(_PREFIX)
    if name != source and name not in (*NAMES, *HEADS, *POLICIES):
        raise ModelLoadError(f"there is no built-in model {name!r}; built in are {', '.join((*NAMES, *HEADS))}")


def tokenizer_folder() -> Path:
    """Return the folder of the tokenizer that all built-in models share."""
    return _ROOT / "tokenizer"


@dataclass(frozen=True)
class Resolved:
    """A model's files on this machine.

    Attributes:
        source: what the caller asked for.
        commit: hub commit, or None for local files.
    """

    folder: Path
    tokenizer_folder: Path
    source: str
    commit: str | None = None

    @property
    def name(self) -> str:
        """The last part of the source."""
        return self.source.removeprefix(_PREFIX).rstrip("/").rsplit("/", 1)[-1]


def resolve(source: str, revision: str | None) -> Resolved:
    """Return the files of a source, downloading a hub id where needed.

    Args:
        source: ``builtin:NAME``, a folder, or a Hugging Face id.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelLoadError: if there is no such built-in model, folder or hub id, or it cannot be downloaded.
    """
    check_builtin(source)
    if source.startswith(_PREFIX):
        return Resolved(builtin_folder(source.removeprefix(_PREFIX)), tokenizer_folder(), source)
    path = Path(source).expanduser()
    if path.is_dir():
        return Resolved(path, path, source)
    if path.exists():
        raise ModelLoadError(f"{source} is a file; give the folder that holds config.json and the safetensors files")
    # What looks like a path is no hub id: a typing error must not become a download.
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelLoadError(f"{source} is no folder here, and no Hugging Face id (those look like owner/name)")
    return _download(source, revision)


def _download(source: str, revision: str | None) -> Resolved:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(MODEL_FILES)))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(source, revision=folder.name, allow_patterns=list(PICKLES))
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{source} is neither a folder here nor in the local Hugging Face cache, and the hub cannot be reached"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelLoadError(f"{source} cannot be downloaded from the Hugging Face hub: {error}") from error
    # A snapshot's folder is named by its commit.
    return Resolved(folder, folder, source, folder.name)
