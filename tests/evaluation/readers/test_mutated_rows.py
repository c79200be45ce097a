"""Whatever a file holds, its reader refuses it in words: rows of every shape with something wrong in them."""

import contextlib
import copy
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers import ReadOptions, read_evaluation_set, read_pairs, read_prompts, read_ratings
from tests.evaluation.readers import shapes

CASES = int(os.environ.get("PARAGONE_FUZZ_CASES", "300"))
EVERY = [shape for group in (shapes.PUBLISHED, shapes.LIKED) for many in group.values() for shape in many]
EVERY += [*shapes.COMPARED.values(), *shapes.RATED.values()]


def rows_of(shape):
    made = shape(shapes.cases()[0])
    row = made[0] if isinstance(made, tuple) else made
    return row if isinstance(row, list) else [row]


ROWS = [row for shape in EVERY for row in rows_of(shape)]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-200, 200), st.floats(), st.text(max_size=5),
    st.sampled_from(["", " ", "\ud800", "[", "[]", '[{"role": "user"}]',
                     '[{"role": "x", "content": 1}]', "\n\nHuman: a",
                     "<extra_id_1>User\n", "A>B", "tie", 10**400, [], {}, [None], [[]], [{}], {"role": "assistant"},
                     {"role": ["user"], "content": []}, [{"from": "gpt", "value": None}],
                     {"from": "function_call", "value": "{"}]),
    st.sampled_from([value for row in ROWS for value in row.values()]),
)  # fmt: skip
NAMES = st.sampled_from(sorted({name for row in ROWS for name in row}))


@st.composite
def mutated(draw):
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 3))):
        # Somewhere inside a value as often as in place of one.
        place, key = row, draw(st.sampled_from(sorted(row)) if row else NAMES)
        while draw(st.booleans()) and isinstance(
            place.get(key) if isinstance(place, dict) else place[key], dict | list
        ):
            inner = place[key]
            if not inner:
                break
            place, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        action = draw(st.sampled_from(["set", "add", "drop"]))
        if action == "drop" and isinstance(place, dict):
            place.pop(key, None)
        elif action == "add":
            row[draw(NAMES)] = copy.deepcopy(draw(VALUES))
        else:
            place[key] = copy.deepcopy(draw(VALUES))
    return row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(mutated(), min_size=1, max_size=3))
def test_no_mutated_row_ends_in_another_error(folder, rows):
    path = folder / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reads = (
        lambda: read_evaluation_set(path, options=ReadOptions(bad_rows="leave-out")),
        lambda: read_pairs(path),
        lambda: read_ratings(path),
        lambda: read_prompts([path], split="train"),
    )
    for read in reads:
        with contextlib.suppress(DataError):  # the file is refused in words, for what is in it
            read()
