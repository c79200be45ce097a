"""The bytes of a cached representation."""

import struct

import numpy as np
import pytest

from paragone_service.cache.tiers import Codec

VECTORS = np.array([[1.5, -2.25], [0.1, 3e38]], dtype=np.float32)


def test_a_value_is_a_header_of_twelve_bytes_and_little_endian_floats():
    codec = Codec(2)
    (value, _) = codec.encode(VECTORS, [7, 8], [0, 3])
    assert value == struct.pack("<BBHIIff", 0x50, 2, 2, 7, 0, 1.5, -2.25)


def test_what_is_read_is_what_was_written_bit_for_bit():
    codec = Codec(2)
    vectors, dropped, shown, tokens = codec.decode(codec.encode(VECTORS, [7, 8], [0, 3]))
    assert tokens.tolist() == [7, 8]
    assert shown.tolist() == [True, True]
    assert vectors.tobytes() == VECTORS.tobytes()
    assert dropped.tolist() == [0, 3]


def test_what_was_not_shown_is_a_bit_beside_the_dropped_tokens():
    codec = Codec(2)
    values = codec.encode(VECTORS, [7, 8], [2**27, 3], [False, True])
    assert values[0] == struct.pack("<BBHIIff", 0x50, 2, 2, 7, 2**27 + 2**31, 1.5, -2.25)
    assert codec.sound([values[0]]) == [True]
    _, dropped, shown, tokens = codec.decode(values)
    assert tokens.tolist() == [7, 8]
    assert (dropped.tolist(), shown.tolist()) == ([2**27, 3], [False, True])


def test_a_value_of_an_earlier_version_is_outdated():
    (value,) = Codec(2).encode(VECTORS[:1], [7], [0])
    assert [Codec.outdated(one) for one in (b"\x50\x01" + value[2:], value, b"", b"\x50")] == [
        True,
        False,
        False,
        False,
    ]


def test_no_values_are_no_rows():
    vectors, dropped, _, _ = Codec(3).decode([])
    assert vectors.shape == (0, 3)
    assert dropped.shape == (0,)


def test_the_blank_is_not_a_number_in_every_place():
    vectors, _, shown, _ = Codec(4).decode([Codec(4).blank])
    assert shown.all()
    assert np.isnan(vectors).all()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("shorter", lambda value: value[:-1]),
        ("longer", lambda value: value + b"\0"),
        ("empty", lambda _: b""),
        ("other magic", lambda value: b"\0" + value[1:]),
        ("other version", lambda value: value[:1] + b"\x09" + value[2:]),
        ("other dimension", lambda value: value[:2] + b"\x03\0" + value[4:]),
        ("NaN", lambda value: value[:-4] + struct.pack("<f", float("nan"))),
        ("infinity", lambda value: value[:-4] + struct.pack("<f", float("inf"))),
    ],
)
def test_a_spoilt_value_is_not_sound_and_its_neighbours_are(name, spoil):
    codec = Codec(2)
    good, other = codec.encode(VECTORS, [7, 8], [0, 3])
    assert codec.sound([good, spoil(other), good]) == [True, False, True], name


def test_a_dimension_that_the_header_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="a representation of 65536 numbers cannot be cached"):
        Codec(65536)
