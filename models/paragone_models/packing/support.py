"""Which backbones may be packed: those whose layers all attend by position ids, in ways that are computed here.

The list holds what the tests prove exact. Everything else runs in padded batches, and says why.
"""

from typing import Any

__all__ = ["PACKED", "refusal"]

PACKED = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2"}
    | {"qwen3", "qwen3_moe", "smollm3", "starcoder2"}
)
"""Model types that packing was tested on."""

_LAYERS = {"full_attention", "sliding_attention"}
# Their angles depend on the longest sequence of the batch.
_ROPE_BY_LENGTH = {"dynamic", "longrope"}


def refusal(config: Any) -> str | None:
    """Return why a backbone may not be packed, or None if it may.

    Args:
        config: its transformers configuration.
    """
    if not type(config).__module__.startswith("transformers.models."):
        return "its code comes with the checkpoint"
    if config.get_text_config() is not config:
        return f"{config.model_type} reads more than text"
    if config.model_type not in PACKED:
        return f"packing {config.model_type} was never shown to be exact"
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        return "it attends to what follows"
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS):
        return f"it has layers of other kinds than attention: {', '.join(others)}"
    if ropes := sorted(_rope_types(getattr(config, "rope_parameters", None) or {}) & _ROPE_BY_LENGTH):
        return f"its rotary positions depend on the length of the batch ({', '.join(ropes)})"
    return None


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    """Return the kinds of rotary positions, which a model may have one for each kind of layer."""
    found = {parameters[name] for name in ("rope_type", "type") if isinstance(parameters.get(name), str)}
    for value in parameters.values():
        if isinstance(value, dict):
            found |= _rope_types(value)
    return found
