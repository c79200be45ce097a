"""The spec of a model: it survives its file, and refuses what cannot be."""

import json
from dataclasses import replace

import pytest

from paragone_models.errors import ModelLoadError
from paragone_models.kinds import KINDS
from paragone_models.spec import ModelSpec

GOOD = {
    "bradley-terry": {"dimension": 1},
    "regression": {"dimension": 2, "attributes": ("helpful", "verbose"), "weights": (1.0, -0.5)},
    "helpsteer": {"dimension": 3, "attributes": ("helpful", "verbose")},
    "general-preference": {"dimension": 4, "gate": "softmax", "normalise": True, "temperature": 0.1},
    "hybrid": {"dimension": 5, "gate": "softmax"},
    "process": {"dimension": 1, "step_token": 7, "aggregation": "prod"},
    "pairwise": {"dimension": 1, "pair_format": "letters", "symmetrise": "mean-logit"},
}


def test_there_is_a_good_spec_for_every_kind():
    assert set(GOOD) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_survives_its_file(kind):
    spec = ModelSpec(kind=kind, **GOOD[kind], domain="Erörterungen", demonstration=True, max_length=77)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(spec.to_json().encode()) == spec


def test_a_file_needs_no_more_than_kind_and_dimension():
    spec = ModelSpec.from_json('{"format": 1, "kind": "bradley-terry", "dimension": 1}')
    assert spec == ModelSpec(kind="bradley-terry", dimension=1)


def test_blocks_are_counted_where_there_is_a_general_preference_vector():
    assert {kind: ModelSpec(kind=kind, **GOOD[kind]).blocks for kind in KINDS} == {
        "bradley-terry": 0,
        "regression": 0,
        "helpsteer": 0,
        "general-preference": 2,
        "hybrid": 2,
        "process": 0,
        "pairwise": 0,
    }


@pytest.mark.parametrize(
    ("kind", "dimension", "attributes"),
    [
        ("bradley-terry", 2, ()),
        ("bradley-terry", 0, ()),
        ("regression", 0, ()),
        ("regression", 3, ("one", "two")),
        ("helpsteer", 1, ()),
        ("helpsteer", 2, ("one", "two")),
        ("general-preference", 3, ()),
        ("general-preference", 0, ()),
        ("hybrid", 1, ()),
        ("hybrid", 4, ()),
    ],
)
def test_a_dimension_that_does_not_fit_the_kind_is_refused(kind, dimension, attributes):
    with pytest.raises(ModelLoadError, match=f"dimension {dimension} with .* does not fit kind {kind}"):
        ModelSpec(kind=kind, dimension=dimension, attributes=attributes)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "oracle"}, "kind is 'oracle'; it must be one of bradley-terry"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"gate": "sigmoid"}, "gate is 'sigmoid'"),
        ({"special_tokens": "yes"}, "special_tokens is 'yes'"),
        ({"bos": "twice"}, "bos is 'twice'"),
        ({"reasoning": "drop"}, "reasoning is 'drop'"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a positive number"),
        ({"temperature": float("nan")}, "it must be a positive number"),
        ({"temperature": float("inf")}, "it must be a positive number"),
        ({"max_length": 0}, "at least 1 token"),
        ({"gate": "softmax"}, "kind bradley-terry has none"),
        ({"weights": ()}, "weights merge the attributes of a model that has some"),
    ],
)
def test_what_cannot_be_is_refused(fields, reason):
    with pytest.raises(ModelLoadError, match=reason):
        ModelSpec(**{"kind": "bradley-terry", "dimension": 1, **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weights": (1.0,)}, "1 weights for 2 attributes"),
        ({"weights": (1.0, float("nan"))}, "must be finite numbers"),
        ({"attributes": ("one", "one")}, "every name may occur once"),
    ],
)
def test_weights_and_attributes_must_make_sense(fields, reason):
    with pytest.raises(ModelLoadError, match=reason):
        ModelSpec(**{"kind": "regression", "dimension": 2, "attributes": ("one", "two"), **fields})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[]", "not of format 1"),
        ('{"kind": "bradley-terry", "dimension": 1}', "not of format 1"),
        ('{"format": 2, "kind": "bradley-terry", "dimension": 1}', "a newer version"),
        ('{"format": 1, "kind": "bradley-terry", "dimension": 1, "colour": 1}', r"unknown fields \['colour'\]"),
        ('{"format": 1, "kind": "bradley-terry"}', r"lacks \['dimension'\]"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(text, reason):
    with pytest.raises(ModelLoadError, match=reason):
        ModelSpec.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimension", "1"),
        ("dimension", 1.0),
        ("dimension", True),
        ("max_length", None),
        ("temperature", "hot"),
        ("attributes", "helpful"),
        ("attributes", [1]),
        ("weights", ["1"]),
        ("domain", 3),
        ("normalise", 1),
        ("kind", ["bradley-terry"]),
    ],
)
def test_a_field_of_another_type_is_refused(field, value):
    values = {"format": 1, "kind": "bradley-terry", "dimension": 1, field: value}
    with pytest.raises(ModelLoadError, match=f"{field} is "):
        ModelSpec.from_json(json.dumps(values))


def test_the_weight_of_the_skew_form_changes_the_answers_and_not_the_representations():
    plain = ModelSpec(kind="hybrid", dimension=3)
    weighed = replace(plain, skew_weight=0.5)
    assert weighed.identity("w", "t") == plain.identity("w", "t")
    assert weighed.fingerprint("i", {}) != plain.fingerprint("i", {})
    assert ModelSpec.from_json(weighed.to_json()) == weighed
    assert "skew_weight" not in plain.to_json()


@pytest.mark.parametrize(
    ("kind", "dimension", "weight", "message"),
    [
        ("hybrid", 3, -1.0, "finite number of at least 0"),
        ("hybrid", 3, float("nan"), "finite number of at least 0"),
        ("general-preference", 2, 0.5, "this one is general-preference: leave it out"),
    ],
)
def test_a_weight_that_weighs_nothing_is_refused(kind, dimension, weight, message):
    with pytest.raises(ModelLoadError, match=message):
        ModelSpec(kind=kind, dimension=dimension, skew_weight=weight)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "pairwise"}, "say how a pairwise model reads two responses"),
        ({"kind": "bradley-terry", "symmetrise": "sum"}, "say how a pairwise model reads two responses"),
        ({"kind": "process"}, "step_token is None and the kind process: a process model has one"),
        ({"kind": "bradley-terry", "step_token": 3}, "step_token is 3 and the kind bradley-terry"),
        ({"kind": "bradley-terry", "aggregation": "min"}, "aggregation makes one reward of steps; this model is"),
        ({"kind": "process", "step_token": 3, "aggregation": "mean"}, "it must be one of min, prod, last"),
        ({"kind": "bradley-terry", "gate": "attributes"}, "weighs attributes into a reward"),
    ],
)
def test_steps_and_gates_of_attributes_belong_to_their_kinds(fields, reason):
    with pytest.raises(ModelLoadError, match=reason):
        ModelSpec(dimension=1, **fields)


def test_tokens_that_are_read_are_part_of_the_identity_and_aggregations_of_the_fingerprint():
    plain = ModelSpec(kind="bradley-terry", dimension=1)
    assert replace(plain, reward_token=3).identity("w", None) != plain.identity("w", None)
    steps = ModelSpec(kind="process", dimension=1, step_token=3)
    assert replace(steps, step_token=4).identity("w", None) != steps.identity("w", None)
    merged = replace(steps, aggregation="min")
    assert merged.identity("w", None) == steps.identity("w", None)
    assert merged.fingerprint("i", {}) != steps.fingerprint("i", {})
    assert not {"step_token", "reward_token", "aggregation"} & set(json.loads(plain.to_json()))
