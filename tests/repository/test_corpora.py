"""The public corpora's conversion, on small files of ours in the publishers' formats."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from tests.corpora import corpus, corpus_rows, needs_corpora, script

fetch = script("fetch_corpora")
SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_corpora.py"
TEXTS = {"arg1": "Taps do it, too.", "arg2": "They last.\nAnd they float & roll.", "7": '"One" word'}


def pair(one, two, votes, gold=None, title="Ban Bottles", stance="No"):
    """Return a pair as the publisher's XML has it."""
    sides = "".join(
        f"<arg{number}><author>a</author><stance>{stance}</stance>"
        f"<text>{escape(TEXTS[name])} </text><id>{name}</id></arg{number}>"
        for number, name in ((1, one), (2, two))
    )
    assignments = "".join(
        f"<mTurkAssignment><turkID>t</turkID><value>{value}</value><reason>vote {number}</reason></mTurkAssignment>"
        for number, value in enumerate(votes)
    )
    label = f"<goldLabel>{gold}</goldLabel>" if gold else ""
    return (
        f"<annotatedArgumentPair><id>{one}_{two}</id>{sides}<debateMetaData><title>{title}</title></debateMetaData>"
        f"<mTurkAssignments>{assignments}</mTurkAssignments>{label}</annotatedArgumentPair>"
    )


def archive(debates, ranks):
    """Return a zip as GitHub gives it: one folder with the repository in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("acl2016-abc/data/UKPConvArg1-Ranking-CSV/", "")
        for name, pairs in debates.items():
            text = f'<?xml version="1.0"?>\n<list>{"".join(pairs)}</list>'
            members.writestr(f"acl2016-abc/data/UKPConvArg1-full-XML/{name}.xml", text)
        lines = "".join(
            f"{name}\t{rank}\t{TEXTS[name]}\n".replace("They last.\n", "They last. <br/> ") for name, rank in ranks
        )
        members.writestr("acl2016-abc/data/UKPConvArg1-Ranking-CSV/another-name.csv", "#id\trank\targument\n" + lines)
    return file.getvalue()


DEBATES = {
    "personal-pursuit_the-comnong-good": [pair("arg1", "arg2", ["a2", "a2", "a2", "a2"], "a2", "Pursuit?", "Good")],
    "ban-plastic_no": [
        pair("arg1", "arg2", ["a1", "a2", "equal", "a1", "a1"], "a1"),
        pair("7", "arg1", ["a1", "a2", "a2", "a1", "equal"]),
    ],
    "tv-is-better-than-books_tv": [pair("arg1", "arg2", ["equal"] * 5, "equal")],
}
ZIP = archive(DEBATES, [("arg1", 0.5), ("arg2", 0.01), ("7", 0.2)])


def test_votes_become_strengths_and_other_questions_are_left_out():
    first, second, third = fetch.convincing_pairs(fetch.read_arguments(ZIP))
    assert first == {
        "id": "arg1-arg2",
        "split": "train",
        "group": "ban-plastic_no",
        "prompt": "Ban Bottles\nArgue for: No",
        "first": "Taps do it, too.",
        "second": "They last.\nAnd they float & roll.",
        "votes": {"first": 3, "second": 1, "equal": 1},
        "strength": 1,
        "reason": "vote 0",
    }
    assert (second["first"], second["strength"], second["reason"]) == ('"One" word', 0, None)
    assert (third["split"], third["strength"]) == ("test", -2)
    assert third["group"] == "personal-pursuit_the-common-good"


def test_ranks_and_lengths_become_ratings():
    rows = list(fetch.convincing_ratings(fetch.read_arguments(ZIP)))
    assert [(row["id"], *row["ratings"].values()) for row in rows if row["split"] == "train"] == [
        ("arg1", 0.0, round(4 * 1 / 7, 2)),
        ("7", 2.0, 0.0),
        ("arg2", 4.0, round(4 * 4 / 7, 2)),
    ]


def example(number, **changes):
    answers = {f"prediction {place}": f"answer {place}" for place in (1, 2, 3, 4)}
    return {"question": f"What is {number}?", "passages": [], **answers, "preference": [0, 1, 2, 1, 0, 2], **changes}


def test_preferences_become_comparisons_and_keep_their_places():
    first, second, third = fetch.qa_groups(map(example, range(4)))
    assert [first["id"], second["id"], third["id"]] == ["qa-0", "qa-1", "qa-3"]
    assert first["responses"] == ["answer 1", "answer 2", "answer 3", "answer 4"]
    assert [(one["first"], one["second"], one["label"]) for one in first["comparisons"]] == [
        (0, 1, "tie"),
        (0, 2, "first"),
        (0, 3, "second"),
        (1, 2, "first"),
        (1, 3, "tie"),
        (2, 3, "second"),
    ]
    with pytest.raises(ValueError, match="zip"):
        list(fetch.qa_groups([example(0, preference=[1])]))


def test_files_that_were_downloaded_are_converted_and_said_to_be_others(tmp_path):
    (tmp_path / "a.zip").write_bytes(ZIP)
    (tmp_path / "b.json").write_text(json.dumps([example(number) for number in range(5)]))
    given = ["--arguments", tmp_path / "a.zip", "--answers", tmp_path / "b.json"]
    command = [sys.executable, SCRIPT, tmp_path / "corpora", *given]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.count("NOT what the built-in models learned from") == 4
    prompts = [json.loads(line) for line in (tmp_path / "corpora" / "policy_prompts.jsonl").read_text().splitlines()]
    assert [(row["id"], row["split"]) for row in prompts] == [
        ("qa-0", "test"),
        ("qa-1", "train"),
        ("qa-3", "train"),
        ("qa-4", "test"),
        ("ban-plastic_no", "train"),
    ]


def test_an_archive_of_something_else_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("readme", "")
    with pytest.raises(ValueError, match="0 files of pairs"):
        fetch.read_arguments(file.getvalue())
    broken = fetch.read_arguments(archive({"india_yes": ["<annotatedArgumentPair/>"]}, [("7", 1)]))
    with pytest.raises(ValueError, match="element 'annotatedArgumentPair' has no 'arg1/id'"):
        list(fetch.convincing_pairs(broken))


@needs_corpora
@pytest.mark.parametrize("name", ["convincing_pairs", "convincing_ratings", "qa_groups"])
def test_the_folder_holds_what_the_built_in_models_learned_from(name):
    path = corpus(name)
    if path.suffix == ".gz":
        pytest.skip("gzipped: the check sum is that of the plain file")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == fetch.SHA256[f"{name}.jsonl"]


@needs_corpora
def test_policy_prompts_come_of_the_other_files():
    groups, pairs = corpus_rows("qa_groups"), corpus_rows("convincing_pairs")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fetch.policy_prompts(groups, pairs))
    assert hashlib.sha256(text.encode()).hexdigest() == fetch.SHA256["policy_prompts.jsonl"]
