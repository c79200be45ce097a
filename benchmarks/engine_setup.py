"""What the engine benchmarks share: workload R, decoder shapes, the matrix peak, and counted passes."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import pair_rows
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from paragone_models.files.sources import tokenizer_folder
from paragone_models.packing.packer import Packer, PromptStore
from paragone_models.text.reader import EncodeItem

TEXTS = 2000
RESPONSES = 8
SHORTEST, LONGEST = 64, 512

# hidden size, width of the MLP, layers, query heads, key heads, head size
SHAPES = {
    "1M": ("qwen3", 128, 384, 4, 4, 2, 32),
    "30M": ("qwen3", 512, 1536, 10, 8, 4, 64),
    "300M": ("qwen3", 1024, 3072, 24, 16, 8, 64),
    "0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128),
    "8B": ("llama", 4096, 14336, 32, 32, 8, 128),
}


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folder())


def token_stream(data: Path | None, reader: Any = None) -> list[int]:
    """Return the tokens of some texts in a row: arguments of the corpora, or the shipped set."""
    texts: dict[str, None] = {}
    for row in pair_rows(data):
        texts[row["first"]] = texts[row["second"]] = None
        if len(texts) > TEXTS:
            break
    encoded = (reader or tokenizer())(list(texts), add_special_tokens=False)["input_ids"]
    return [token for tokens in encoded for token in tokens]


def workload(
    groups: int,
    data: Path | None,
    *,
    seed: int = 0,
    lengths: tuple[int, int] = (SHORTEST, LONGEST),
    reader: Any = None,
) -> list[EncodeItem]:
    """Return workload R: groups of one prompt and 8 responses, each of 64 to 512 tokens of text.

    Args:
        reader: the tokenizer of the model that reads them; that of the built-in models unless given.
    """
    stream, generator = token_stream(data, reader), random.Random(seed)  # noqa: S311

    def draw() -> list[int]:
        length = generator.randint(*lengths)
        start = generator.randrange(len(stream) - length)
        return stream[start : start + length]

    items = []
    for _ in range(groups):
        prompt = draw()
        for _ in range(RESPONSES):
            tokens = [*prompt, *draw()]
            items.append(EncodeItem(tokens, ((len(tokens) - 1, len(tokens)),), len(prompt)))
    return items


def classifier(size: str, dtype: torch.dtype, device: str, *, vocabulary: int | None = None) -> Any:
    """Return a random sequence classifier of that shape: what plain transformers would serve."""
    model_type, hidden, width, layers, heads, key_heads, head_dim = SHAPES[size]
    config = AutoConfig.for_model(
        model_type, hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, head_dim=head_dim, max_position_embeddings=32768, num_labels=1, pad_token_id=0,
        vocab_size=vocabulary or len(tokenizer()),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(requires_grad=False)


def pretrained_classifier(source: str, dtype: torch.dtype) -> Any:
    """Return a pretrained decoder with a random reward head on top, on the CPU."""
    torch.manual_seed(0)
    # Token 0 fills batches up, as in ``padded``; the classifier looks for it to find the last token of a text.
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, pad_token_id=0, dtype=dtype)
    return model.eval().requires_grad_(requires_grad=False)


def backbone_parameters(backbone: Any) -> int:
    """Return the number of parameters without the embeddings."""
    embeddings = backbone.get_input_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in backbone.parameters()) - embeddings


class Counted:
    """A packed forward pass that counts the floating-point operations it is worth."""

    def __init__(self, forward: Any, backbone: Any, *, last_layer_sparse: bool) -> None:
        config = backbone.config
        self.tokens = 0
        self.operations = 0.0
        self._forward = forward
        self._sparse = last_layer_sparse
        self._layers = config.num_hidden_layers
        self._layer = sum(parameter.numel() for parameter in backbone.layers[0].parameters())
        self._keys = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
        self._attention = 4 * config.num_attention_heads * config.head_dim

    def __call__(self, run: Any, tokens: Any, positions: Any) -> Any:
        rows, wanted = len(tokens), len(run.output_rows)
        pairs = run.layout.positions + 1  # a row sees its own position and all before
        self.tokens += rows
        whole = self._layers - 1 if self._sparse else self._layers
        self.operations += whole * (2.0 * self._layer * rows + self._attention * float(pairs.sum()))
        if self._sparse:
            self.operations += 2.0 * self._keys * rows + 2.0 * (self._layer - self._keys) * wanted
            self.operations += self._attention * float(pairs[run.output_rows].sum())
        return self._forward(run, tokens, positions)


def counted_packer(name: str, forward: Any, backbone: Any, *, max_tokens: int, prompt_bytes: int = 0) -> Packer:
    counted = Counted(forward, backbone, last_layer_sparse=name in ("decoder", "native"))
    packer = Packer(
        counted, next(backbone.parameters()).device, backbone.config.hidden_size,
        store=PromptStore(prompt_bytes), max_tokens=max_tokens,
    )  # fmt: skip
    packer.counted = counted  # type: ignore[attr-defined]
    return packer


@torch.inference_mode()
def padded(model: Any, items: list[EncodeItem], *, batch: int = 16) -> torch.Tensor:
    """Score as plain transformers does: batches in the order of the input, padded on the right, with a mask."""
    device = next(model.parameters()).device
    scores = []
    for start in range(0, len(items), batch):
        rows = [list(item.token_ids) for item in items[start : start + batch]]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        scores.append(model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float())
    return torch.cat(scores)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Any, device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def peak(dtype: torch.dtype, device: torch.device, *, size: int | None = None) -> float:
    """Return the most operations a second that a large matrix product reaches in a few tries."""
    size = size or (8192 if device.type == "cuda" else 2048)
    rows = torch.randn(size, size, device=device).to(dtype)
    weight = torch.randn(size, size, device=device).to(dtype)
    product = lambda: torch.nn.functional.linear(rows, weight)  # noqa: E731
    seconds(product, device)
    return 2.0 * size**3 / min(seconds(product, device) for _ in range(3))


def naive_tokens(items: list[EncodeItem], *, batch: int = 16) -> int:
    """Return how many tokens padded batches in input order compute."""
    lengths = np.array([len(item.token_ids) for item in items])
    return sum(
        int(chunk.max()) * len(chunk)
        for chunk in (lengths[start : start + batch] for start in range(0, len(lengths), batch))
    )
