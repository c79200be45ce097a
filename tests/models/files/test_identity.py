"""Identity: what changes a representation changes it, and nothing else does."""

from dataclasses import replace

import pytest

from paragone_models.files.hashes import hash_files
from paragone_models.spec import ModelSpec
from paragone_models.text.template import tokenizer_hash
from tests.models import tiny

SPEC = ModelSpec(kind="general-preference", dimension=4, gate="softmax")
RATINGS = ModelSpec(kind="regression", dimension=2, attributes=("one", "two"))


def test_an_identity_has_64_hexadecimal_digits_and_a_fingerprint_32():
    identity = SPEC.identity("weights", "tokenizer")
    assert len(identity) == 64
    int(identity, 16)
    assert len(SPEC.fingerprint(identity, {})) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 6},
        {"pooling": "mean"},
        {"gate": "none"},
        {"normalise": True},
        {"max_length": 100},
        {"special_tokens": "parse"},
        {"bos": "as-published"},
        {"reasoning": "strip"},
        {"final_eos": True},
    ],
)
def test_what_changes_a_representation_changes_the_identity(change):
    assert replace(SPEC, **change).identity("w", "t") != SPEC.identity("w", "t")


def test_weights_and_tokenizer_change_the_identity():
    assert len({SPEC.identity("w", "t"), SPEC.identity("v", "t"), SPEC.identity("w", None)}) == 3


@pytest.mark.parametrize(
    "change", [{"temperature": 0.2}, {"calibrated": True}, {"domain": "all"}, {"demonstration": True}]
)
def test_what_only_changes_answers_does_not_change_the_identity(change):
    assert replace(SPEC, **change).identity("w", "t") == SPEC.identity("w", "t")


def test_attribute_weights_do_not_change_the_identity():
    assert replace(RATINGS, weights=(1.0, 2.0)).identity("w", "t") == RATINGS.identity("w", "t")


def test_temperature_weights_calibration_and_numerics_change_the_fingerprint():
    variants = [
        ({}, RATINGS),
        ({"dtype": "float32"}, RATINGS),
        ({}, replace(RATINGS, temperature=2.0)),
        ({}, replace(RATINGS, weights=(1.0, 2.0))),
        ({}, replace(RATINGS, calibrated=True)),
    ]
    assert len({spec.fingerprint("identity", numerics) for numerics, spec in variants}) == len(variants)


def test_files_are_hashed_by_content_in_the_order_of_their_names(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    before = hash_files([one, two])
    assert before == hash_files([two, one])
    two.write_bytes(b"3")
    assert hash_files([one, two]) != before


def test_template_vocabulary_and_named_tokens_change_the_hash_of_a_tokenizer():
    tokenizer = tiny.make_tokenizer()
    before = tokenizer_hash(tokenizer, "template")
    assert before == tokenizer_hash(tiny.make_tokenizer(), "template")
    assert tokenizer_hash(tokenizer, "another") != before
    assert tokenizer_hash(tiny.make_tokenizer(adds_bos=True), "template") != before
    tokenizer.eos_token = "<|endoftext|>"
    assert tokenizer_hash(tokenizer, "template") != before
