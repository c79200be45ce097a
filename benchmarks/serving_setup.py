"""What the serving benchmarks share: texts, a random decoder of any size with its tokenizer, and a server process."""

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WORDS = """
the of and to in is that it was for on are with as they be at one have this from or had by not but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would other into
has more her two like him see time could no make than first been its who now people my made over did down only way find
use may water long little very after words called just where most know government argument because therefore however
reason bottle plastic school education physical evolution religion marriage opinion
""".split()  # noqa: SIM905 (a text reads better than a hundred quoted words)


def text(generator: random.Random, characters: int) -> str:
    """Return words that are about that many characters long together."""
    parts: list[str] = []
    length = 0
    while length < characters:
        word = generator.choice(WORDS)
        if generator.random() < 0.1:
            word += str(generator.randrange(1000))
        parts.append(word)
        length += len(word) + 1
    return " ".join(parts)[:characters]


def make_model(folder: Path, *, hidden: int, layers: int, vocabulary: int, max_length: int) -> int:
    """Write a random general preference model and return how many parameters it has."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    from paragone_models.files.saving import save_model
    from paragone_models.network import PreferenceNetwork, RepresentationHead
    from paragone_models.spec import ModelSpec

    generator = random.Random(0)  # noqa: S311
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|end|>", "<|turn|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text(generator, 20_000) for _ in range(20)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")  # noqa: S106
    fast.chat_template = (
        "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 128), head_dim=64,
        max_position_embeddings=max_length,
    )  # fmt: skip
    spec = ModelSpec(
        kind="general-preference", dimension=8, gate="softmax", normalise=True, temperature=0.1, max_length=max_length
    )
    network = PreferenceNetwork(Qwen3Model(config), RepresentationHead(hidden, spec))
    save_model(folder, network, spec, fast)
    return sum(parameter.numel() for parameter in network.parameters())


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def server(*flags: str, cores: set[int] | None = None, threads: int = 1) -> Iterator[int]:
    """Run ``paragone serve`` on a free port and yield the port once it is ready."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("paragone")), "serve", "--port", str(port), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, env=environment, preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores)
    )
    try:
        wait_until_ready(port, process.poll)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(
    port: int, exit_code: Callable[[], int | None], *, path: str = "/readyz", timeout_s: float = 120
) -> None:
    """Return when the path is answered with 200; ``exit_code`` returns None as long as the server runs."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (code := exit_code()) is not None:
            raise RuntimeError(f"the server ended with exit code {code}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the server did not get ready")


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
