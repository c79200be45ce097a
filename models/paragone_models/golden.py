"""A built-in set of texts that any model is run on before it takes over: what it says has to be sound, not right.

Whether a model judges well is for an evaluation. This finds what makes a model unfit to serve at all on this machine:
numbers that are not finite, that change with what shares their pass, or that are others the second time.
"""

import torch
from torch import Tensor

from paragone_models.errors import ModelLoadError, TextError
from paragone_models.model import PreferenceModel
from paragone_models.packing.backend import tolerance
from paragone_models.text.reader import Conversation, EncodeItem, conversation, evened, read_plan

__all__ = ["check_golden"]

_PROMPTS = (
    "Is it raining?",
    "Write a function that returns the n-th prime.\n\n```python\ndef prime(n):\n    ...\n```",
    "Schreibe einen Satz über das Meer – auf Deutsch, bitte. 请也用中文写一句。 🌊",
    "List what a visitor should see. " + "There is a market, a river, an old bridge and a museum of clocks. " * 8,
)
_RESPONSES = (
    "Yes.",
    "No, and it will not before the evening; the clouds in the west are high and thin.",
    "def prime(n):\n    found = [2]\n    return found[-1]",
    "The sea was calm. " * 24,
)
_TOO_LONG = ("response_too_long", "conversation_truncated")
# Tokens of a prompt and of a response where there is no tokenizer.
_LENGTHS = ((5, 3), (5, 40), (60, 7), (60, 90))


@torch.inference_mode()
def check_golden(model: PreferenceModel) -> int:
    """Run a loaded model on the built-in texts, together, again, and one by one.

    Returns:
        How many conversations were compared.

    Raises:
        ModelLoadError: if it cannot read any, or its representations are not finite, depend on what shares their pass,
            or differ the second time; by more than rounding, or at all where the model is deterministic.
    """
    items = evened(_items(model))
    hidden = model.encode(items)
    together = model.represent(hidden)
    if not bool(torch.isfinite(together).all()):
        bad = int((~torch.isfinite(together)).any(dim=1).sum())
        raise ModelLoadError(f"{bad} of {len(items)} built-in texts have NaN or infinity in their representations")
    again, alone = model.encode(items), torch.cat([model.encode([item]) for item in items])
    for what, others in (("run a second time", again), ("run one by one", alone)):
        if model.local.deterministic:
            # What is promised bit for bit is what the backbone gives.
            error, limit = _difference(hidden, others), 0.0
        else:
            error = _difference(together, model.represent(others))
            limit = tolerance(next(model.network.backbone.parameters()).dtype)
        if not error <= limit:  # NaN is a difference too
            raise ModelLoadError(
                f"{what}, {len(items)} built-in texts are off by {error:.1e} of the size of their numbers; {limit:.1e} "
                "is allowed"
            )
    return len(items)


def _difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / first.norm().clamp_min(1e-12))


def _items(model: PreferenceModel) -> list[EncodeItem]:
    if model.reader is None:
        return _made_up(model)
    conversations: list[Conversation] = [
        conversation(prompt, response) for prompt in _PROMPTS for response in _RESPONSES
    ]
    items = []
    for reading in model.reader.read(conversations):
        if not isinstance(reading, TextError):
            items.append(reading.item)
        elif reading.code not in _TOO_LONG:
            raise ModelLoadError(f"a built-in text cannot be read: {reading.message}")
    if not items:
        raise ModelLoadError(f"no built-in text fits into {model.spec.max_length} tokens")
    return items


def _made_up(model: PreferenceModel) -> list[EncodeItem]:
    vocabulary, items = model.network.config.get_text_config().vocab_size, []
    for prompt, response in _LENGTHS:
        tokens = [number * 7 % vocabulary for number in range(min(prompt + response, model.spec.max_length))]
        reads = read_plan(model.spec, min(prompt, len(tokens) - 1), len(tokens), first_token=model.first_token)
        items.append(EncodeItem(tokens, reads, min(prompt, len(tokens) - 1)))
    return items
