"""Both servers of the comparison answer, one of them only with its key, and the ratios are of real work."""

import http.client
import json

import pytest
from overhead import Asker, bodies_of, compared, new_keys
from processes import Server, chat_tokenizer, write_model


def test_both_sides_are_measured_in_every_round(tmp_path):
    speeds = compared(tmp_path, memory=True, quotas=True, rounds=2, seconds=0.1, pairs=8)
    assert len(speeds) == 2
    assert all(speed.cpu > 0 and speed.clock > 0 for pair in speeds for speed in pair)


def test_one_key_of_the_file_is_let_in_and_no_other(tmp_path):
    model = write_model(tmp_path / "model", chat_tokenizer(), kind="bradley-terry")
    key = new_keys(tmp_path / "keys")
    assert len((tmp_path / "keys").read_text().splitlines()) == 100
    bodies = bodies_of(4)
    assert [len(json.loads(body)["pairs"]) for body in bodies] == [4] * 4
    with Server("--model", f"m={model}", "--api-key-file", str(tmp_path / "keys")) as server:
        asker = Asker(server, bodies, key)
        asker.ask(0)
        asker.close()
        for wrong in (None, f"{key}x"):
            asker = Asker(server, bodies, wrong)
            with pytest.raises((RuntimeError, http.client.HTTPException), match="key"):
                asker.ask(0)
            asker.close()
