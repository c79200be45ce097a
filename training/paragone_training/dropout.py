"""The dropout that a pretrained model's configuration asks for, off while it is trained on preferences.

Transformers keeps it in three places: modules (``nn.Dropout.p``), numbers of other modules that are read on every pass
(``attention_dropout``, ``layerdrop``), and the configuration itself. Evaluation mode would do too, but it also ends the
recomputation of activations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["dropout_off"]

# Adapters drop what their recipe says.
_ASKED_FOR = "lora_dropout"


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[dict[str, float]]:
    """Drop nothing in a model's passes until the context ends; yield what its configuration asks for, by name.

    The dropout of adapters stays as it is.
    """
    places = [place for place in _places(model) if _shares(place)]
    kept = [(place, _shares(place)) for place in places]
    asked: dict[str, float] = {}
    for place, shares in kept:
        if not isinstance(place, nn.Module):
            asked |= shares
        for name in shares:
            setattr(place, name, 0.0)
    try:
        yield asked
    finally:
        for place, shares in kept:
            for name, share in shares.items():
                setattr(place, name, share)


def _places(model: nn.Module) -> list[Any]:
    """Return the modules of a model and their configurations, each once."""
    modules = [module for name, module in model.named_modules() if _ASKED_FOR not in name.split(".")]
    configs = [module.config for module in modules if hasattr(module, "config")]
    # A configuration of several parts holds one for its text.
    configs += [config.get_text_config() for config in configs if hasattr(config, "get_text_config")]
    return list({id(place): place for place in (*modules, *configs)}.values())


def _shares(place: Any) -> dict[str, float]:
    """Return the shares above 0 that a module or a configuration drops, by attribute."""
    if isinstance(place, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - the one base of all torch's kinds
        return {"p": float(place.p)} if place.p else {}
    # A flag is no share: ESM's token_dropout scales embeddings in evaluation too.
    return {
        name: value
        for name, value in vars(place).items()
        if "drop" in name and isinstance(value, float) and 0.0 < value <= 1.0
    }
