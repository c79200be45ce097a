"""How long and how much memory reading takes: a million pairs of 1 kB, by each door and by ``paragone data``.

    python benchmarks/data_reading.py [--rows 1000000]

Each door runs in a process of its own, whose peak of resident memory is read when it has ended.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOORS = {
    "read_pairs": "from paragone_evaluation.readers import read_pairs; assert len(read_pairs(PATH)) == ROWS",
    "read_evaluation_set": (
        "from paragone_evaluation.readers import read_evaluation_set; "
        "assert len(read_evaluation_set(PATH).cases) == ROWS"
    ),
    "paragone data": (
        "from importlib.metadata import EntryPoint; from paragone.cli import main; "
        "command = EntryPoint('data', 'paragone_evaluation.data_command:data', 'paragone.commands')\n"
        "try: main(['data', PATH, '--json'], commands=[command])\n"
        "except SystemExit: pass"
    ),
}


def written(path: Path, rows: int) -> Path:
    """Write pairs whose lines have 1,000 bytes, each with a prompt of its own."""
    draw = random.Random(0)  # noqa: S311 - texts to measure with, no secrets
    words = ["water", "people", "because", "time", "would", "answer", "small", "light", "number", "house"]
    with path.open("w", encoding="utf-8") as file:
        for at in range(rows):
            text = " ".join(draw.choices(words, k=160))
            row = {"id": f"row{at}", "prompt": f"{at} {text[:200]}", "first": text[200:520], "second": text[520:800]}
            row["strength"] = draw.choice([-2, -1, 0, 1, 2])
            line = json.dumps(row)
            row["second"] += "x" * (999 - len(line))
            file.write(json.dumps(row) + "\n")
    return path


def measured(code: str, path: Path, rows: int) -> tuple[float, float, float]:
    """Return seconds, those of its CPU and the peak of resident memory, in GB, of a process that runs the code."""
    began = time.perf_counter()
    code = f"PATH, ROWS = {str(path)!r}, {rows}\n{code}\n"
    used = (
        "import resource, sys; used = resource.getrusage(resource.RUSAGE_SELF); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code + used], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    busy, peak = run.stderr.split()[-2:]
    return seconds, float(busy), int(peak) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "pairs.jsonl", rows)
        print(
            f"{rows:,} rows, {path.stat().st_size / 1e9:.3f} GB\n\n| | seconds | of CPU | peak GB |\n|---|---|---|---|"
        )
        for name, code in DOORS.items():
            seconds, busy, memory = measured(code, path, rows)
            print(f"| {name} | {seconds:.1f} | {busy:.1f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
