"""The small models that ship inside: demonstrations, so that everything runs with no download and no GPU."""

from pathlib import Path

__all__ = ["NAMES", "POLICIES", "builtin_folder", "policy_folder", "tokenizer_folder"]

_ROOT = Path(__file__).parents[1] / "builtin"

NAMES = ("mini-bradley-terry", "mini-general-preference", "mini-regression", "mini-helpsteer")
"""Built-in models, loaded as ``builtin:NAME``."""

POLICIES = ("mini-policy",)
"""Built-in causal language models that policy training starts from."""


def builtin_folder(name: str) -> Path:
    """Return the folder of a built-in model.

    Args:
        name: one of ``NAMES``.

    Raises:
        KeyError: if there is no such model.
    """
    if name not in NAMES:
        raise KeyError(name)
    return _ROOT / name


def tokenizer_folder() -> Path:
    """Return the folder of the tokenizer that all built-in models share."""
    return _ROOT / "tokenizer"


def policy_folder(name: str) -> Path:
    """Return the folder of a built-in policy: a causal language model to train, which no server hosts as an oracle.

    Args:
        name: one of ``POLICIES``.

    Raises:
        KeyError: if there is no such policy.
    """
    if name not in POLICIES:
        raise KeyError(name)
    return _ROOT / name
