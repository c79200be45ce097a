"""Quantised checkpoints: what reads them, what is left to do once they are read, and why one is not loaded.

transformers' own quantisers read them. Linear layers then stay quantised, or are dequantised where the device has no
kernel for them: a text's numbers are those of transformers.
"""

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from paragone_models.errors import ModelLoadError, reason_of
from paragone_models.files import checkpoints
from paragone_models.files.adapters import cast

__all__ = ["dense_head", "described", "finish", "method_of", "prepare", "unloadable"]

_PACKAGES = {
    "aqlm": ("accelerate", "aqlm"),
    "auto-round": ("auto-round",),
    "awq": ("accelerate", "gptqmodel"),
    "bitnet": ("accelerate",),
    "bitsandbytes": ("accelerate", "bitsandbytes"),
    "compressed-tensors": ("accelerate", "compressed-tensors"),
    "eetq": ("accelerate", "kernels"),
    "fbgemm_fp8": ("accelerate", "fbgemm-gpu"),
    "fouroversix": ("fouroversix",),
    "fp8": ("accelerate",),
    "fp_quant": ("fp_quant",),
    "gptq": ("gptqmodel", "optimum"),
    "higgs": ("accelerate", "flute-kernel", "fast_hadamard_transform"),
    "hqq": ("hqq",),
    "mxfp4": ("accelerate",),
    "mxfp8": ("accelerate",),
    "quanto": ("accelerate", "optimum-quanto"),
    "quark": ("amd-quark",),
    "sinq": ("sinq",),
    "spqr": ("accelerate", "spqr_quant"),
    "torchao": ("torchao",),
    "vptq": ("accelerate", "vptq"),
}
"""Packages that transformers reads quantised weights with, by what ``quant_method`` says."""

_ON_GPUS = frozenset({"eetq", "fbgemm_fp8", "fp_quant", "higgs", "spqr", "vptq"})
# Their products have no kernel on a CPU.
_DEQUANTISED = frozenset({"fp8", "mxfp4", "mxfp8"})
# They say with every product that its inputs are cast, which is what the method is.
_TALKATIVE = "bitsandbytes.autograd._functions"


def method_of(config: Any) -> str | None:
    """Return the method that weights are quantised with, or None if they are not.

    Args:
        config: transformers' configuration, or the contents of config.json.
    """
    settings = config.get("quantization_config") if isinstance(config, dict) else _settings(config)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method))


def _settings(config: Any) -> Any:
    own = getattr(config, "quantization_config", None)
    return getattr(config.get_text_config(), "quantization_config", None) if own is None else own


def prepare(folder: Path, config: Any, device: torch.device) -> None:
    """Settle how a configuration's quantised weights are read.

    Args:
        device: that they are loaded for.

    Raises:
        ModelLoadError: if they are quantised in a way that transformers does not know, and would read as plain ones.
    """
    method = method_of(config)
    if method is not None and method not in AUTO_QUANTIZER_MAPPING and not method.startswith("bitsandbytes"):
        raise ModelLoadError(
            f"{folder} has quantised weights ({method}), which transformers does not read: give weights that are not "
            "quantised"
        )
    # transformers asks whether the machine has a GPU, and not what the model is loaded for.
    if method in _DEQUANTISED and device.type == "cpu" and isinstance(_settings(config), dict):
        _settings(config)["dequantize"] = True


def unloadable(folder: Path, device: torch.device, error: Exception) -> str:
    """Return why transformers could not load a folder; of quantised weights, what they need.

    Args:
        device: that they were to be loaded for.
        error: what it raised.
    """
    method = method_of(checkpoints.read_config(folder))
    if method is None:
        return f"{folder} cannot be loaded: {reason_of(error)}"
    finding = f"{folder} has quantised weights ({method}) that cannot be loaded here"
    if method in _ON_GPUS and device.type == "cpu":
        return f"{finding}: they run on a GPU only, and this is a CPU: use one, or give weights that are not quantised"
    if missing := [name for name in _PACKAGES.get(method, ()) if not _is_installed(name)]:
        return (
            f"{finding}: install what reads them (pip install {' '.join(missing)}), or give weights that are not "
            "quantised"
        )
    return f"{finding} on {device.type} ({reason_of(error)}): give weights that are not quantised"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def finish(model: Any, dtype: torch.dtype) -> None:
    """Do what is left to do after transformers has read a model; nothing where it was not quantised.

    Args:
        dtype: of what is not quantised.
    """
    if not hasattr(model, "is_quantized"):
        return
    if not model.is_quantized:
        # Dequantised: what had been quantised is in the dtype asked for, and the rest in that of the files.
        cast(model, dtype)
        return
    logging.getLogger(_TALKATIVE).setLevel(logging.ERROR)
    # Some decompress their weights at the first pass of the whole model, which is about to be taken apart.
    device = next(model.parameters()).device
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))


def dense_head(folder: Path, config: Any, score: nn.Linear) -> dict[str, Tensor] | None:
    """Return a classifier's head in float32 where it was quantised and is dense again, by the names in the files.

    Args:
        config: of the model, once it was read.
        score: its head.

    Returns:
        None where the files hold it as plain numbers, or it is still quantised.
    """
    if described(folder, config) is None or not _is_dense(score):
        return None
    if checkpoints.is_plain(checkpoints.weight_files(folder), "score.weight"):
        return None
    parts = {"score.weight": score.weight, "score.bias": score.bias}
    return {name: part.detach().float() for name, part in parts.items() if part is not None}


def _is_dense(module: nn.Linear) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and type(weight.data) is Tensor
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and tuple(weight.shape) == (module.out_features, module.in_features)
    )


def described(folder: Path, config: Any) -> str | None:
    """Return how the weights of a loaded backbone are quantised, for ``numerics``, or None if they never were.

    Args:
        config: of the backbone.
    """
    method = method_of(checkpoints.read_config(folder))
    if method is None:
        return None
    return method if method_of(config) is not None else f"{method}, dequantised"
