"""A tournament of K responses by a model that reads both at once: shared prefixes against a forward for each order.

All ordered pairs of one group of texts. A random Qwen3-shaped decoder that answers A or B, read as the server reads it,
in one call of the packed engine, where prompt and first response are computed once for all pairs that begin with them;
against plain transformers, one sequence a pass. With --encoder a random DeBERTa-v2 of PairRM's layout: what sees both
ways has no prefix to share, and batches are all that is left. Both sides in one process and in turns, so that they see
the same machine; the ratio is the median of the repetitions'.

    python benchmarks/pairwise.py [--size 30M] [--responses 8] [--prompt 256] [--response 128] [--repetitions 5] \\
        [--encoder] [--threads 2] [--json FILE]

Takes about 3 minutes on two cores.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine_setup import SHAPES, seconds, token_stream, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, DebertaV2Config, DebertaV2Model

from paragone_models import load_model
from paragone_models.model import PreferenceModel, Provenance
from paragone_models.network import PreferenceNetwork, gather_reads
from paragone_models.pairwise import MarkerHead
from paragone_models.spec import ModelSpec
from paragone_models.text.pairs import PairText
from paragone_models.text.reader import EncodeItem

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</{{ message['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WANTED = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="30M")
    parser.add_argument("--encoder", action="store_true", help="PairRM's layout in place of letters")
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--response", type=int, default=128, help="tokens of each response")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    made = encoder if arguments.encoder else letters
    model, items = made(arguments.size, arguments.responses, arguments.prompt, arguments.response)
    print(f"{len(items)} ordered pairs of {arguments.responses} responses, {model.local.batching}, float32")
    numbers = measured(model, items, arguments.repetitions)
    if arguments.json:
        numbers |= {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


def texts(responses: int, prompt: int, response: int) -> list[list[int]]:
    """Return the tokens of a prompt and of its responses, text that runs on."""
    stream, start, drawn = token_stream(None), 0, []
    for length in [prompt, *[response] * responses]:
        drawn.append(stream[start : start + length])
        start += length
    return drawn


def letters(size: str, responses: int, prompt: int, response: int) -> tuple[PreferenceModel, list[EncodeItem]]:
    """Return a random decoder that answers A or B, and all ordered pairs as its reader reads them."""
    model_type, hidden, width, layers, heads, key_heads, head_dim = SHAPES[size]
    reader = tokenizer()
    reader.chat_template = TEMPLATE
    config = AutoConfig.for_model(
        model_type, hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, head_dim=head_dim, max_position_embeddings=32768, vocab_size=len(reader),
    )  # fmt: skip
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        reader.save_pretrained(folder)
        model = load_model(folder, kind="pairwise", device="cpu", dtype="float32", prompt_cache_bytes=0)
    asked, *answers = (reader.decode(tokens) for tokens in texts(responses, prompt, response))
    user, said = ({"role": "user", "content": asked},), [({"role": "assistant", "content": one},) for one in answers]
    pairs = [PairText(user, first, second) for first in said for second in said if first is not second]
    readings: list[Any] = model.reader.read(pairs) if model.reader is not None else []
    return model, [reading.item for reading in readings]


def encoder(size: str, responses: int, prompt: int, response: int) -> tuple[PreferenceModel, list[EncodeItem]]:
    """Return a random DeBERTa-v2 with PairRM's head, and all ordered pairs as its tokens stand."""
    _, hidden, width, layers, heads, _, _ = SHAPES[size]
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer()) + 3, hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048, relative_attention=True, position_buckets=256,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True,
    )  # fmt: skip
    spec = ModelSpec(
        kind="pairwise", dimension=1, pair_format="markers", symmetrise="sum", max_length=prompt + 2 * response + 3
    )
    network = PreferenceNetwork(DebertaV2Model(config), MarkerHead(hidden, spec)).eval()
    network.requires_grad_(requires_grad=False)
    model = PreferenceModel(network, spec, None, Provenance("m", "random", None, "0" * 64, {}), max_batch_tokens=4096)
    markers = [len(tokenizer()) + place for place in range(3)]
    asked, *answers = texts(responses, prompt, response)
    starts = (0, 1 + prompt, 2 + prompt + response)
    reads = tuple((start, start + 1) for start in starts)
    items = [
        EncodeItem([markers[0], *asked, markers[1], *first, markers[2], *second], reads, 1 + prompt)
        for first in answers
        for second in answers
        if first is not second
    ]
    return model, items


@torch.inference_mode()
def one_by_one(model: PreferenceModel, items: list[EncodeItem]) -> torch.Tensor:
    """Return the log-odds of each pair in its order, from a pass of its own."""
    rows = []
    for item in items:
        ids = torch.as_tensor(item.token_ids, dtype=torch.long)[None]
        hidden = model.network.last_hidden(ids, torch.ones_like(ids))
        rows.append(model.represent(gather_reads(hidden, torch.tensor([item.reads]))))
    return torch.cat(rows)[:, 0]


def together(model: PreferenceModel, items: list[EncodeItem]) -> torch.Tensor:
    """Return the same from one call of the engine."""
    return model.represent(model.encode(items))[:, 0]


def measured(model: PreferenceModel, items: list[EncodeItem], repetitions: int) -> dict[str, Any]:
    """Run both sides in turns, print what they took, and return the numbers."""
    error = float((one_by_one(model, items[:8]) - together(model, items[:8])).abs().max())
    print(f"largest difference of a log-odds: {error:.1e}")
    assert error < 1e-3
    times: dict[str, list[float]] = {"one by one": [], "together": []}
    for turn in range(repetitions):
        times["together"].append(seconds(lambda: together(model, items), CPU))
        times["one by one"].append(seconds(lambda: one_by_one(model, items), CPU))
        print(
            f"turn {turn + 1}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items()), flush=True
        )
    ratios = [slow / fast for slow, fast in zip(times["one by one"], times["together"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"together is {ratio:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}); {WANTED} wanted")
    return {"ratio": ratio, "ratios": ratios, "seconds": times, "pairs": len(items)}


if __name__ == "__main__":
    main()
