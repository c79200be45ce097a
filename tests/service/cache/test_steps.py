"""Values with one number for each step: what goes in comes out, and what is damaged is no value."""

import numpy as np
import pytest

from paragone_service.cache.steps import StepsCodec
from paragone_service.cache.tiers import Codec

ROWS = np.array([[1.0, -2.0, 3.5], [4.0, 0.0, 0.0]], dtype=np.float32)


def test_rows_of_several_lengths_come_back_padded():
    codec = StepsCodec()
    values = codec.encode(ROWS, [7, 9], [0, 2], [True, False], counts=[3, 1])
    decoded = codec.decode(values)
    np.testing.assert_array_equal(decoded.vectors, [[1.0, -2.0, 3.5], [4.0, np.nan, np.nan]])
    assert decoded.tokens.tolist() == [7, 9]
    assert decoded.dropped.tolist() == [0, 2]
    assert decoded.shown.tolist() == [True, False]
    assert codec.sound(values) == [True, True]
    assert values[0] == Codec(3).encode(ROWS[:1], [7], [0])[0]
    assert codec.decode([]).vectors.shape == (0, 1)


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v[:12], lambda _: b"", lambda v: b"x" + v[1:]])
def test_a_damaged_value_is_none(change):
    codec = StepsCodec()
    (value,) = codec.encode(ROWS[:1], [7], [0])
    assert codec.sound([change(value), value, codec.blank]) == [False, True, False]
