"""How long 10,000 judged pairs take to evaluate when every response has been answered before.

    python benchmarks/evaluation.py [--pairs 10000] [--url URL] [--data FOLDER]

Three things are timed, each from reading the file to the report on disk: a run whose answers are in its folder already
(nothing is asked), and, against a service whose cache knows every response, a scalar model and a general preference
model with fresh folders. Without --url a service with the built-in models is started in a process of its own. The
pairs are those of the public corpora in the folder of --data, or of made-up texts without it.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from serving_setup import free_port
from texts import add_data, pair_rows

from paragone import Client, ParagoneError
from paragone_evaluation.evaluation import evaluate_models
from paragone_evaluation.readers import read_evaluation_set
from paragone_evaluation.results import MeasureSettings
from paragone_evaluation.scorers import ServiceScorer

MODELS = ("mini-bradley-terry", "mini-general-preference")


def make_file(path: Path, pairs: int, data: Path | None) -> None:
    """Write the pairs: the corpora's, repeated with other ids if there are not enough, or made-up ones."""
    if data:
        rows = pair_rows(data)
    else:
        draw = random.Random(0)  # noqa: S311 (made-up texts, not secrets)
        words = ["water", "bottle", "school", "sport", "economy", "reason", "child", "team", "people", "learn", "fair"]
        texts = [[" ".join(draw.choices(words, k=draw.randint(5, 120))) for _ in range(35)] for _ in range(32)]
        rows = []
        for number in range(pairs):
            prompt = number % 32
            first, second = draw.sample(texts[prompt], 2)
            row = {"prompt": f"Topic {prompt}?", "group": f"q{prompt // 2}_{prompt % 2}", "first": first}
            rows.append({**row, "second": second, "strength": draw.choice([-3, -2, -1, 1, 2, 3])})
    with path.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            file.write(json.dumps({**rows[number % len(rows)], "id": str(number)}) + "\n")


@contextlib.contextmanager
def service(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    port = free_port()
    command = [str(Path(sys.executable).with_name("paragone")), "serve"]
    command += [word for name in MODELS for word in ("--model", f"builtin:{name}")]
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        with Client(address, retries=0) as client:
            for _ in range(600):
                with contextlib.suppress(ParagoneError):
                    client.prefer("Ready?", "yes", "no")
                    break
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--url")
    add_data(parser, otherwise="made-up texts without it")
    options = parser.parse_args()
    print(f"{options.pairs} pairs, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name, service(options.url) as url, Client(url) as client:
        folder = Path(name)
        make_file(folder / "pairs.jsonl", options.pairs, options.data)
        for model in MODELS:
            for run in ("nothing cached", "service cache warm", "answers in the folder"):
                answers = "service cache warm" if run.startswith("answers") else run
                start = time.perf_counter()
                data = read_evaluation_set(folder / "pairs.jsonl")
                read = time.perf_counter() - start
                scorer = ServiceScorer(client, url=url, model=model)
                target = folder / model / answers
                evaluate_models(data, scorer, target, MeasureSettings())
                total = time.perf_counter() - start
                print(f"{model:<26} {run:<22} {total:6.2f} s, of which reading the file {read:.2f} s")


if __name__ == "__main__":
    main()
