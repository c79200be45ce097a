"""Recorded bodies with anything in place of their parts: each is answered or refused, and none is our own failure."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import PROMPT, RESPONSES, rendered

pytestmark = pytest.mark.anyio

TEXT = rendered(PROMPT, RESPONSES[1])
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSES[1]}]
TENSOR = {"name": "sentences", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT], "parameters": {}}
LENGTHS = {"name": "sequence_lengths", "shape": [1, 1], "datatype": "INT64", "data": [2]}
BODIES = {
    "/get_reward": {"query": [TEXT], "prompts": [PROMPT], "labels": [""]},
    "/rm": {"prompt": PROMPT, "response": RESPONSES[1], "label": ""},
    "/classify": {"model": "dummy", "input": [TEXT], "use_activation": False, "truncate_prompt_tokens": 9},
    "/score": {"model": "dummy", "queries": PROMPT, "documents": RESPONSES},
    "/v1/chat/completions": {"model": "dummy", "messages": CHAT, "stream": False, "tools": []},
    "/v1/rerank": {"model": "dummy", "query": PROMPT, "documents": RESPONSES, "top_n": 1, "return_documents": True},
    "/v2/rerank": {"model": "dummy", "query": PROMPT, "documents": [{"text": "a"}], "top_n": 1},
    "/v1/ranking": {"query": {"text": PROMPT}, "passages": [{"text": "a"}], "truncate": "END"},
    "/": {"inputs": [TEXT], "parameters": {"function_to_apply": "none"}},
    "/predict": {"inputs": [[PROMPT, "a"]], "raw_scores": True, "truncate": True},
    "/rerank": {"query": PROMPT, "texts": RESPONSES, "raw_scores": True, "return_text": True},
    "/v2/models/dummy/infer": {
        "inputs": [TENSOR, LENGTHS], "outputs": [{"name": "rewards", "parameters": {"binary_data": False}}]
    },
}  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "role", "a"]), inner),
    max_leaves=4,
)


def places(value, at=()):
    """Yield the way to every part of a body."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield (*at, key)
        yield from places(inner, (*at, key))


@st.composite
def asked(draw):
    path = draw(st.sampled_from(list(BODIES)))
    body = copy.deepcopy(BODIES[path])
    *way, last = draw(st.sampled_from(list(places(body))))
    part = body
    for key in way:
        part = part[key]
    part[last] = draw(ANYTHING)
    return path, body


# Of examples of one seed: CI sees what was seen here.
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(asked(), min_size=4, max_size=4))
async def test_whatever_a_body_holds_it_is_answered_or_refused(ask_mini, requests):
    for path, body in requests:
        answer = await ask_mini.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, body)
