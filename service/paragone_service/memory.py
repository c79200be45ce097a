"""Whether a model will fit: what its files say that it takes, and what a device has left."""

import json
import math
from pathlib import Path

import torch

__all__ = ["available_bytes", "weight_bytes"]

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_MOST_HEADER = 100_000_000


def weight_bytes(folder: Path, bytes_per_number: int) -> int:
    """Return the memory that a model's weights take.

    Args:
        folder: with its safetensors, or, where there are none, with pickles, whose size on disk is taken.
        bytes_per_number: of the dtype that it will have.

    Raises:
        ValueError: if a header is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return sum(map(_numbers, files)) * bytes_per_number
    return sum(file.stat().st_size for file in folder.glob("*.bin"))


def _numbers(file: Path) -> int:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= _MOST_HEADER:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(opened.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def available_bytes(device: torch.device) -> int:
    """Return the memory that is left: of a GPU, or of this machine within the limit of its control group."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        # What torch keeps of tensors that are gone is free for new ones, though the driver counts it as taken.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = [_machine_bytes()]
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return left[0]
    if limit.isdigit():
        left.append(max(0, int(limit) - used))
    return min(left)


def _machine_bytes() -> int:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return 1 << 62  # not Linux: nothing is known, and loading will tell
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes is not None else 1 << 62
