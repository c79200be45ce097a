"""Hide the bars that transformers draws while it reads and writes weights: our commands say themselves what they do."""

from collections.abc import Callable
from typing import Any

__all__ = ["hide_weight_bars"]


def hide_weight_bars() -> None:
    """Have transformers draw no bar of its own in this process; those of downloads stay."""
    from transformers.utils.logging import set_tqdm_hook  # here, because it takes a second

    set_tqdm_hook(_hidden)


def _hidden(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return factory(*arguments, **{**options, "disable": True})
