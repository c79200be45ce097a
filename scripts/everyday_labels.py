"""Makes the label files of the small set in ``data/`` from its one source, ``data/everyday_groups.jsonl``.

    python scripts/everyday_labels.py [FOLDER]

Texts and criteria in the source are written by hand; ``comparisons`` there and the three other files follow from them
by the rules in ``data/README.md``, which are the functions below. Run it after every edit of the source.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "data"
SOURCE = "everyday_groups.jsonl"
CRITERIA = ("correct", "practical", "friendly")
WORDS_A_POINT = 30  # a response loses one of its four points of brevity for each thirty words
NEIGHBOURS = ((0, 1), (1, 2), (2, 3))  # of six pairs, so that every text stands at most twice in the file of pairs

Row = Mapping[str, Any]


def strength(group: Row, first: int, second: int) -> int:
    """Return how many criteria favour the first response, less those that favour the second: -3 to 3.

    It is a vote of three judges with a criterion each. Votes of three can run in a circle, which is where the cycles of
    this set come from.
    """
    votes = [group[criterion][first] - group[criterion][second] for criterion in CRITERIA]
    return sum((vote > 0) - (vote < 0) for vote in votes)


def ratings(group: Row, response: int) -> dict[str, float]:
    """Return helpfulness (the mean of the criteria) and brevity (4 less a point for each 30 words), both 0 to 4."""
    words = len(group["responses"][response].split())
    return {
        "helpfulness": round(sum(group[criterion][response] for criterion in CRITERIA) / len(CRITERIA), 2),
        "brevity": round(max(0.0, 4 - words / WORDS_A_POINT), 2),
    }


def compared(group: Row) -> dict[str, Any]:
    """Return the group with the comparisons of all pairs of its responses."""
    labels = {1: "first", 0: "tie", -1: "second"}
    comparisons = []
    for first, second in itertools.combinations(range(len(group["responses"])), 2):
        votes = strength(group, first, second)
        comparisons.append({"first": first, "second": second, "label": labels[(votes > 0) - (votes < 0)]})
    return {**group, "comparisons": comparisons}


def pairs(groups: Sequence[Row]) -> Iterator[Row]:
    """Yield the pairs of neighbours of every group."""
    for group in groups:
        for first, second in NEIGHBOURS:
            yield {
                "id": f"{group['id']}/{first}-{second}",
                "split": group["split"],
                "prompt": group["prompt"],
                "first": group["responses"][first],
                "second": group["responses"][second],
                "strength": strength(group, first, second),
            }


def rated(groups: Sequence[Row]) -> Iterator[Row]:
    """Yield every response with its ratings."""
    for group in groups:
        for number, response in enumerate(group["responses"]):
            yield {
                "id": f"{group['id']}/{number}",
                "split": group["split"],
                "prompt": group["prompt"],
                "response": response,
                "ratings": ratings(group, number),
            }


def prompts(groups: Sequence[Row]) -> Iterator[Row]:
    """Yield what a policy is to answer."""
    for group in groups:
        yield {name: group[name] for name in ("id", "split", "prompt")}


def label_files(source: str) -> dict[str, str]:
    """Return the text of every file by its name, for the text of the source."""
    groups = [json.loads(line) for line in source.splitlines()]
    files = {
        SOURCE: map(compared, groups),
        "everyday_pairs.jsonl": pairs(groups),
        "everyday_ratings.jsonl": rated(groups),
        "everyday_prompts.jsonl": prompts(groups),
    }
    return {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in files.items()}


def main(folder: Path) -> None:
    """Write the files of a folder anew."""
    for name, text in label_files((folder / SOURCE).read_text(encoding="utf-8")).items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
