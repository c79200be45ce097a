"""A template that loops, fills memory or recurses for some text: one clear error, by every way in, and others go on."""

import asyncio

import pytest

from paragone_evaluation.readers import Pair
from paragone_models import load_model
from paragone_models.errors import TextError
from paragone_models.text.reader import conversation
from paragone_training.data import PromptGroup, read_groups
from paragone_training.errors import DataError
from tests.service.conftest import TEMPLATE, serving, until

pytestmark = pytest.mark.anyio

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BODIES = {
    "loops": ENDLESS,
    "fills memory": "{{ 'x' * 900000000000 }}",
    "recurses": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
}
LIMIT_S = 0.25
"""Of a conversation, so that tests are quick."""
# Some hundredths of a second.
SLOW = "{% for a in range(1000) %}{% for b in range(1500) %}{% endfor %}{% endfor %}"
FINE = {"prompt": "Why?", "response": "So."}
REASONS = {
    "loops": f"more than {LIMIT_S} s for one conversation",
    "fills memory": "too much memory",
    "recurses": "too much depth",
}


@pytest.fixture(scope="module")
def evil(folders, tmp_path_factory):
    """A model whose template misbehaves for the words of ``BODIES``, and takes its time for ``slow``."""
    path = tmp_path_factory.mktemp("evil") / "evil.jinja"
    asked = "".join(
        f"{{% if '{word}' in message.content %}}{body}{{% endif %}}" for word, body in {**BODIES, "slow": SLOW}.items()
    )
    path.write_text(TEMPLATE.replace("{{ message['content'] }}", asked + "{{ message['content'] }}"))
    model = load_model(folders["bt"], name="bt", device="cpu", chat_template=str(path))
    process = model.reader.template._process
    process._settings["processor_s"] = process._processor_s = LIMIT_S
    process._child = None  # it was started with the usual limit
    return model


@pytest.mark.parametrize("word", BODIES)
@pytest.mark.parametrize(
    ("route", "name", "item"),
    [
        ("rewards", "items", {"prompt": "Why?", "response": "It WORD."}),
        ("tokens", "items", {"prompt": "It WORD.", "response": "So."}),
    ],
)
async def test_a_request_is_refused_and_the_next_one_answered(evil, word, route, name, item):
    bad = {key: text.replace("WORD", word) for key, text in item.items()}
    async with serving({"bt": evil}) as client:
        response = await client.post(f"/v1/{route}", json={name: [FINE, bad]})
        assert response.status_code == 422, response.text
        error = response.json()["error"]
        assert (error["code"], error["item"]) == ("unsupported_content", 1)
        assert (
            f"chat template was stopped: it {'needs' if 'too' in REASONS[word] else 'took'} {REASONS[word]}"
            in (error["message"])
        )
        response = await client.post(f"/v1/{route}", json={name: [FINE, bad], "on_error": "report"})
        assert ["error" in row for row in response.json()[route]] == [False, True]
        assert (await client.post(f"/v1/{route}", json={name: [FINE]})).status_code == 200


@pytest.mark.parametrize("word", BODIES)
def test_offline_scores_and_training_say_it_too(evil, word):
    with pytest.raises(TextError, match=REASONS[word]):
        evil.score("Why?", ["So.", f"It {word}."])
    assert evil.score("Why?", ["So."]).shown == [True]
    pair = Pair("Why?", "So.", f"It {word}.", 1.0, file="rows.jsonl", line=3)
    groups = [PromptGroup(pair, responses) for responses in (["So."], ["So.", f"It {word}."])]
    with pytest.raises(DataError, match=f"rows.jsonl:3 .*{REASONS[word]}"):
        read_groups(groups, evil.reader)
    assert len(read_groups(groups[:1], evil.reader)[0]) == 1


async def test_others_are_read_while_one_request_takes_its_time(evil):
    items = [{"prompt": "Why?", "response": f"slow {number}"} for number in range(8)]
    async with serving({"bt": evil}) as client:
        slow = asyncio.create_task(client.post("/v1/tokens", json={"items": items}))
        await until(lambda: client.app.state.registry.find("bt")._reading._running)
        for _ in range(2):
            assert (await client.post("/v1/rewards", json={"items": [FINE]})).status_code == 200
        assert not slow.done()
        answer = await slow
        assert [row["text"].count(f"slow {number}") for number, row in enumerate(answer.json()["tokens"])] == [1] * 8


async def test_a_deadline_ends_the_reading_of_a_chunk(evil):
    items = [{"prompt": "Why?", "response": f"slow {number}"} for number in range(100)]
    async with serving({"bt": evil}) as client:
        response = await client.post("/v1/rewards", json={"items": items}, headers={"x-deadline-s": "0.3"})
        assert response.status_code == 504
        assert (await client.post("/v1/rewards", json={"items": [FINE]})).status_code == 200
        assert client.app.state.registry.find("bt")._reading._unread.total == 0


def test_an_offline_reading_of_many_names_each_evil_text(evil):
    words = [*BODIES, "so"] * 2
    readings = evil.reader.read([conversation("Why?", f"It {word}.") for word in words if word != "loops"])
    assert [isinstance(one, TextError) for one in readings] == [True, True, False] * 2
