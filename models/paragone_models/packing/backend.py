"""Which backbones may be packed, the ways to run one packed, and a trial of each before it is believed.

A CPU runs the Llama family written out, with kernels of our own where it multiplies bfloat16, and other decoders
through the models' own code with our attention in it. A GPU runs the models' own code with a varlen kernel, or with
flex attention where that does not serve. Whatever a configuration promises, a few sequences are run packed and one by
one before anything is served. What may not be packed runs in padded batches, and says why.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paragone_models.packing.attention import Attend, Run, packed
from paragone_models.packing.cpu import DecoderForward, attend_blocks
from paragone_models.packing.gpu import flex_attention, torch_kernel, varlen_attention
from paragone_models.packing.native import NativeOperations, kernels, speedup
from paragone_models.packing.packer import Forward, Packer, PromptStore
from paragone_models.rotary import depending_on_length
from paragone_models.text.reader import EncodeItem

__all__ = ["PACKED", "choose", "explained", "failure_of", "mixing", "refusal", "through_model", "tolerance", "ways"]

logger = logging.getLogger(__name__)

PACKED = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2"}
    | {"qwen3", "qwen3_moe", "smollm3", "starcoder2"}
)
"""Model types for which tests prove packing exact."""

_LAYERS = {"full_attention", "sliding_attention"}
# A shared stem, two responses to it and a sequence apart: every kind of node in one pass.
_STEM, _TAILS, _OTHER = 24, (3, 9), 7
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.1
_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
_TIMES_NOISE = 2.5
_FLOOR = {torch.bfloat16: 1e-3, torch.float16: 2e-4, torch.float32: 1e-5, torch.float64: 1e-6}
_FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
_WORDS = {
    "native": "packed, kernels of our own",
    "decoder": "packed, torch's operations",
    "blocks": "packed, through the model's own code",
    "varlen": "packed, the varlen kernel",
    "flex": "packed, flex attention",
}
_KERNEL_DTYPES = frozenset({torch.bfloat16, torch.float16})


def refusal(config: Any) -> str | None:
    """Return why a backbone with this transformers configuration may not be packed, or None if it may."""
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
    if ropes := depending_on_length(config):
        return f"its rotary positions depend on the length of the batch ({', '.join(ropes)})"
    return _company(config)


def _company(config: Any) -> str | None:
    """Return how quantised layers let a text's numbers depend on what shares its pass, or None if they do not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    values = settings if isinstance(settings, dict) else settings.to_dict()
    if values.get("load_in_8bit") and values.get("llm_int8_threshold", 6.0):
        return "LLM.int8() takes a column for an outlier if it is one in any row of a pass (llm_int8_threshold)"
    groups = (values.get("config_groups") or {}).values()
    if any(group.get("input_activations") for group in groups):
        # A product's last bit depends on how many rows it has, and decides between two steps: 0.2 of a reward in eight
        # bits, where weights alone would make 1e-6.
        return "its activations are rounded to so few steps that the order of a sum is seen"
    return None


def mixing(backbone: Any, *, causal: bool) -> str | None:
    """Return why sequences of one padded pass change each other's numbers, or None if they do not.

    That is asked of quantised backbones alone: others have only products and norms of single rows.

    Args:
        backbone: any transformers model, on its device, in evaluation mode.
        causal: whether it is run without a mask.
    """
    config = backbone.config
    if getattr(config, "quantization_config", None) is None:
        return None
    if reason := _company(config):
        return reason
    parameter = next(backbone.parameters())
    items = _trial_items(config.get_text_config().vocab_size)
    lengths = torch.tensor([len(item.token_ids) for item in items])
    tokens = torch.zeros(len(items), int(lengths.max()), dtype=torch.long)
    for row, item in enumerate(items):
        tokens[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
    mask = None if causal else (torch.arange(tokens.shape[1]) < lengths[:, None]).long().to(parameter.device)
    with torch.inference_mode():
        alone = torch.stack([_plain_state(backbone, item, parameter.device) for item in items])[:, 0]
        hidden = backbone(input_ids=tokens.to(parameter.device), attention_mask=mask).last_hidden_state
        together = hidden[torch.arange(len(items)), lengths - 1].float()
    error = float((together - alone).norm() / alone.norm())
    limit = tolerance(parameter.dtype)
    return None if error <= limit else f"beside others a text's hidden state is off by {error:.1e} of its size"


def choose(backbone: nn.Module, only: str | None = None, *, proven: str | None = None) -> tuple[str, Forward] | str:
    """Return the name and function of the first way to pack a backbone that agrees with running it plainly.

    Args:
        backbone: any transformers model, on its device, in evaluation mode.
        only: the one way to try, whether or not another is faster here.
        proven: name of the way that was chosen for this very backbone before, which is not tried again.

    Returns:
        The way, or why there is none.
    """
    config: Any = backbone.config
    reason = refusal(config)
    if reason is not None:
        return reason
    # Proven, but made anew: the buffers of a function belong to one caller.
    again = next((way for way in ways(backbone, timed=False) if way[0] == proven), None) if proven else None
    if again:
        return again
    reasons = []
    items = _trial_items(config.vocab_size)
    try:
        trial = _trial(backbone, items)
    except _FAILURES as error:
        return f"run plainly it failed with {type(error).__name__}: {str(error).splitlines()[:1]}"
    # In order of speed, so the first one that agrees is the one to take.
    for name, forward in ways(backbone, timed=only is None):
        if only not in (None, name):
            continue
        difference = failure_of(partial(_disagreement, backbone, forward, items, trial))
        if difference is None:
            return name, forward
        reasons.append(f"{name}: {difference}")
    return "; ".join(reasons) or "there is no packed attention for its device"


def ways(backbone: nn.Module, *, timed: bool = True) -> Iterator[tuple[str, Forward]]:
    """Yield the ways to pack a backbone on its device, with their names, best first.

    Args:
        backbone: one that ``refusal`` has nothing against.
        timed: whether our own kernels are left out where they turn out to be slower than torch's operations.
    """
    config: Any = backbone.config
    parameter = next(backbone.parameters())
    if parameter.device.type == "cpu":
        if DecoderForward.serves(backbone):
            if parameter.dtype == torch.bfloat16 and (library := _native(backbone, timed=timed)) is not None:
                yield "native", DecoderForward(backbone, NativeOperations(library))
            yield "decoder", DecoderForward(backbone)
        yield "blocks", through_model(backbone, attend_blocks)
    if parameter.device.type == "cuda":
        # The varlen kernel knows half precision alone, and no tanh on logits.
        if parameter.dtype in _KERNEL_DTYPES and not getattr(config, "attn_logit_softcapping", None):
            yield "varlen", through_model(backbone, varlen_attention(torch_kernel))
        yield "flex", through_model(backbone, flex_attention())


def _native(backbone: Any, *, timed: bool) -> Any | None:
    """Return our own kernels where they can run and, if they are timed, are faster than torch's operations."""
    library = kernels()
    reason: str | None = library if isinstance(library, str) else None
    if reason is None and timed:
        reason = failure_of(partial(_slower, library, backbone))
    if reason is not None:
        logger.info("no kernels of our own: %s", reason)
        return None
    return library


def explained(way: str, dtype: torch.dtype) -> str:
    """Return in words for people what a way of ``choose`` is, and why it is no faster one.

    Args:
        dtype: of the backbone that runs so.
    """
    if way != "decoder":
        return _WORDS[way]
    library = kernels() if dtype == torch.bfloat16 else "our kernels are for bfloat16"
    # Where there are kernels and they were not taken, a trial said so.
    return f"{_WORDS[way]}: {library if isinstance(library, str) else 'our kernels were no faster in a trial'}"


def _slower(library: Any, backbone: Any) -> str | None:
    """Return that our kernels are no faster for a backbone's heads, or None where they are."""
    attention = backbone.layers[0].self_attn
    size = int(attention.head_dim)
    heads, key_heads = (len(part.weight) // size for part in (attention.q_proj, attention.k_proj))
    ratio = speedup(library, heads=heads, key_heads=key_heads, head_size=size)
    logger.info("kernels of our own attend %.1f times as fast as torch's operations", ratio)
    return None if ratio > 1 else "torch's operations are faster"


def through_model(backbone: nn.Module, attend: Attend) -> Forward:
    """Return a forward pass that runs the model's own code, with our attention in it.

    Args:
        backbone: a bare transformers decoder that ``refusal`` has nothing against.
    """
    config: Any = backbone.config

    def forward(run: Run, tokens: Tensor, positions: Tensor) -> Tensor:
        # With a key-value cache, packing goes wrong in silence.
        with packed(config):
            output = backbone(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                paragone_run=run,
                paragone_attend=attend,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden[torch.from_numpy(run.output_rows).to(hidden.device)]

    return forward


@dataclass(frozen=True)
class _Trial:
    """What packed passes are held against.

    Attributes:
        states: hidden states of the sequences one by one, in twice the precision where that can be had. [n, R, H]
        limit: by how much of their size packed ones may differ.
    """

    states: Tensor
    limit: float


def _trial(backbone: nn.Module, items: Sequence[EncodeItem]) -> _Trial:
    """Return what packed passes of a backbone must give, and how exactly: as exactly as plain ones do."""
    parameter = next(backbone.parameters())
    with torch.inference_mode():
        plain = torch.stack([_plain_state(backbone, item, parameter.device) for item in items])
        try:
            with _precise(backbone):
                exact = torch.stack([_plain_state(backbone, item, parameter.device) for item in items])
        except _FAILURES as error:
            logger.info("no trial in twice the precision, so the tolerance is a fixed one: %s", error)
            return _Trial(plain, tolerance(parameter.dtype))
    noise = float((plain - exact).norm() / exact.norm())
    # Kernels add up in other orders: each a little better or worse than the model's own code.
    return _Trial(exact, _TIMES_NOISE * noise + _FLOOR.get(parameter.dtype, 0.0))


@contextmanager
def _precise(backbone: nn.Module) -> Iterator[None]:
    """Have every module compute in twice its precision, with wide copies of one module's weights at a time."""

    def widen(module: nn.Module, _: Any) -> None:
        kept[module] = {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
        for name, values in kept[module].items():
            if values.dtype in _WIDER:
                module.get_parameter(name).data = values.to(_WIDER[values.dtype])

    def restore(module: nn.Module, *_: Any) -> None:
        for name, values in kept.pop(module, {}).items():
            module.get_parameter(name).data = values

    if any(
        type(part.data) is not Tensor or part.dtype not in (*_WIDER, torch.float64) for part in backbone.parameters()
    ):
        raise TypeError("quantised weights have no twice")
    kept: dict[nn.Module, dict[str, Tensor]] = {}
    hooks = []
    for module in backbone.modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(kept):
            restore(module)


def _disagreement(backbone: nn.Module, forward: Forward, items: Sequence[EncodeItem], trial: _Trial) -> str | None:
    """Return how packed passes differ from running sequences one by one, or None if they agree.

    Args:
        forward: the packed forward pass on trial.
    """
    config: Any = backbone.config
    parameter = next(backbone.parameters())
    # Large enough for anything, so that the second call reads the stored stem.
    store = PromptStore(1 << 40)
    packer = Packer(forward, parameter.device, config.hidden_size, store=store, max_tokens=1 << 20)
    expected = trial.states
    if not bool(torch.isfinite(expected).all()):
        return "its hidden states are not finite"
    for origin in ("packed", "from stored keys"):  # the second call finds the stem in the store
        error = float((packer.encode(items) - expected).norm() / expected.norm())
        if not error <= trial.limit:  # NaN is a disagreement too
            return f"run {origin} its hidden states are off by {error:.1e} of their size; {trial.limit:.1e} is allowed"
    return None


def failure_of(check: Callable[[], str | None], *, verb: str = "failed") -> str | None:
    """Return what a check says, or the error that ended it.

    Kernels differ between devices and versions; whichever fails, padded batches are there.

    Args:
        check: returns what is wrong, or None.
        verb: stands before the error's name.
    """
    try:
        return check()
    except _FAILURES as error:
        return f"{verb} with {type(error).__name__}: {str(error).splitlines()[:1]}"


def tolerance(dtype: torch.dtype) -> float:
    """Return by how much of their size packed numbers may differ from those of sequences one by one."""
    return _TOLERANCE.get(dtype, _COARSE)


def _trial_items(vocabulary: int) -> list[EncodeItem]:
    generator = np.random.default_rng(0)
    stem, *tails, other = (generator.integers(0, vocabulary, length).tolist() for length in (_STEM, *_TAILS, _OTHER))
    # Any ids will do: to packing they are numbers, and random ones do not repeat by accident.
    sequences = [*(stem + tail for tail in tails), other]
    return [EncodeItem(tokens, ((len(tokens) - 1, len(tokens)),), len(tokens) - 1) for tokens in sequences]


def _plain_state(backbone: nn.Module, item: EncodeItem, device: torch.device) -> Tensor:
    output = backbone(input_ids=torch.tensor([list(item.token_ids)], device=device), use_cache=False)
    hidden: Tensor = output.last_hidden_state[0, -1:].float()
    return hidden
