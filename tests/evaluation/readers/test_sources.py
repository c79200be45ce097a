"""What people name and what holds their rows: encodings, packings, shards, folders, globs, the Hub, and maps."""

import bz2
import gzip
import json
import lzma
import re
import shutil

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers import (
    ReadOptions,
    RowAccount,
    parse_map,
    read_evaluation_set,
    read_pairs,
    read_prompts,
    read_ratings,
)
from tests.training.arguments import row, write

ROWS = [
    {"id": f"r{at}", "prompt": f"Wie geht “{at}”?\u2028", "first": "gut ✓", "second": "naja", "strength": at % 3 + 1}
    for at in range(7)
]
IDS = [one["id"] for one in ROWS]
LINES = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in ROWS)
PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False)
LEAVE_OUT = ReadOptions(bad_rows="leave-out")


def ids(*sources, **options):
    return [pair.id for pair in read_pairs(*sources, **options)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("text", [LINES, LINES.replace("\n", "\r\n"), PRETTY])
def test_text_is_read_in_every_encoding_that_windows_writes(tmp_path, encoding, text):
    path = tmp_path / "f.json"
    path.write_bytes(text.encode(encoding))
    assert ids(path) == IDS
    assert read_pairs(path)[0].prompt == ROWS[0]["prompt"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("zst", zstandard.compress), ("bz2", bz2.compress), ("xz", lzma.compress)],
)
def test_text_is_read_from_every_packing(tmp_path, suffix, pack):
    path = tmp_path / f"f.jsonl.{suffix}"
    path.write_bytes(pack(LINES.encode()))
    assert ids(path) == IDS


@pytest.mark.parametrize(
    "text",
    [
        PRETTY,
        json.dumps(ROWS),
        "\n".join(json.dumps(one, indent=1) for one in ROWS),  # objects over several lines, as jq writes them
        json.dumps({"data": ROWS}, indent=1),
        json.dumps({"train": ROWS[:3], "test": ROWS[3:]}, indent=1),
        json.dumps({"train": ROWS[:3], "test": ROWS[3:]}),
        json.dumps({"data": ROWS}) + "\n",
        # Three of pandas' orients: columns as lists, columns by the numbers of rows, rows by their numbers.
        json.dumps({name: [one[name] for one in ROWS] for name in ROWS[0]}),
        json.dumps({name: {str(at): one[name] for at, one in enumerate(ROWS)} for name in ROWS[0]}),
        json.dumps({str(at): one for at, one in enumerate(ROWS)}),
    ],
)
def test_json_is_read_however_it_is_spread_over_lines(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_text(text)
    assert ids(path) == IDS
    if '"test"' in text:
        assert [pair.split for pair in read_pairs(path)] == ["train"] * 3 + ["test"] * 4


def test_one_line_of_lists_of_messages_is_one_row(tmp_path):
    path = tmp_path / "f.jsonl"
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    path.write_text(json.dumps({"chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": "Hm."}]}))
    (pair,) = read_pairs(path)
    assert (pair.prompt, pair.first, pair.second) == ("Why?", "So.", "Hm.")
    path.write_text(json.dumps(ROWS[0]))
    assert ids(path) == IDS[:1]


def test_tables_hold_texts_as_bytes_numbers_as_decimals_and_messages_as_maps(tmp_path):
    path, texts = tmp_path / "f.parquet", pyarrow.binary()
    talk = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    said = [[("role", "user"), ("content", "Wie?")], [("role", "user"), ("content", "Wie “geht” das?")]]
    columns = {
        "prompt": pyarrow.array([[one] for one in said], talk),
        "first": pyarrow.array(["gut ✓".encode(), b"x"], texts),
        "second": pyarrow.array([b"naja", b"y"], pyarrow.large_binary()),
        "strength": pyarrow.array([2, -1]).cast(pyarrow.decimal128(21, 2)),
        "picture": pyarrow.array([b"\xff\xd8", None], texts),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    one, two = read_pairs(path)
    assert (one.prompt, one.first, one.second, one.strength) == ("Wie?", "gut ✓", "naja", 2.0)
    assert (two.prompt, two.strength) == ("Wie “geht” das?", -1.0)
    columns["first"] = columns["picture"]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError, match="field 'first' must be text, a message or a list of messages, not bytes"):
        read_pairs(path)


def test_an_array_longer_than_what_is_read_at_once_is_read_whole(tmp_path):
    rows = [{**ROWS[0], "id": str(at), "first": "x" * 300_000 + str(at)} for at in range(12)]
    (tmp_path / "f.json").write_text(json.dumps(rows))
    assert [pair.first for pair in read_pairs(tmp_path / "f.json")] == [one["first"] for one in rows]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (PRETTY + "\n]", r"line 52 has something behind the end of the array: remove it"),
        (PRETTY[:-1], r"not JSON: '\]' is missing: the file ends there|not JSON: ',' is missing: the file ends there"),
        (PRETTY.replace('"r3",', '"r3"'), r"not JSON: Expecting ',' delimiter \(line 25\)"),
        (LINES + "]\n", r"line 8: the line is not JSON: Expecting value at column 1"),
    ],
)
def test_what_is_wrong_in_json_is_named_by_its_line(tmp_path, text, match):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_pairs(path)


@pytest.mark.parametrize(("name", "mark"), [("f.tsv", "\t"), ("f.csv", ";"), ("f.csv", "\t"), ("f.csv", ",")])
def test_tables_of_text_are_parted_by_what_their_header_is_parted_by(tmp_path, name, mark):
    path = tmp_path / name
    path.write_text(mark.join(["prompt", "first", "second", "strength"]) + f"\np{mark}a, b; c{mark}d{mark}-2\n".replace(
        "a, b; c", '"a, b; c"'))  # fmt: skip
    (pair,) = read_pairs(path)
    assert (pair.first, pair.second, pair.strength) == ("a, b; c", "d", -2)
    path.write_text(mark.join(["prompt", "first", "first"]) + "\n")
    with pytest.raises(DataError, match="the header has 'first' twice"):
        read_pairs(path)


def test_arrow_files_are_read_as_datasets_writes_them(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    for split, opened in (("train", pyarrow.ipc.new_stream), ("test", pyarrow.ipc.new_file)):
        (tmp_path / split).mkdir()
        with opened(tmp_path / split / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert [(pair.id, pair.split) for pair in read_pairs(tmp_path)] == [
        (name, split) for split in ("test", "train") for name in IDS
    ]


def shards(folder, **splits):
    folder.mkdir()
    for split, rows in splits.items():
        for at in range(2):
            table = pyarrow.Table.from_pylist(rows[at::2])
            pyarrow.parquet.write_table(table, folder / f"{split}-{at:05d}-of-00002.parquet")
    (folder / "README.md").write_text("A card.")
    return folder


def test_files_are_in_the_order_of_the_numbers_in_their_names(tmp_path):
    for number in (100, 9, 99, 10):
        (tmp_path / f"shard-{number}").mkdir()
        write(tmp_path / f"shard-{number}" / "part.jsonl", [{**ROWS[0], "id": str(number)}])
    wanted = ["9", "10", "99", "100"]
    assert [pair.id for pair in read_pairs(tmp_path)] == wanted
    assert [pair.id for pair in read_pairs(f"{tmp_path}/shard-*/*.jsonl")] == wanted


def test_a_folder_of_shards_has_the_splits_of_its_files_names(tmp_path):
    bare = [{**one, "id": None} for one in ROWS]
    folder = shards(tmp_path / "d", train_prefs=bare[:4], test_prefs=bare[4:6], val=bare[6:7] * 2)
    assert {pair.split for pair in read_pairs(folder)} == {"train_prefs", "test_prefs", "validation"}
    assert [len(read_evaluation_set(folder, split=split).cases) for split in ("test_prefs", "val")] == [2, 2]
    assert len(read_evaluation_set(folder, exclude_split="test_prefs").cases) == 6
    assert [prompt.content for prompt in read_prompts([folder], split="validation")] == [ROWS[6]["prompt"]]
    with pytest.raises(DataError, match="no row has split 'test'; the splits are: test_prefs, train_prefs, validation"):
        read_evaluation_set(folder, split="test")
    with pytest.raises(DataError, match="no prompt whose split is 'dev'; the splits are: test_prefs, train_prefs, val"):
        read_prompts([folder], split="dev")
    # One split in all names that were asked for is no reason to leave its rows out.
    assert len(read_pairs(tmp_path / "d" / "test_prefs-*.parquet")) == 2
    assert {pair.split for pair in read_pairs(str(tmp_path / "d" / "test_prefs-*"))} == {None}


def test_folders_and_file_names_say_the_split_of_rows_that_have_none(tmp_path):
    for name in ("en/train", "en/test"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name / "part.jsonl", [row(id=name)])
    (tmp_path / "my_dev.jsonl").write_text(json.dumps(row(id="d", split="mine")) + "\n")
    read = read_pairs(tmp_path)
    assert [(pair.id, pair.split) for pair in read] == [("en/test", "test"), ("en/train", "train"), ("d", "mine")]
    assert [pair.split for pair in read_pairs(tmp_path / "*" / "*" / "*.jsonl")] == ["test", "train"]
    assert ids(tmp_path / "en") == ["en/test", "en/train"]


def test_the_name_of_one_file_counts_where_a_split_is_asked_for(tmp_path):
    path = write(tmp_path / "test.jsonl", [row()])
    assert len(read_evaluation_set(path).cases) == len(read_evaluation_set(path, split="test").cases) == 1
    with pytest.raises(DataError, match="no row has split 'train'; the splits are: test"):
        read_evaluation_set(path, split="train")
    assert read_pairs(path)[0].split is None
    with pytest.raises(DataError, match="field 'split' is missing, and --split test asks for it"):
        read_evaluation_set(write(tmp_path / "f.jsonl", [row()]), split="test")


def test_several_files_are_one_set_and_complaints_name_the_file(tmp_path):
    one, two = write(tmp_path / "a.jsonl", [row()]), write(tmp_path / "b.jsonl", [row(strength=9), row(second="a")])
    with pytest.raises(DataError, match=r"2 files, .*a\.jsonl the first: 1 row of 3 .*\n  line b\.jsonl:1: field"):
        read_evaluation_set(one, two)
    made = read_evaluation_set(one, two, options=LEAVE_OUT)
    assert [(left.count, left.lines) for left in made.left_out] == [(1, ("b.jsonl:1",)), (1, ("b.jsonl:2",))]
    rated = write(tmp_path / "c.jsonl", [{"prompt": "p", "response": "a", "ratings": {"x": 1}}])
    with pytest.raises(DataError, match="has the layout ratings and the files before it pairs: evaluate them apart"):
        read_evaluation_set(one, rated)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("none-*.jsonl", "no file matches it"),
        ("empty", "a folder without a file that is read"),
        ("f.xlsx", "its name must end in one of .jsonl"),
        ("none.jsonl", "No such file or directory"),
    ],
)
def test_a_source_without_files_is_refused(tmp_path, name, match):
    (tmp_path / "empty").mkdir()
    for door in (read_pairs, read_evaluation_set, read_ratings, lambda path: read_prompts([path], split="train")):
        with pytest.raises(DataError, match=f"cannot read .*{match}"):
            door(tmp_path / name)


def test_bad_rows_are_left_out_and_counted_by_reason_with_their_lines(tmp_path, caplog):
    caplog.set_level("INFO", "paragone_evaluation.readers")
    rows = [row(), row(id="2", strength=9), {"prompt": "p"}, row(id="4", strength=9), row(id="5")]
    path, account = write(tmp_path / "f.jsonl", rows), RowAccount()
    path.write_text(path.read_text() + "{\n")
    assert ids(path, options=LEAVE_OUT, account=account) == ["1", "5"]
    assert [(left.count, left.lines) for left in account.left_out()] == [(2, (2, 4)), (1, (3,)), (1, (6,))]
    assert "2 rows left out: field 'strength' is 9; it must lie in -3 … 3 (lines 2, 4)" in caplog.text
    with pytest.raises(DataError, match="has no rows to learn from: 1 were read; 1 left out: field 'strength' is 9"):
        read_pairs(write(path, [row(strength=9)]), options=LEAVE_OUT)
    with pytest.raises(DataError, match="bad_rows is 'skip'; it must be one of refuse, leave-out"):
        ReadOptions(bad_rows="skip")


def test_prompts_that_are_left_out_are_counted_too(tmp_path):
    rows, account = [{"prompt": "p"}, {"prompt": ""}, {"text": "q"}], RowAccount()
    path = write(tmp_path / "f.jsonl", rows)
    (prompt,) = read_prompts([path], split="train", options=LEAVE_OUT, account=account)
    assert prompt.content == "p"
    assert [left.lines for left in account.left_out()] == [(2,), (3,)]


def test_a_report_of_many_reasons_names_twenty(tmp_path):
    account = RowAccount()
    read_pairs(
        write(tmp_path / "f.jsonl", [row(id="x" * 9), *[row(id=str(at), strength=at) for at in range(4, 40)]]),
        options=LEAVE_OUT,
        account=account,
    )
    left = account.left_out()
    assert (len(left), left[-1].reason, left[-1].count) == (21, "other reasons", 16)


MAPPED = {
    "question": "p",
    "a": "one",
    "b": "two",
    "winner": "b",
    "meta": {"part": "x", "texts": ["u", "v"]},
    "split": "test",
    "grade": "2",
}


def mapped(tmp_path, words, **fields):
    path = write(tmp_path / "f.jsonl", [MAPPED | fields])
    return path, ReadOptions(map=parse_map(words))


@pytest.mark.parametrize(
    ("words", "fields", "expected"),
    [
        (["prompt=question,first=a,second=b,label=winner"], {}, ("one", "two", -1)),
        (["prompt=question,first=a,second=b,label=winner"], {"winner": "tie"}, ("one", "two", 0)),
        (["prompt=question,first=a,second=b,label=winner"], {"winner": "model_a"}, ("one", "two", 1)),
        (["prompt=question", "first=a,second=b,label=winner,label.first=0,label.second=1|2"], {"winner": 2.0},
         ("one", "two", -1)),
        (["prompt=question,first=meta.texts.0,second=meta.texts.1,strength=grade"], {}, ("u", "v", 2)),
        (["prompt=question,chosen=b,rejected=a,group=meta.part"], {}, ("two", "one", 1)),
    ],
)  # fmt: skip
def test_a_map_makes_pairs_of_any_columns(tmp_path, words, fields, expected):
    path, options = mapped(tmp_path, words, **fields)
    (pair,) = read_pairs(path, options=options)
    assert (pair.first, pair.second, pair.strength) == expected
    assert (pair.prompt, pair.split) == ("p", "test")
    assert read_evaluation_set(path, options=options, split="test").prompts[0][0] == "p" if expected[2] else True


def test_a_map_makes_ratings_and_prompts(tmp_path):
    path, options = mapped(tmp_path, ["prompt=question,response=a,ratings.help=grade"])
    assert read_ratings(path, options=options)[0].ratings == {"help": 2.0}
    path, options = mapped(tmp_path, ["prompt=question"])
    assert [prompt.content for prompt in read_prompts([path], split="test", options=options)] == ["p"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["prompt"], "--map has 'prompt'; write FIELD=COLUMN"),
        (["prompt=a,prompt=b"], "--map names 'prompt' twice"),
        (["promt=a"], "map has the field 'promt'; known are prompt, "),
        (["prompt=question,first=a"], "map has 'first' and not 'second'"),
        (["prompt=question,first=a,second=b"], "name the column of either label or strength"),
        (["prompt=question,response=a"], r"map needs response together with ratings\.NAME"),
        (["prompt=q,first=a,second=b,label=winner"], "column 'q' is missing; the row has a, b, "),
        (["prompt=question,first=a,second=b,label=grade"], "the label in column 'grade' is '2'; say what it means"),
    ],
)
def test_a_map_that_makes_no_row_is_refused(tmp_path, words, match):
    path = write(tmp_path / "f.jsonl", [MAPPED])
    with pytest.raises(DataError, match=match):
        read_pairs(path, options=ReadOptions(map=parse_map(words)))


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c/d e", "hf:a b"])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with pytest.raises(DataError, match=re.escape("write hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]")):
        read_pairs(name)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory):
    """A cache of `datasets` that holds one data set of the Hub, as a download leaves it."""
    import datasets

    root = tmp_path_factory.mktemp("hub")
    files = {split: str(write(root / f"{split}.jsonl", ROWS[at::2])) for at, split in enumerate(("train", "val"))}
    made = datasets.load_dataset("json", data_files=files, cache_dir=str(root / "made"))
    source = next((root / "made").glob("json/*/*/*/dataset_info.json")).parent
    target = root / "cache" / "some___pairs" / "default" / "0.0.0" / COMMIT
    shutil.copytree(source, target)
    for path in target.glob("json-*"):
        path.rename(path.with_name(path.name.replace("json-", "pairs-")))
    info = json.loads((target / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "pairs"}
    (target / "dataset_info.json").write_text(json.dumps(info))
    assert {split: len(table) for split, table in made.items()} == {"train": 4, "val": 3}
    return root / "cache"


@pytest.fixture
def offline(monkeypatch, hub_cache):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(hub_cache))


@pytest.mark.usefixtures("offline")
def test_a_data_set_of_the_hub_has_splits_and_is_pinned_to_its_commit():
    read = read_pairs("hf:some/pairs")
    assert [(pair.id, pair.split) for pair in read] == [
        *((one["id"], "train") for one in ROWS[::2]),
        *((one["id"], "validation") for one in ROWS[1::2]),
    ]
    assert read[0].where == f"hf:some/pairs@{COMMIT}/train:1"
    made = read_evaluation_set("hf:some/pairs", split="validation")
    assert len(made.cases) == 3
    assert made.notes[0] == f"Data: hf:some/pairs at commit {COMMIT}, splits train, val."
    assert [pair.split for pair in read_pairs(f"hf:some/pairs@{COMMIT[:8]}:default/val")] == [None] * 3
    with pytest.raises(DataError, match="there is no split 'test'; the splits are: train, val"):
        read_pairs("hf:some/pairs/test")
    with pytest.raises(DataError, match=f"the cache here holds commit {COMMIT} alone"):
        read_pairs("hf:some/pairs@abcdef0")


@pytest.mark.usefixtures("offline")
def test_without_a_network_a_data_set_that_is_not_here_is_refused_in_one_sentence():
    with pytest.raises(DataError, match=r"^cannot read hf:nvidia/HelpSteer2: the Hugging Face Hub cannot be reached"):
        read_pairs("hf:nvidia/HelpSteer2")
