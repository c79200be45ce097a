"""Workload R over HTTP: Paragone with default flags beside stock vLLM, padded transformers and one forward a request.

Groups of 8 responses, prompts and responses of 64 to 512 tokens of text, a random Qwen3-shaped classifier that
every side loads from the same folder. In every turn every side scores texts that no side has seen:

* together: all responses in one request; beside it in this process, from token ids, the local engine, padded
  transformers (batch 16, input order), and the scheme of reward servers that run one padded forward for each
  request, one request after another (a request of 8 siblings, and of one response).
* 64 clients: single responses, 64 requests under way.
* apart: single responses, siblings in waves that begin two seconds apart or later; only the waves' time counts.

Sides take turns; servers whose turn it is not are stopped by a signal, so that nobody's idling costs another one time.
A turn begins with a group that is not counted: what was stopped for a minute finds its memory cold.

    python benchmarks/workload_r.py --vllm PATH/TO/vllm [--size 30M|300M] [--groups 6] [--turns 5] [--data FOLDER] \\
        [--json FILE]

Without --vllm the other sides run alone. Takes about 4 minutes for 30M on two cores with fast bfloat16.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import torch
from engine_setup import RESPONSES, SHAPES, classifier, padded, tokenizer, workload
from serving_setup import free_port, wait_until_ready
from texts import add_data

from paragone_models import load_model
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import EncodeItem, Reading, conversation
from paragone_service.bench.load import ScoredText, ask_all

WAVE_S = 2.0
READY_S = 600.0


@dataclass(frozen=True)
class Texts:
    """One turn's texts: as they are sent, and as every side's model sees them."""

    asked: list[ScoredText]
    items: list[EncodeItem]


class Server:
    """A server in a process group of its own, stopped by a signal while it is not its turn."""

    def __init__(self, command: list[str], port: int, *, dialect: str, ready: str, model: str) -> None:
        self.url, self.dialect, self.model = f"http://127.0.0.1:{port}", dialect, model
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_NO_USAGE_STATS": "1"}
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                wait_until_ready(port, self.process.poll, path=ready, timeout_s=READY_S)
            except (RuntimeError, TimeoutError) as error:
                self.close()
                log.seek(0)
                said = log.read().decode(errors="replace")[-3000:]
                raise RuntimeError(f"{command[0]}: {error}:\n{said}") from error
        os.killpg(self.process.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def rate(self, asked: list[ScoredText], *, clients: int, batch: int) -> float:
        level = ask_all(self.url, self.dialect, asked, clients=clients, batch=batch, model=self.model)
        return level.rate

    def dtype(self) -> str:
        """Return the dtype that ours has chosen."""
        with self.turn():
            answer = httpx2.get(f"{self.url}/v1/models/{self.model}", trust_env=False)
        return str(answer.json()["numerics"]["dtype"])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.process.pid, signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="vLLM's command, of an environment of its own")
    parser.add_argument("--size", choices=sorted(SHAPES), default="30M")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add_data(parser, otherwise="the shipped set without it")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        plain = classifier(arguments.size, torch.bfloat16, "cpu")
        plain.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        sides = {"paragone": stack.enter_context(contextlib.closing(paragone(folder)))}
        dtype = sides["paragone"].dtype()
        if arguments.vllm:
            sides["vllm"] = stack.enter_context(contextlib.closing(vllm(arguments.vllm, folder, dtype)))
        print(f"every side in {dtype}; {', '.join(sides)}: ready", flush=True)
        model = load_model(folder, dtype=dtype)
        plain = plain.to(getattr(torch, dtype))
        texts_of = functools.partial(texts, model, data=arguments.data)
        rates = measure(model, plain, sides, texts_of, groups=arguments.groups, turns=arguments.turns)
    show(rates)
    if arguments.json:
        numbers = {"size": arguments.size, "dtype": dtype, "groups": arguments.groups, "responses_per_s": rates}
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


def paragone(folder: str) -> Server:
    """Start ours, with default flags."""
    port, command = free_port(), str(Path(sys.executable).with_name("paragone"))
    flags = ["serve", "--port", str(port), "--model", f"bench={folder}"]
    return Server([command, *flags], port, dialect="paragone", ready="/readyz", model="bench")


def vllm(command: str, folder: str, dtype: str) -> Server:
    """Start vLLM; what its environment variables say of cores is its user's to set."""
    port = free_port()
    flags = ["serve", folder, "--runner", "pooling", "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    return Server([command, *flags], port, dialect="vllm", ready="/health", model=folder)


def measure(
    model: PreferenceModel,
    plain: torch.nn.Module,
    sides: dict[str, Server],
    texts_of: Callable[[int, int], Texts],
    *,
    groups: int,
    turns: int,
) -> dict[str, dict[str, list[float]]]:
    seeds = iter(range(1000))

    def draw(groups: int) -> Texts:
        return texts_of(groups, next(seeds))

    rates: dict[str, dict[str, list[float]]] = {"together": {}, "64 clients": {}, "apart": {}}
    for turn in range(turns + 1):  # the first one warms up
        found: dict[str, dict[str, float]] = {}
        together = draw(groups)
        found["together"] = over_http(sides, in_one_request, together.asked, warm=draw(1).asked)
        found["together"] |= in_process(model, plain, together.items)
        found["64 clients"] = over_http(sides, from_many_clients, draw(groups).asked, warm=draw(1).asked)
        found["apart"] = over_http(sides, in_waves, draw(groups).asked, warm=draw(1).asked)
        if not turn:
            continue
        for mode, by_side in found.items():
            for side, rate in by_side.items():
                rates[mode].setdefault(side, []).append(rate)
        print(f"turn {turn}: " + "; ".join(
            f"{mode}: " + ", ".join(f"{side} {rate:.2f}" for side, rate in by_side.items())
            for mode, by_side in found.items()
        ), flush=True)  # fmt: skip
    return rates


def texts(model: PreferenceModel, groups: int, seed: int, *, data: Path | None) -> Texts:
    """Return workload R as texts, groups side by side."""
    decode = model.reader.tokenizer.decode
    drawn = [(item.token_ids, item.prompt_length) for item in workload(groups, data, seed=seed)]
    pairs = [(decode(tokens[:prompt]), decode(tokens[prompt:])) for tokens, prompt in drawn]
    readings = model.reader.read([conversation(prompt, response) for prompt, response in pairs])
    assert all(isinstance(reading, Reading) for reading in readings)
    asked = [ScoredText(*pair, reading.text) for pair, reading in zip(pairs, readings, strict=True)]
    return Texts(asked, [reading.item for reading in readings])


def over_http(
    sides: dict[str, Server],
    rate: Callable[[Server, list[ScoredText]], float],
    asked: list[ScoredText],
    *,
    warm: list[ScoredText],
) -> dict[str, float]:
    found = {}
    for name, server in sides.items():
        with server.turn():
            in_one_request(server, warm)
            found[name] = rate(server, asked)
    return found


def in_one_request(server: Server, asked: list[ScoredText]) -> float:
    return server.rate(asked, clients=1, batch=len(asked))


def from_many_clients(server: Server, asked: list[ScoredText]) -> float:
    return server.rate(asked, clients=64, batch=1)


def in_waves(server: Server, asked: list[ScoredText]) -> float:
    """Return responses a second when siblings come two seconds apart: the first of every group, then the second, …"""
    busy = 0.0
    for place in range(RESPONSES):
        wave = asked[place::RESPONSES]
        seconds = len(wave) / server.rate(wave, clients=len(wave), batch=1)
        busy += seconds
        time.sleep(max(0.0, WAVE_S - seconds))
    return len(asked) / busy


def in_process(model: PreferenceModel, plain: torch.nn.Module, items: list[EncodeItem]) -> dict[str, float]:
    """Return responses a second from token ids, without HTTP, a tokenizer or a queue."""
    model.local.packer.store.clear()
    found = {"local engine": timed(lambda: model.encode(items), items)}
    found["padded, batch 16"] = timed(lambda: padded(plain, items), items)
    found["a forward for each 8"] = timed(lambda: padded(plain, items, batch=RESPONSES), items)
    found["a forward for each"] = timed(lambda: padded(plain, items, batch=1), items)
    return found


def timed(work: Callable[[], object], items: list[EncodeItem]) -> float:
    started = time.perf_counter()
    work()
    return len(items) / (time.perf_counter() - started)


def show(rates: dict[str, dict[str, list[float]]]) -> None:
    for mode, by_side in rates.items():
        ours = by_side["paragone"]
        print(f"\n{mode}: responses/s, and Paragone's over it (median of the turns, lowest and highest)")
        for side, values in by_side.items():
            ratios = [our / value for our, value in zip(ours, values, strict=True)]
            spread = f"{statistics.median(ratios):5.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"  {side:22} {statistics.median(values):8.2f}  {spread}")


if __name__ == "__main__":
    main()
