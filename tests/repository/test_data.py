"""The shipped texts follow their own rules, and the corpora come out of their publishers' files as they went in."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.corpora import script

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"


labels = script("everyday_labels")


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


GROUPS = rows("everyday_groups.jsonl")


def test_the_label_files_are_what_the_rules_make_of_the_source():
    made = labels.label_files((DATA / labels.SOURCE).read_text(encoding="utf-8"))
    assert {path.name for path in DATA.glob("*.jsonl")} == set(made)
    for name, text in made.items():
        assert (DATA / name).read_text(encoding="utf-8") == text, f"run scripts/everyday_labels.py: {name} is old"


def test_the_set_is_small_and_every_text_in_it_is_there_once():
    texts = [text for group in GROUPS for text in (group["prompt"], *group["responses"])]
    assert len(GROUPS) >= 60
    assert all(len(group["responses"]) == 4 for group in GROUPS)
    assert len(set(texts)) == len(texts)
    assert sum(path.stat().st_size for path in DATA.glob("*.jsonl")) < 400_000
    for group in GROUPS:
        for criterion in labels.CRITERIA:
            assert len(group[criterion]) == 4
            assert set(group[criterion]) <= {0, 1, 2, 3, 4}


def test_the_numbers_of_its_page_are_those_of_the_files():
    page = (DATA / "README.md").read_text()
    pairs, ratings = rows("everyday_pairs.jsonl"), rows("everyday_ratings.jsonl")
    train = [
        sum(row["split"] == "train" for row in table) for table in (pairs, ratings, rows("everyday_prompts.jsonl"))
    ]
    ties = sum(row["strength"] == 0 for row in pairs)
    assert f"{len(GROUPS)} prompts with 4 responses" in page
    assert f"{len(pairs)} pairs ({train[0]} `train`), {ties} of them ties" in page
    assert f"{len(ratings)} responses ({train[1]} `train`)" in page
    assert f"{len(GROUPS)} prompts ({train[2]} `train`)" in page
    decided = [
        (group, comparison) for group in GROUPS for comparison in group["comparisons"] if comparison["label"] != "tie"
    ]
    longer = [
        (len(group["responses"][one["first"]]) > len(group["responses"][one["second"]])) == (one["label"] == "first")
        for group, one in decided
    ]
    assert f"{sum(longer) / len(longer):.0%}".replace("%", " %") in page
    by_pairs = [
        (len(row["first"]) > len(row["second"])) == (row["strength"] > 0) for row in pairs if row["strength"] != 0
    ]
    assert f"{sum(by_pairs) / len(by_pairs):.0%}".replace("%", " %") in page


def test_length_is_no_label_and_a_few_triangles_are_cyclic():
    beats = defaultdict(set)
    for group in GROUPS:
        for one in group["comparisons"]:
            if one["label"] != "tie":
                winner, loser = (
                    (one["first"], one["second"]) if one["label"] == "first" else (one["second"], one["first"])
                )
                beats[group["id"], winner].add(loser)
    cycles = sum(
        c in beats[name, b] and a in beats[name, c]
        for (name, a), losers in list(beats.items())
        for b in losers
        for c in range(4)
    )
    assert cycles == 3 * 7  # every cycle is met from each of its corners


def test_a_strength_is_the_vote_of_three_criteria():
    group = {"correct": [4, 2, 4], "practical": [3, 3, 1], "friendly": [0, 1, 0]}
    assert [labels.strength(group, *pair) for pair in ((0, 1), (1, 0), (0, 2), (0, 0))] == [0, 0, 1, 0]
    group["friendly"] = [2, 1, 0]
    assert [labels.strength(group, *pair) for pair in ((0, 1), (0, 2), (1, 2))] == [2, 2, 1]


@pytest.mark.parametrize(("words", "brevity"), [(15, 3.5), (30, 3.0), (60, 2.0), (400, 0.0)])
def test_brevity_falls_with_every_word_and_never_below_zero(words, brevity):
    group = {"responses": ["word " * words], "correct": [4], "practical": [4], "friendly": [1]}
    assert labels.ratings(group, 0) == {"helpfulness": 3.0, "brevity": brevity}
