"""Look into a folder of safetensors without loading it: names and shapes of tensors, and a few of them whole."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from paragone_models.errors import ModelLoadError

__all__ = ["HEAD_FILE", "read_config", "read_row", "read_tensors", "tensor_shapes", "weight_files"]

HEAD_FILE = "head.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json.

    Raises:
        ModelLoadError: if it is missing or no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{folder} has no config.json: it is not a model folder") from None
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's safetensors files, the head's own apart.

    Raises:
        ModelLoadError: if there are none; pickles are named, and never opened.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != HEAD_FILE)
    if files:
        return files
    # They are named in the error, because converting them is the remedy.
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(
            f"{folder} has its weights in pickles ({', '.join(pickles[:3])}), which can run code when they are opened: "
            "convert them to safetensors first"
        )
    raise ModelLoadError(f"{folder} has no *.safetensors file: there are no weights to load")


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, read from the files' headers.

    Raises:
        ModelLoadError: if a file is not safetensors, or was cut off.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ModelLoadError(f"{path} cannot be read: {error}") from error
    return shapes


def read_tensors(files: Iterable[Path], names: set[str]) -> dict[str, Tensor]:
    """Return some tensors in float32.

    Raises:
        ModelLoadError: if one is in none of the files.
    """
    read: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in names & set(tensors.keys()):
                read[name] = tensors.get_tensor(name).float()
    if missing := names - set(read):
        raise ModelLoadError(f"the weights lack {', '.join(sorted(missing))}")
    return read


def read_row(files: Iterable[Path], name: str, row: int) -> Tensor:
    """Return one row of a tensor in float32; the others stay on the disk.

    Args:
        name: of the tensor. [R, H]

    Returns:
        The row, as a matrix. [1, H]

    Raises:
        ModelLoadError: if the tensor is in none of the files, or has no such row.
    """
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            if name not in tensors.keys():  # noqa: SIM118 (no mapping)
                continue
            whole = tensors.get_slice(name)
            shape = whole.get_shape()
            if len(shape) != 2 or not 0 <= row < shape[0]:
                raise ModelLoadError(f"{name} is of shape {shape}: it has no row {row}")
            values: Tensor = whole[row : row + 1]
            return values.float()
    raise ModelLoadError(f"the weights lack {name}")
