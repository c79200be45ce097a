"""Reward and preference models: scores, losses, loading and tournaments. Knows no web.

Everything is exported lazily, so that arithmetic on representations (``comparator``, ``tournament``) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paragone_models import losses, scores, tournament
    from paragone_models.files.loading import load_model
    from paragone_models.model import PreferenceModel

__all__ = ["PreferenceModel", "load_model", "losses", "scores", "tournament"]

_HOMES = {"load_model": "paragone_models.files.loading", "PreferenceModel": "paragone_models.model"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"paragone_models.{name}")
    raise AttributeError(f"module 'paragone_models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
