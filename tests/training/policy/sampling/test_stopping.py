"""Texts that end a response: where, and what judges read of it."""

import pytest

from paragone_training.errors import RecipeError
from paragone_training.policy.model.weights import load_tokenizer
from paragone_training.policy.sampling.stopping import Stops


@pytest.fixture(scope="module")
def tokenizer(policy_folder):
    return load_tokenizer(str(policy_folder))


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_response_is_cut_behind_the_token_that_completes_the_first_of_its_stops(tokenizer):
    stops = Stops(tokenizer, ["\n\n", "kids"])
    response = ids(tokenizer, "water bottles every year teach kids to work.\n\nMore")
    count = stops.cut(response)
    assert "kids" in tokenizer.decode(response[:count])
    assert "kids" not in tokenizer.decode(response[: count - 1])
    assert stops.text(response) == stops.text(response[:count]) == "water bottles every year teach "
    steps = [stops.completed(response[:place]) for place in range(1, len(response) + 1)]
    assert steps.index(True) + 1 == count


def test_without_a_stop_nothing_is_cut_and_special_tokens_are_left_out(tokenizer):
    response = [*ids(tokenizer, "kids work"), tokenizer.eos_token_id]
    assert Stops(tokenizer, ["teams"]).cut(response) is None
    assert Stops(tokenizer, []).text(response) == "kids work"
    assert not Stops(tokenizer, []).completed(response)


def test_a_stop_of_several_tokens_and_of_half_characters_is_found(tokenizer):
    stops = Stops(tokenizer, ["é—"])
    response = ids(tokenizer, "work é— work")
    assert [stops.completed(response[:place]) for place in range(len(response) + 1)].index(True) == stops.cut(response)
    assert stops.text(response) == "work "


@pytest.mark.parametrize("text", ["", "eos"])
def test_what_no_response_contains_is_refused(tokenizer, text):
    with pytest.raises(RecipeError, match=r"sampling\.stop names .* which no response contains as text"):
        Stops(tokenizer, [tokenizer.eos_token if text == "eos" else text])
