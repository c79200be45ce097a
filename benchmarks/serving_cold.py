"""How much of the bare forward is left when texts come over HTTP and no cache knows them.

A random decoder of about 30M parameters. The bare forward runs the backbone over the same texts, already tokenised,
sorted by length, in the best of several batch sizes; the service gets the texts as one request and renders, tokenises,
batches, runs, compares and answers. Both in one run, in turns, with the same number of threads.

    python benchmarks/serving_cold.py [--texts 64] [--repetitions 5] [--threads 2] [--device cpu|cuda]

Expected: the batch endpoint reaches at least 0.8 of the bare forward (median of the repetitions).
"""

import argparse
import http.client
import json
import math
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from serving_setup import make_model, server, text

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--max-batch-tokens", type=int)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        size = make_model(
            Path(folder) / "model", hidden=arguments.hidden, layers=arguments.layers, vocabulary=8000, max_length=2048
        )
        print(f"{size / 1e6:.1f}M parameters on {arguments.device}, {arguments.threads} threads", flush=True)
        flags = ["--model", f"bench={folder}/model", "--device", arguments.device, "--dtype", arguments.dtype]
        if arguments.max_batch_tokens:
            flags += ["--max-batch-tokens", str(arguments.max_batch_tokens)]
        with server(*flags, "--memory-cache-mb", "0", "--log-level", "warning", threads=arguments.threads) as port:
            compare(port, Path(folder) / "model", arguments)


def words(generator: random.Random) -> str:
    """Return a text of 40 to 2,000 characters, most of them short."""
    characters = 40 * math.exp(generator.random() * math.log(50))
    return text(generator, int(characters))


def compare(port: int, folder: Path, arguments: argparse.Namespace) -> None:
    import torch

    from paragone_models import load_model

    torch.set_num_threads(arguments.threads)
    model = load_model(folder, device=arguments.device, dtype=arguments.dtype)
    generator = random.Random(2)  # noqa: S311
    body, sequences = texts(model, generator, arguments.texts)
    print(
        f"{len(sequences)} texts, {sum(map(len, sequences))} tokens, {len(sequences[0])} to {len(sequences[-1])} a text"
    )
    ask(port, body)
    bare(model, sequences, 4)  # both are warm now
    times = {size: bare(model, sequences, size) for size in BATCH_SIZES if size < 2 * len(sequences)}
    for size, took in times.items():
        print(f"  bare forward, batches of {size:>3}: {sum(map(len, sequences)) / took:>8.0f} tokens/s")
    best = min(times, key=lambda size: times[size])
    ratios = []
    print(f"{'':>4} {'bare tokens/s':>14} {'service tokens/s':>17} {'ratio':>6}   tokenize, queue, inference, total ms")
    for repetition in range(arguments.repetitions):
        # New texts every time: the service keeps keys and values of prompts that it has seen.
        body, sequences = texts(model, generator, arguments.texts)
        tokens = sum(map(len, sequences))
        alone = min(bare(model, sequences, size) for size in {best, max(1, best // 2), best * 2})
        served, headers = ask(port, body)
        ratios.append(alone / served)
        parts = ", ".join(headers[f"x-{phase}-ms"] for phase in ("tokenize", "queue", "inference", "total"))
        rates = f"{tokens / alone:>14.0f} {tokens / served:>17.0f} {ratios[-1]:>6.3f}"
        print(f"{repetition:>4} {rates}   {parts}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


def texts(model, generator: random.Random, count: int) -> tuple[bytes, list[list[int]]]:
    """Return a request with new texts, and their tokens, sorted by length."""
    from paragone_models.text.reader import Reading, conversation

    items = [{"prompt": words(generator), "response": words(generator)} for _ in range(count)]
    readings = model.reader.read([conversation(item["prompt"], item["response"]) for item in items])
    sequences = sorted((one.token_ids for one in readings if isinstance(one, Reading)), key=len)
    return json.dumps({"items": items}).encode(), sequences


def bare(model, sequences: list[list[int]], size: int) -> float:
    """Return the seconds that the backbone takes for all sequences, in padded batches of that many."""
    import torch

    device = next(model.network.parameters()).device
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(sequences), size):
            batch = sequences[start : start + size]
            longest = max(map(len, batch))
            ids = torch.tensor([one + [0] * (longest - len(one)) for one in batch], device=device)
            output = model.network.backbone(input_ids=ids, use_cache=False)
        output.last_hidden_state[0, 0, 0].item()  # waits for the device
    return time.perf_counter() - started


def ask(port: int, content: bytes) -> tuple[float, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    started = time.perf_counter()
    connection.request("POST", "/v1/rewards", content, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    took = time.perf_counter() - started
    if response.status != 200:
        raise RuntimeError(answer.decode())
    usage = json.loads(answer)["usage"]
    assert usage["cached_responses"] == 0, usage
    return took, dict(response.getheaders())


if __name__ == "__main__":
    main()
