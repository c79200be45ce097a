"""What ``paragone doctor`` says of this machine: devices, the dtype and kernels that would be chosen, cache folders."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["checks"]

_Row = tuple[str, str, str, str]

_GIGABYTE = 1e9
_LITTLE_DISK = 5 * _GIGABYTE
# A model of that size stands for those whose dtype is worth a choice.
_PARAMETERS = 1_000_000_000


def checks(options: Mapping[str, Any]) -> Iterator[_Row]:
    """Yield subject, state, text and remedy of each check; without torch where ``quick`` is asked for."""
    if not options.get("quick"):
        yield from _machine()
    yield from _hub()


def _machine() -> Iterator[_Row]:
    import torch

    from paragone_models.machine import automatic_dtype
    from paragone_models.packing.native import cache_folder

    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    idle = "" if threads >= (cores or 1) else "OMP_NUM_THREADS keeps torch from the others: unset it for a server"
    yield "cpu", "warn" if idle and not gpus else "ok", f"{cores} cores, of which torch uses {threads}", idle
    for number in range(gpus):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield f"cuda:{number}", "ok", f"{name}, {free / _GIGABYTE:.0f} of {total / _GIGABYTE:.0f} GB free", ""
    if not gpus and shutil.which("nvidia-smi"):
        yield (
            "cuda",
            "warn",
            f"torch {torch.__version__} sees no GPU, and nvidia-smi is here",
            ("install torch for CUDA (https://pytorch.org), or look at CUDA_VISIBLE_DEVICES"),
        )
    device = torch.device("cuda" if gpus else "cpu")
    choice = automatic_dtype(device, parameters=_PARAMETERS, demonstration=False)
    yield "dtype", "ok", f"{str(choice.dtype).removeprefix('torch.')} on {device}: {choice.reason}", ""
    yield _kernels(device.type)
    yield _folder("cache", cache_folder(), "kernels are compiled at every start", least=0)


def _kernels(device: str) -> _Row:
    from paragone_models.packing.native import NO_COMPILER, cache_folder, kernels_refusal

    if device == "cuda":
        return "kernels", "ok", "packed: the varlen kernel in half precision, else flex attention", ""
    refusal = kernels_refusal()
    if refusal is None:
        made = any(cache_folder().glob("kernels-*.so"))
        when = "compiled before" if made else "to be compiled once, at the first start, in about ten seconds"
        return "kernels", "ok", f"our own, for decoders in bfloat16: {when}", ""
    if refusal == NO_COMPILER:
        return "kernels", "warn", f"torch's operations: {refusal}", "apt-get install g++, for more speed in bfloat16"
    return "kernels", "ok", f"torch's operations: {refusal}", ""


def _hub() -> Iterator[_Row]:
    from huggingface_hub import constants

    subject, state, text, remedy = _folder(
        "hub", Path(constants.HF_HUB_CACHE), "no model can be downloaded", least=_LITTLE_DISK
    )
    yield subject, state, f"{text}{', offline (HF_HUB_OFFLINE)' if constants.HF_HUB_OFFLINE else ''}", remedy


def _folder(subject: str, folder: Path, loss: str, *, least: float) -> _Row:
    """Return whether a folder can be written, or made, and how much room it has."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{folder}, {free / _GIGABYTE:.0f} GB free"
    if not os.access(place, os.W_OK):
        remedy = "set XDG_CACHE_HOME and HF_HOME to a folder of yours"
        return subject, "warn", f"{text}, and it cannot be written: {loss}", remedy
    if free < least:
        return subject, "warn", text, "models have gigabytes: make room, or set HF_HOME to a larger disk"
    return subject, "ok", text, ""
