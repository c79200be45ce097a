"""Fetches the public corpora that the built-in models learned from and converts them into our own JSON Lines.

    python scripts/fetch_corpora.py FOLDER
    python scripts/fetch_corpora.py FOLDER --arguments ARCHIVE.zip --answers dev_feedback.json    # downloaded before

``data/README.md`` says what the four files hold, who made the corpora, and under which licences they come.

Verified: every step, on small files in the publishers' formats (``tests/repository/test_corpora.py``), and the formats
against the publishers' own descriptions and the beginning of their files. Not verified: the download itself and the
conversion of the whole corpora, since no machine of this project reaches GitHub. The check sums at the end tell whether
the files are those that the built-in models learned from.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
import zipfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import httpx2

ARGUMENTS_URL = "https://codeload.github.com/UKPLab/acl2016-convincing-arguments/zip/HEAD"
ANSWERS_URL = "https://raw.githubusercontent.com/allenai/FineGrainedRLHF/HEAD/tasks/qa_feedback/data/dev_feedback.json"
PAIRS, RANKS = "UKPConvArg1-full-XML", "UKPConvArg1-Ranking-CSV"  # folders in the archive

SHA256 = {
    "convincing_pairs.jsonl": "100ed04d918b1b1e407c1ab403cee85602832f66c3d1e2979527ae75db7e0523",
    "convincing_ratings.jsonl": "c7e9cc442cb152af16980e1fb7464edd4c2e2d6e759c5861bc19cd00246dfdb2",
    "qa_groups.jsonl": "52e5e55ebed56a904f3becb6b1b8bb6ffb34e85af6ad8ce451160145c43b99f1",
    "policy_prompts.jsonl": "5a077c49f36cacf54b65288fb17bd79d6b4450e5d0b9b8c41f23ea8bfa9c51b1",
}
"""What the built-in models learned from."""

# How the names of the questions begin that the built-in models know: thirteen of the corpus's sixteen.
TRAIN = (
    *("ban-plastic", "christianity", "evolution", "firefox", "gay-marriage", "human-growth", "if-your-spouse"),
    *("is-porn", "pro-choice", "should-physical", "william-farquhar"),
)
TEST = ("india", "personal-pursuit")
HARMLESS = ("ban-plastic", "firefox", "should-physical")  # whose prompts a policy may answer

# The 106 of 500 questions that the built-in models never saw. Which rule left them out is not known any more.
# fmt: off
LEFT_OUT = frozenset((
    2, 9, 10, 11, 15, 17, 19, 21, 33, 34, 38, 42, 46, 50, 53, 56, 65, 71, 75, 78, 95, 97, 105, 106, 113, 117, 126,
    128, 141, 146, 152, 157, 158, 160, 161, 163, 168, 169, 172, 176, 177, 180, 186, 190, 191, 194, 196, 202, 205,
    213, 225, 227, 228, 235, 241, 242, 253, 261, 265, 266, 267, 280, 281, 288, 289, 293, 300, 304, 307, 318, 330,
    336, 349, 355, 364, 366, 367, 368, 369, 372, 380, 387, 390, 395, 396, 405, 406, 408, 415, 420, 425, 426, 428,
    429, 432, 433, 451, 454, 459, 469, 471, 475, 478, 493, 496, 497,
))
# fmt: on

Row = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """UKPConvArg1 as it is published.

    Attributes:
        debates: the pairs of one stance of a question, by its name, in the order of the names.
        ranks: of every argument by its id; the smaller, the more convincing.
    """

    debates: Mapping[str, list[ElementTree.Element]]
    ranks: Mapping[str, float]


def read_arguments(archive: bytes) -> Arguments:
    """Return what an archive of the publisher's repository holds.

    Raises:
        ValueError: if it holds no pairs or no ranking.
    """
    debates, ranks = {}, {}
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        for member in sorted(members.namelist()):
            path = PurePosixPath(member)
            if path.parent.name == PAIRS and path.suffix == ".xml":
                # One of the file names is misspelt, and ours never was.
                name = path.stem.replace("comnong", "common")
                debates[name] = list(ElementTree.fromstring(members.read(member)))  # noqa: S314 - the corpus's own files
            elif path.parent.name == RANKS and not member.endswith("/"):
                lines = members.read(member).decode("utf-8").split("\n")
                # Quotation marks are part of the texts. Only ids tell whose ranks these are: some file names differ.
                for row in csv.reader(filter(None, lines[1:]), delimiter="\t", quoting=csv.QUOTE_NONE):
                    ranks[row[0]] = float(row[1])
    if not debates or not ranks:
        raise ValueError(
            f"the archive holds {len(debates)} files of pairs in {PAIRS} and {len(ranks)} ranks in {RANKS}; "
            f"give the zip of {ARGUMENTS_URL}"
        )
    return Arguments(dict(sorted(debates.items())), ranks)


def convincing_pairs(arguments: Arguments) -> Iterator[Row]:
    """Yield the pairs of the questions that the built-in models know."""
    for name, debate in arguments.debates.items():
        split = _split(name)
        for pair in debate if split else ():
            votes = [_text(vote, "value") for vote in pair.iter("mTurkAssignment")]
            counts = {key: votes.count(value) for key, value in (("first", "a1"), ("second", "a2"), ("equal", "equal"))}
            lead = counts["first"] - counts["second"]
            gold = pair.findtext("goldLabel")
            reasons = [
                vote.findtext("reason") for vote in pair.iter("mTurkAssignment") if vote.findtext("value") == gold
            ]
            yield {
                "id": f"{_text(pair, 'arg1/id')}-{_text(pair, 'arg2/id')}",
                "split": split,
                "group": name,
                "prompt": _prompt(pair),
                "first": _text(pair, "arg1/text"),
                "second": _text(pair, "arg2/text"),
                "votes": counts,
                # Five votes lead by 0 to 5; a lead of 1 or 2 is slight, of 3 or 4 clear, of 5 unanimous.
                "strength": (abs(lead) + 1) // 2 * (1 if lead > 0 else -1),
                "reason": reasons[0] if reasons else None,
            }


def convincing_ratings(arguments: Arguments) -> Iterator[Row]:
    """Yield the arguments of those questions with their ratings, the least convincing of each stance first."""
    debates = {name: _texts(debate) for name, debate in arguments.debates.items()}
    # Verbosity is a share of all arguments of the corpus, those of the three other questions too.
    lengths = sorted(len(text.split()) for texts in debates.values() for text in texts.values())
    for name, texts in debates.items():
        split = _split(name)
        ranked = sorted((one for one in texts if one in arguments.ranks), key=lambda one: -arguments.ranks[one])
        for place, one in enumerate(ranked if split else ()):
            yield {
                "id": one,
                "split": split,
                "group": name,
                "prompt": _prompt(arguments.debates[name][0]),
                "response": texts[one],
                "ratings": {
                    "convincingness": round(4 * place / max(1, len(ranked) - 1), 2),
                    "verbosity": round(4 * bisect_left(lengths, len(texts[one].split())) / len(lengths), 2),
                },
            }


def qa_groups(examples: Iterable[Row]) -> Iterator[Row]:
    """Yield questions with four answers and people's comparisons of all six pairs."""
    labels = ("tie", "first", "second")
    places = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    for number, example in enumerate(examples):
        if number not in LEFT_OUT:
            yield {
                "id": f"qa-{number}",
                "prompt": example["question"],
                "responses": [example[f"prediction {one}"] for one in (1, 2, 3, 4)],
                "comparisons": [
                    {"first": first, "second": second, "label": labels[preference]}
                    for (first, second), preference in zip(places, example["preference"], strict=True)
                ],
            }


def policy_prompts(groups: Iterable[Row], pairs: Iterable[Row]) -> Iterator[Row]:
    """Yield what policies answer: every third question for testing, harmless prompts of the pairs for training."""
    for number, group in enumerate(groups):
        yield {"id": group["id"], "prompt": group["prompt"], "split": "train" if number % 3 else "test"}
    for name, prompt in {row["group"]: row["prompt"] for row in pairs}.items():
        if name.startswith(HARMLESS):
            yield {"id": name, "prompt": prompt, "split": "train"}


def convert(archive: bytes, answers: bytes) -> dict[str, str]:
    """Return the text of each of our files by its name."""
    arguments = read_arguments(archive)
    pairs, groups = list(convincing_pairs(arguments)), list(qa_groups(json.loads(answers)))
    files: dict[str, Iterable[Row]] = {
        "convincing_pairs.jsonl": pairs,
        "convincing_ratings.jsonl": convincing_ratings(arguments),
        "qa_groups.jsonl": groups,
        "policy_prompts.jsonl": policy_prompts(groups, pairs),
    }
    return {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in files.items()}


def _split(name: str) -> str | None:
    return "test" if name.startswith(TEST) else "train" if name.startswith(TRAIN) else None


def _prompt(pair: ElementTree.Element) -> str:
    return f"{_text(pair, 'debateMetaData/title')}\nArgue for: {_text(pair, 'arg1/stance')}"


def _texts(debate: Iterable[ElementTree.Element]) -> dict[str, str]:
    sides = (side for pair in debate for side in (pair.find("arg1"), pair.find("arg2")) if side is not None)
    return {_text(side, "id"): _text(side, "text") for side in sides}


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"element {element.tag!r} has no {path!r}: the publisher's format is another than it was")
    return text.strip()


def _download(url: str) -> bytes:
    print(f"fetching {url}")
    try:
        answer = httpx2.get(url, follow_redirects=True, timeout=120)
        answer.raise_for_status()
    except httpx2.HTTPError as error:
        sys.exit(f"cannot fetch {url}: {error}. Download it by hand and give it by --arguments or --answers.")
    return answer.content


def main() -> None:
    """Fetch, convert, write, and say whether the files are those that the built-in models learned from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the four files go")
    parser.add_argument("--arguments", type=Path, help="zip of the repository acl2016-convincing-arguments")
    parser.add_argument("--answers", type=Path, help="dev_feedback.json of FineGrainedRLHF")
    options = parser.parse_args()
    archive = options.arguments.read_bytes() if options.arguments else _download(ARGUMENTS_URL)
    answers = options.answers.read_bytes() if options.answers else _download(ANSWERS_URL)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in convert(archive, answers).items():
        (options.folder / name).write_text(text, encoding="utf-8")
        same = hashlib.sha256(text.encode()).hexdigest() == SHA256[name]
        verdict = "what the built-in models learned from" if same else "NOT what the built-in models learned from"
        print(f"{options.folder / name}: {text.count(chr(10)):,} rows, {verdict}")


if __name__ == "__main__":
    main()
