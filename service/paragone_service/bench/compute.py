"""Measure this process: the matrix peak, plain transformers and the engine, on the same texts.

Shapes: n sequences, T padded length.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from paragone_models.forward import batches
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem

__all__ = ["Compute", "measure"]

_PADDED_BATCH = 16


@dataclass(frozen=True)
class Compute:
    """Medians over turns, in which every side ran once.

    Attributes:
        responses: scored by each side in a turn.
        engine_s: seconds of the engine, nothing kept from an earlier turn.
        padded_s: seconds of plain transformers: batches of 16 in input order, padded on the right.
        ratio: padded seconds over the engine's, the median of the turns' ratios.
        peak_flops: floating-point operations a second of a large matrix product in the model's dtype.
        share_of_peak: operations that the engine had to do, over its time, over the peak.
        tokens: of all sequences, prompts counted once per response.
        padded_tokens, executed_tokens: what plain transformers and the engine computed.
    """

    responses: int
    engine_s: float
    padded_s: float
    ratio: float
    peak_flops: float
    share_of_peak: float
    tokens: int
    padded_tokens: int
    executed_tokens: int

    @property
    def padding(self) -> float:
        """How many tokens plain transformers computes for each real one."""
        return self.padded_tokens / self.tokens

    @property
    def sharing(self) -> float:
        """How many tokens of sequences each computed token of the engine stands for."""
        return self.tokens / self.executed_tokens


def _peak(device: torch.device, dtype: torch.dtype, *, size: int | None = None) -> float:
    """Return the operations a second that a large matrix product reaches, the best of a few."""
    # Rows and columns: large enough for the peak, small enough for a second on the slowest of both.
    size = size or (8192 if device.type == "cuda" else 1536)
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    times = [_seconds(lambda: torch.nn.functional.linear(left, right), device) for _ in range(5)]
    return 2.0 * size**3 / min(times[1:])  # the first product pays for its setting up


def measure(model: PreferenceModel, turns: Sequence[Sequence[EncodeItem]]) -> Compute:
    """Return how fast the engine and plain transformers are on the same sequences, side by side.

    Args:
        model: its prompt store is emptied before every turn.
        turns: sequences of each turn, group after group; the first turn warms up and is not counted.

    Raises:
        ValueError: if there are fewer than two turns.
    """
    if len(turns) < 2:
        raise ValueError(f"{len(turns)} turns: the first one only warms up, so give at least two")
    device = next(model.network.backbone.parameters()).device
    dtype = next(model.network.backbone.parameters()).dtype
    engine, padded, peaks, shares, executed = list[float](), list[float](), list[float](), list[float](), list[int]()
    for number, items in enumerate(turns):
        before = _executed(model, items)
        if model.local.packer:
            model.local.packer.store.clear()  # else a prompt of an earlier turn would cost nothing
        ours = _seconds(lambda items=items: model.encode(items), device)  # type: ignore[misc]
        plain = _seconds(lambda items=items: _padded(model, items), device)  # type: ignore[misc]
        if not number:
            continue  # kernels were compiled, pools filled
        done = _executed(model, items) - before if model.local.packer else before
        engine.append(ours)
        padded.append(plain)
        executed.append(done)
        peaks.append(_peak(device, dtype))  # beside the turn, since a busy machine lowers both
        shares.append(_operations(model, items, done) / ours / peaks[-1])
    counted = turns[1:]
    return Compute(
        responses=round(median(len(items) for items in counted)),
        engine_s=median(engine),
        padded_s=median(padded),
        ratio=median(slow / fast for slow, fast in zip(padded, engine, strict=True)),
        peak_flops=median(peaks),
        share_of_peak=median(shares),
        tokens=round(median(sum(len(item.token_ids) for item in items) for items in counted)),
        padded_tokens=round(median(_padded_tokens(items) for items in counted)),
        executed_tokens=round(median(executed)),
    )


def _padded_tokens(items: Sequence[EncodeItem], batch: int = _PADDED_BATCH) -> int:
    """Return how many tokens batches in input order have, with padding."""
    lengths = [len(item.token_ids) for item in items]
    rows = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(max(row) * len(row) for row in rows)


def _operations(model: PreferenceModel, items: Sequence[EncodeItem], executed_tokens: int) -> float:
    """Return the floating-point operations that scoring needs: 2 x parameters x tokens, and attention.

        2 N T + 4 L h sum_t (position_t + 1),   N without embeddings, L layers, h heads x head size

    Attention is counted over each distinct prompt once and each response once.
    ``executed_tokens`` is T.
    """
    config = model.network.config.get_text_config()
    backbone = model.network.backbone
    embeddings = {id(weight) for weight in backbone.get_input_embeddings().parameters()}  # type: ignore[operator]
    parameters = sum(weight.numel() for weight in backbone.parameters() if id(weight) not in embeddings)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    # What has to be done, not what an engine does: padding or a prompt read twice must not look like useful work.
    prompts = {tuple(item.token_ids[: item.prompt_length]) for item in items}
    seen = sum(len(prompt) * (len(prompt) + 1) / 2 for prompt in prompts)
    for item in items:
        whole, prompt = len(item.token_ids), item.prompt_length
        seen += whole * (whole + 1) / 2 - prompt * (prompt + 1) / 2
    return float(2.0 * parameters * executed_tokens + 4.0 * config.num_hidden_layers * width * seen)


def _executed(model: PreferenceModel, items: Sequence[EncodeItem]) -> int:
    """Return the packer's counter, or what length-sorted padding computes."""
    if model.local.packer:
        return model.local.packer.executed_tokens
    lengths = [len(item.token_ids) for item in items]
    return sum(len(batch) * lengths[batch[0]] for batch in batches(lengths, model.budget.tokens))


@torch.inference_mode()
def _padded(model: PreferenceModel, items: Sequence[EncodeItem]) -> None:
    """Run the backbone as plain transformers does: batches in input order, padded on the right, with a mask."""
    network = model.network
    device = next(network.backbone.parameters()).device
    for start in range(0, len(items), _PADDED_BATCH):
        rows = [list(item.token_ids) for item in items[start : start + _PADDED_BATCH]]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        network.backbone(input_ids=ids, attention_mask=mask)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    # A GPU works behind the caller's back: without a wait on both sides only the launches would be timed.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
