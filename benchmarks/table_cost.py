"""What a table of K responses costs a model that reads pairs, and the student that was taught by it.

A table is K(K − 1) sequences of a prompt and two responses in the one, K sequences of a prompt and one response in the
other; both run packed, as a server runs them. Time is that of the processor, of this process: what else runs on the
machine hardly counts. Responses are those of data/everyday_groups.jsonl, of several questions where K asks for it.

    python benchmarks/table_cost.py --teacher runs/letters --student runs/student --responses 4 8 16
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from paragone_models import load_model
from paragone_models.model import PreferenceModel
from paragone_models.text.pairs import PairText
from paragone_models.text.reader import Readable, Reading, conversation

_DATA = Path(__file__).parents[1] / "data" / "everyday_groups.jsonl"


def main() -> None:
    """Print a line of the table for each number of responses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", required=True, help="a pairwise model")
    parser.add_argument("--student", required=True, help="a model that represents single responses")
    parser.add_argument("--responses", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--times", type=int, default=3, help="tables of each size; the fastest counts")
    arguments = parser.parse_args()
    teacher = load_model(arguments.teacher, kind="pairwise", device="cpu", dtype="float32")
    student = load_model(arguments.student, device="cpu", dtype="float32")
    print("| responses | teacher: sequences | tokens | CPU s | student: sequences | tokens | CPU s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for count in arguments.responses:
        prompt, responses = _group(count)
        asked = [_measured(teacher, _pairs(prompt, responses), arguments.times)]
        asked.append(_measured(student, [conversation(prompt, one) for one in responses], arguments.times))
        cells = " | ".join(f"{sequences} | {tokens:,} | {seconds:.3f}" for sequences, tokens, seconds in asked)
        print(f"| {count} | {cells} | {asked[0][2] / asked[1][2]:.0f} |", flush=True)


def _group(count: int) -> tuple[str, list[str]]:
    rows = [json.loads(line) for line in _DATA.read_text(encoding="utf-8").splitlines()]
    texts = itertools.chain.from_iterable(row["responses"] for row in rows)
    return rows[0]["prompt"], list(itertools.islice(texts, count))


def _pairs(prompt: str, responses: Sequence[str]) -> list[Readable]:
    def said(role: str, content: str) -> tuple[dict[str, str]]:
        return ({"role": role, "content": content},)

    ways = itertools.permutations(responses, 2)
    return [PairText(said("user", prompt), *(said("assistant", one) for one in way)) for way in ways]


def _measured(model: PreferenceModel, asked: Sequence[Readable], times: int) -> tuple[int, int, float]:
    """Return the sequences, their tokens, and the least processor time that reading and running them took."""
    assert model.reader is not None
    readings: list[Reading] = []

    def run() -> None:
        readings[:] = [one for one in model.reader.read(asked) if isinstance(one, Reading)]  # type: ignore[union-attr]
        model.represent(model.encode([one.item for one in readings]))

    seconds = min(_seconds(run) for _ in range(times + 1))  # the first one warms up
    assert len(readings) == len(asked), "a text does not fit the model: raise its max_length"
    return len(readings), sum(len(one.token_ids) for one in readings), seconds


def _seconds(run: Callable[[], None]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
