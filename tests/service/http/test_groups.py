"""Groups over HTTP: who of them votes, what is said of the others, and the signals of those who do."""

import json
import typing

import numpy as np
import pytest

from paragone.wire import Signal
from paragone_models.shaping import measure, shaped
from paragone_models.signals import SIGNALS, signal
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

PROMPT = "Close the street to cars?"
SHORT = ["Yes, the air gets cleaner.", "no", "Buses can still stop!", ""]
LONG = "word " * 500
# Thoughts, bold and lists, so that each kind of shaping has something to change.
STYLED = ["<think>Well, well.</think>**Yes**, the air.", "- no\n- never", "Buses can still stop, I think. " * 3]


async def tournaments(client, *groups, **fields):
    content = json.dumps({"groups": list(groups), **fields})  # which escapes what UTF-8 cannot carry
    answer = await client.post("/v1/tournaments", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json()["tournaments"]


async def refusal(client, *groups, **fields):
    answer = await client.post("/v1/tournaments", json={"groups": list(groups), **fields})
    assert answer.status_code != 200
    return answer.status_code, answer.json()["error"]


def group(*responses, **fields):
    return {"prompt": PROMPT, "responses": list(responses), **fields}


async def test_a_response_that_cannot_be_scored_does_not_vote_and_is_named(client):
    whole, partial = await tournaments(
        client,
        group(SHORT[0], SHORT[1], SHORT[2]),
        group(SHORT[0], LONG, SHORT[1], SHORT[2]),
        on_error="report",
        **{"return": ["matrix", "ids"]},
    )
    for name in ("win_rates", "copeland", "nash", "ids"):
        assert partial[name] == [whole[name][0], None, *whole[name][1:]], name
    places = [0, 2, 3]
    assert partial["ranking"] == [places[place] for place in whole["ranking"]]
    winner = whole["condorcet_winner"]
    assert partial["condorcet_winner"] == (None if winner is None else places[winner])
    assert partial["cyclic_triples"] == whole["cyclic_triples"]
    assert partial["matrix"][1] == [None] * 4
    assert [row[1] for row in partial["matrix"]] == [None] * 4
    assert [[partial["matrix"][i][j] for j in places] for i in places] == whole["matrix"]
    (error,) = partial["errors"]
    assert (error["code"], error["item"], error["response"]) == ("response_too_long", 1, 1)
    assert "errors" not in whole
    assert "reference" not in error


async def test_a_reference_that_cannot_be_scored_is_named_and_left_out_of_the_mean(client):
    with_it, without = await tournaments(
        client,
        group(*SHORT[:2], references=[SHORT[2], LONG]),
        group(*SHORT[:2], references=[SHORT[2]]),
        on_error="report",
    )
    assert with_it["win_rates"] == without["win_rates"]
    (error,) = with_it.pop("errors")
    assert (error["item"], error["reference"], error.get("response")) == (0, 1, None)
    assert with_it == without


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (group(SHORT[0], LONG), ("groups[1].responses[1]: ", 1, None)),
        (group(*SHORT[:2], references=[SHORT[2], LONG]), ("groups[1].references[1]: ", None, 1)),
    ],
)
async def test_a_refusal_names_the_response_or_the_reference(client, bad, names):
    status, error = await refusal(client, group(*SHORT[:2]), bad)
    assert (status, error["code"], error["item"]) == (422, "response_too_long", 1)
    assert error["message"].startswith(names[0])
    assert (error.get("response"), error.get("reference")) == names[1:]


async def test_a_bad_reference_of_a_reward_is_named_too(client):
    item = {"prompt": PROMPT, "response": "a", "references": ["b", LONG]}
    answer = await client.post("/v1/rewards", json={"items": [item]})
    error = answer.json()["error"]
    assert error["message"].startswith("items[0].references[1]: ")
    assert (error["item"], error["reference"], error.get("response")) == (0, 1, None)
    answer = await client.post("/v1/rewards", json={"items": [item], "on_error": "report"})
    assert answer.json()["rewards"][0]["error"]["reference"] == 1


async def test_a_group_of_which_nothing_can_be_compared_is_an_error(client):
    rows = await tournaments(
        client,
        group(LONG, LONG + "more"),
        group(*SHORT[:2], references=[LONG]),
        {"prompt": " ", "responses": SHORT},
        group(*SHORT[:2]),
        on_error="report",
    )
    assert [row.get("error", {}).get("code") for row in rows] == [
        "response_too_long",
        "response_too_long",
        "empty_prompt",
        None,
    ]
    assert [row["error"]["item"] for row in rows[:3]] == [0, 1, 2]
    assert not any("response" in row["error"] for row in rows[:3])


async def test_a_fault_of_the_prompt_is_not_its_first_responses(client):
    _, error = await refusal(client, {"prompt": " ", "responses": SHORT})
    assert error["message"].startswith("groups[0]: the prompt is empty")
    assert "response" not in error


async def test_a_response_that_is_left_alone_has_met_nobody(client):
    alone, against, single = await tournaments(
        client,
        group(SHORT[0], LONG),
        group(SHORT[0], LONG, references=[SHORT[1]]),
        group(SHORT[0]),
        on_error="report",
        signal="rank",
    )
    assert (alone["win_rates"], alone["ranking"], alone["signal"]) == ([None, None], [0], [None, None])
    assert against["win_rates"][0] is not None
    assert (single["win_rates"], single["signal"]) == ([0.5], [None])


async def test_the_same_response_twice_is_bad_in_both_places(client):
    (row,) = await tournaments(client, group(LONG, SHORT[0], LONG, SHORT[1]), on_error="report")
    assert [error["response"] for error in row["errors"]] == [0, 2]
    assert [rate is None for rate in row["win_rates"]] == [True, False, True, False]


async def test_a_response_that_is_none_at_all_does_not_vote_either(client):
    whole, partial = await tournaments(
        client,
        group(SHORT[0], SHORT[1], references=[SHORT[2]]),
        group(SHORT[0], None, {"role": "judge"}, SHORT[1], references=["\ud800", SHORT[2]]),
        on_error="report",
    )
    assert partial["win_rates"] == [whole["win_rates"][0], None, None, whole["win_rates"][1]]
    named = [
        (error["code"], error["item"], error.get("response"), error.get("reference")) for error in partial["errors"]
    ]
    assert named == [("invalid_request", 1, 1, None), ("invalid_request", 1, 2, None), ("invalid_request", 1, None, 0)]
    messages = [error["message"] for error in partial["errors"]]
    assert messages[0] == "a response is a text, a message or a list of messages"
    assert messages[1].startswith("role: Input should be")
    assert "lone surrogate" in messages[2]


async def test_what_cannot_be_read_costs_no_forward(client):
    body = {"groups": [group(SHORT[0], 5, SHORT[1], 7)], "on_error": "report"}
    answer = (await client.post("/v1/tournaments", json=body)).json()
    assert answer["usage"]["forward_responses"] == 2
    assert answer["tournaments"][0]["win_rates"][1::2] == [None, None]


async def test_a_group_that_is_wrong_beside_its_responses_is_an_error_as_a_whole(client):
    rows = await tournaments(
        client,
        {"prompt": 5, "responses": ["a", 5]},
        group(5, 7),
        {"prompt": PROMPT, "responses": "a"},
        group("a", "b"),
        on_error="report",
    )
    assert [row.get("error", {}).get("code") for row in rows] == ["invalid_request"] * 3 + [None]
    assert rows[0]["error"]["message"].startswith("prompt: ")
    assert "errors" not in rows[3]


async def test_a_refusal_names_the_response_that_is_none(client):
    _, error = await refusal(client, group("a", "b"), group("a", 5))
    assert error["message"].startswith("groups[1].responses[1]: a response is")
    assert (error["item"], error["response"]) == (1, 1)


async def test_what_was_cut_is_refused_alone_where_nothing_may_be_cut(client):
    # Answered once with the cut, so that the long one comes from the cache.
    long_prompt = "please " * 150
    answers = [{"prompt": long_prompt, "responses": ["a", "b " * 60]}]
    (first,) = await tournaments(client, *answers)
    assert None not in first["win_rates"]
    rows = await tournaments(client, *answers, truncation="error", on_error="report")
    assert [row["error"]["code"] for row in rows] == ["conversation_truncated"]


async def test_every_signal_is_that_of_the_table(hosted):
    references = [SHORT[3]]
    asked = group(*SHORT[:3], references=references)
    async with serving(hosted) as client:
        for name in SIGNALS:
            (row,) = await tournaments(client, asked, model="bt", signal=name, **{"return": ["matrix"]})
            items = [{"prompt": PROMPT, "response": response} for response in SHORT[:3]]
            rewards = (await client.post("/v1/rewards", json={"model": "bt", "items": items})).json()["rewards"]
            expected = signal(
                name,
                row["matrix"],
                against=np.array(row["win_rates"])[:, None],  # of one reference they are the probabilities
                rewards=[one["reward"] for one in rewards],
            )
            np.testing.assert_allclose(row["signal"], expected, atol=1e-12, err_msg=name)
        (plain,) = await tournaments(client, asked, model="bt")
        assert "signal" not in plain


def test_the_names_of_the_wire_are_those_that_are_computed():
    assert typing.get_args(Signal) == SIGNALS


async def test_a_response_that_does_not_vote_has_no_signal(client):
    whole, partial = await tournaments(
        client, group(*SHORT[:3]), group(SHORT[0], LONG, *SHORT[1:3]), on_error="report", signal="acyclic"
    )
    assert partial["signal"] == [whole["signal"][0], None, *whole["signal"][1:]]


async def test_shaping_is_that_of_the_texts_of_those_who_vote(client):
    settings = {
        "reasoning_bonus": 0.1,
        "answer_bonus": 0.2,
        "top_percentile": 0.5,
        "reasoning_length_penalty": 0.3,
        "answer_length_penalty": 0.4,
        "style_penalty": 0.5,
    }
    message = [{"role": "assistant", "content": f"hm</think>{STYLED[2]}"}]
    asked = group(STYLED[0], LONG, STYLED[1], message)
    (plain,) = await tournaments(client, asked, signal="win_rate", on_error="report")
    (row,) = await tournaments(client, asked, signal="win_rate", shaping=settings, on_error="report")
    texts = [[{"role": "assistant", "content": text}] for text in STYLED[:2]]
    measures = [*map(measure, texts), measure(message)]
    values = [value for value in plain["signal"] if value is not None]
    np.testing.assert_allclose([row["signal"][place] for place in (0, 2, 3)], shaped(values, measures, **settings))
    assert row["signal"][1] is None
    assert row["win_rates"] == plain["win_rates"]


@pytest.mark.parametrize(
    ("asked", "fields", "code", "message"),
    [
        (group("a", "b"), {"signal": "anchor"}, "invalid_request", "groups[0]: the signal anchor is a win rate"),
        (group(*"abcdefghijklmnopq"), {"signal": "acyclic"}, "invalid_request", "groups[0]: 17 responses in one group"),
        (group("a", "b"), {"signal": "reward"}, "return_unavailable", "model gpm is of kind general-preference"),
        (group("a", "b"), {"signal": "best"}, "invalid_request", "signal: Input should be 'win_rate', 'rank'"),
        (group("a", "b"), {"shaping": {}}, "invalid_request", "shaping changes the signal: name the signal too"),
        (group("a", "b"), {"signal": "rank", "shaping": {"bonus": 1}}, "invalid_request", "shaping.bonus: unknown"),
        (group("a", "b"), {"signal": "rank", "shaping": {"answer_bonus": 1e9}}, "invalid_request", "shaping.answer_"),
    ],
)  # fmt: skip
async def test_a_signal_that_cannot_be_had_is_refused_before_anything_is_run(client, asked, fields, code, message):
    status, error = await refusal(client, asked, **fields)
    assert (status, error["code"]) == (422, code)
    assert error["message"].startswith(message)


async def test_a_group_that_cannot_have_the_signal_is_reported_and_the_others_have_it(client):
    rows = await tournaments(
        client, group("a", "b"), group("a", "b", references=["c"]), signal="anchor", on_error="report"
    )
    assert rows[0]["error"]["item"] == 0
    assert rows[1]["signal"] == rows[1]["win_rates"]
