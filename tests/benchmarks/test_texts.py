"""Where benchmarks find their texts, and what they say where there are none."""

import gzip

import pytest
from texts import corpus, pair_rows

ROW = '{"id": "1", "prompt": "Why?", "first": "a", "second": "b", "strength": 1}\n'


def test_without_a_folder_texts_are_those_that_ship():
    assert len(pair_rows(None)) == 192


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_corpora_is_read_plain_and_gzipped(tmp_path, zipped):
    name = "convincing_pairs.jsonl.gz" if zipped else "convincing_pairs.jsonl"
    (tmp_path / name).write_bytes(gzip.compress(ROW.encode()) if zipped else ROW.encode())
    assert pair_rows(tmp_path)[0]["first"] == "a"


def test_what_is_missing_is_said_in_a_line_that_names_the_remedy(tmp_path):
    remedy = r"`python scripts/fetch_corpora\.py FOLDER`"
    with pytest.raises(SystemExit, match=rf"^--data is missing; .*{remedy}"):
        corpus(None, "qa_groups")
    with pytest.raises(SystemExit, match=rf"no folder .*nowhere; .*{remedy}"):
        corpus(tmp_path / "nowhere", "qa_groups")
    with pytest.raises(SystemExit, match=rf"has no qa_groups\.jsonl; {remedy}"):
        corpus(tmp_path, "qa_groups")
