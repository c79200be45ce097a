"""Look into a folder of weights without loading it: names and shapes of tensors, and a few of them whole.

Weights are safetensors, or torch's own files where there are none; these are pickles, and are opened with
``weights_only``, which makes tensors and runs nothing.
"""

import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paragone_models.errors import ModelLoadError

__all__ = [
    "ADAPTER_CONFIG",
    "HEAD_FILE",
    "adapter_files",
    "has_weights",
    "head_files",
    "is_plain",
    "opened",
    "read_config",
    "read_row",
    "read_tensors",
    "tensor_shapes",
    "weight_files",
]

HEAD_FILE = "head.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = "adapter_model.*"
# LLaMA-Factory's: the head of a model whose other weights keep their own files.
_VALUE_HEADS = "value_head.*"
_TORCH = "pytorch_model*.bin"
_PLAIN = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.msgpack", "*.h5")


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
    """Return the files that hold a folder's weights: safetensors, or torch's files where there are none.

    Heads of our own and adapters are apart. Copies for other programs (``consolidated.safetensors``) are left alone
    where the file that transformers reads is there.

    Raises:
        ModelLoadError: if there are none; what is there instead is named.
    """
    files = _main_files(folder, "model.safetensors", "*.safetensors") or _main_files(
        folder, "pytorch_model.bin", _TORCH
    )
    if files:
        return files
    others = sorted(path.name for pattern in _OTHERS for path in folder.glob(pattern))
    if others:
        raise ModelLoadError(
            f"{folder} has no safetensors and no pytorch_model.bin, but {', '.join(others[:3])}: convert them to "
            "safetensors (transformers' save_pretrained)"
        )
    raise ModelLoadError(f"{folder} has no *.safetensors file: there are no weights to load")


def _main_files(folder: Path, whole: str, pattern: str) -> list[Path]:
    apart = {HEAD_FILE, *(path.name for other in (_ADAPTERS, _VALUE_HEADS) for path in folder.glob(other))}
    files = sorted(path for path in folder.glob(pattern) if path.name not in apart)
    index = folder / f"{whole}.index.json"
    if (folder / whole).is_file():
        return [folder / whole]
    if not index.is_file():
        return files
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{index} is no index of weights: {error!r}") from error
    if missing := sorted(named - {path.name for path in files}):
        raise ModelLoadError(f"{folder} cannot be loaded: {', '.join(missing[:3])} of its index is missing")
    return [path for path in files if path.name in named]


def has_weights(folder: Path) -> bool:
    """Return whether a folder has weights of a whole model."""
    try:
        return bool(weight_files(folder))
    except ModelLoadError:
        return False


def head_files(folder: Path) -> list[Path]:
    """Return files with a value head that lie beside the weights, or beside an adapter."""
    return sorted(path for path in folder.glob(_VALUE_HEADS) if path.suffix in (".safetensors", ".bin"))[-1:]


def adapter_files(folder: Path) -> list[Path]:
    """Return the file with an adapter's weights.

    Raises:
        ModelLoadError: if there is none.
    """
    files = sorted(path for path in folder.glob(_ADAPTERS) if path.suffix in (".safetensors", ".bin"))
    if not files:
        raise ModelLoadError(f"{folder} has an {ADAPTER_CONFIG} and no adapter_model.safetensors")
    return files[-1:]  # safetensors before a copy that is a pickle


class _TorchFile:
    """A file of ``torch.save``, read as ``safe_open`` reads its own."""

    def __init__(self, path: Path) -> None:
        # mmap, so that what is not asked for stays on the disk; files from before torch 1.6 cannot be mapped.
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            values = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
            raise ModelLoadError(f"{path} does not hold tensors by name")
        self._tensors: dict[str, Tensor] = values

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def get_slice(self, name: str) -> Any:
        return _TorchSlice(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class _TorchSlice:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, key: Any) -> Tensor:
        return self._tensor[key]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield a file's tensors: ``keys``, ``get_slice`` and ``get_tensor``, as safetensors' own reader has them.

    Raises:
        ModelLoadError: if the file is damaged, or is a pickle of anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                yield tensors
        else:
            yield _TorchFile(path)
    except (SafetensorError, EOFError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ModelLoadError(
            f"{path} is a pickle that holds more than tensors, or is damaged; it was not run: convert it to safetensors"
        ) from error


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, read from the files' headers.

    Raises:
        ModelLoadError: if a file is damaged, or was cut off.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with opened(path) as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    return shapes


def read_tensors(files: Iterable[Path], names: set[str]) -> dict[str, Tensor]:
    """Return some tensors in float32.

    Raises:
        ModelLoadError: if one is in none of the files, or is quantised.
    """
    read: dict[str, Tensor] = {}
    for path in files:
        with opened(path) as tensors:
            for name in names & set(tensors.keys()):
                read[name] = _plain(name, tensors.get_tensor(name))
    if missing := names - set(read):
        raise ModelLoadError(f"the weights lack {', '.join(sorted(missing))}")
    return read


def is_plain(files: Iterable[Path], name: str) -> bool:
    """Return whether a tensor is in the files, as numbers that need no scale."""
    for path in files:
        with opened(path) as tensors:
            if name in tensors.keys():  # noqa: SIM118 (no mapping)
                return tensors.get_tensor(name).dtype in _PLAIN
    return False


def _plain(name: str, tensor: Tensor) -> Tensor:
    # Numbers of eight bits and packed ones mean nothing without their scales.
    if tensor.dtype not in _PLAIN:
        raise ModelLoadError(
            f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}: a head that is quantised is not read; "
            "give weights whose head is not"
        )
    return tensor.float()


def read_row(files: Iterable[Path], name: str, row: int) -> Tensor:
    """Return one row of a tensor in float32; the others stay on the disk.

    Args:
        name: of the tensor. [R, H]

    Returns:
        The row, as a matrix. [1, H]

    Raises:
        ModelLoadError: if the tensor is in none of the files, is quantised, or has no such row.
    """
    for path in files:
        with opened(path) as tensors:
            if name not in tensors.keys():  # noqa: SIM118 (no mapping)
                continue
            whole = tensors.get_slice(name)
            shape = whole.get_shape()
            if len(shape) != 2 or not 0 <= row < shape[0]:
                raise ModelLoadError(f"{name} is of shape {shape}: it has no row {row}")
            return _plain(name, whole[row : row + 1])
    raise ModelLoadError(f"the weights lack {name}")
