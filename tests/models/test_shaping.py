"""Shaping by length and style: cases by hand, the zero sum, each setting, and what is counted as style."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paragone_models.shaping import Measures, measure, shaped

# Reasoning of 10, 20 and 50 characters, answers of 100, 40 and 40, styles of 0, .1 and .4.
GROUP = [Measures(10, 100, 0.0), Measures(20, 40, 0.1), Measures(50, 40, 0.4)]
SIGNAL = [0.6, 0.5, 0.2]


def said(text, **more):
    return measure([{"role": "assistant", "content": text, **more}])


def test_by_default_nothing_changes():
    assert shaped(SIGNAL, GROUP).tolist() == SIGNAL


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        # w = 1, .75, 0 of mean 1.75/3
        ({"reasoning_length_penalty": 0.3}, 0.3 * (np.array([1, 0.75, 0]) - 1.75 / 3)),
        ({"answer_length_penalty": 0.3}, 0.3 * (np.array([0, 1, 1]) - 2 / 3)),
        ({"style_penalty": 0.1}, 0.1 * (np.array([1, 0.75, 0]) - 1.75 / 3)),
        # ⌈.2 · 3⌉ = 1: the best alone.
        ({"reasoning_bonus": 0.3}, [0.2, -0.1, -0.1]),
        ({"answer_bonus": 0.3}, [0.2, -0.1, -0.1]),
        # The best two; the second has the shorter answer.
        ({"answer_bonus": 0.3, "top_percentile": 0.5}, [-0.1, 0.2, -0.1]),
        # All are the best, and two of them share the bonus.
        ({"answer_bonus": 0.3, "top_percentile": 1.0}, [-0.1, 0.05, 0.05]),
    ],
)
def test_each_setting_by_hand(settings, change):
    np.testing.assert_allclose(shaped(SIGNAL, GROUP, **settings), np.array(SIGNAL) + change, atol=1e-12)


def test_equal_lengths_change_nothing_and_equal_signals_are_best_together():
    same = [Measures(5, 5, 0.5)] * 3
    everything = {"reasoning_length_penalty": 1.0, "answer_length_penalty": 1.0, "style_penalty": 1.0}
    assert shaped(SIGNAL, same, **everything).tolist() == SIGNAL
    np.testing.assert_allclose(shaped([0.5] * 3, GROUP, reasoning_bonus=0.3), [0.7, 0.4, 0.4])


def test_the_share_of_the_best_is_counted_without_rounding():
    signal = np.arange(30.0)[::-1]
    lengths = [Measures(0, 30 - place, 0.0) for place in range(30)]
    # .1 · 30 is 3.0000000000000004 in floats, and three are the best.
    gained = shaped(signal, lengths, answer_bonus=1.0, top_percentile=0.1) - signal
    assert np.flatnonzero(gained > 0).tolist() == [2]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.integers(0, 9), st.floats(0, 1)), min_size=1, max_size=9),
    st.lists(st.floats(0, 10), min_size=5, max_size=5),
    st.floats(0.01, 1),
)
def test_shaping_moves_nothing_into_a_group_or_out_of_it(members, weights, share):
    signal = [member[0] for member in members]
    names = ("reasoning_bonus", "answer_bonus", "reasoning_length_penalty", "answer_length_penalty", "style_penalty")
    settings = dict(zip(names, weights, strict=True))
    after = shaped(signal, [Measures(*member[1:]) for member in members], top_percentile=share, **settings)
    assert np.isfinite(after).all()
    assert after.sum() == pytest.approx(sum(signal), abs=1e-9)


def test_thoughts_are_told_from_the_answer():
    assert said("<think>\nabc\n</think>\n\nfour") == Measures(3, 4, 0.0)
    assert said("abc</think>four") == Measures(3, 4, 0.0)
    assert said("four", reasoning_content="abc") == Measures(3, 4, 0.0)
    assert said("<think></think>four") == Measures(0, 4, 0.0)
    assert said("<think>never closed") == Measures(12, 0, 0.0)


def test_the_turns_of_an_agent_count_and_what_tools_say_does_not():
    turns = [
        {"role": "assistant", "content": None, "reasoning_content": "ab", "tool_calls": [{}]},
        {"role": "tool", "content": "a very long result"},
        {"role": "assistant", "content": [{"type": "text", "text": "four"}, {"type": "text", "text": "s"}]},
    ]
    assert measure(turns) == Measures(2, 5, 0.0)


@pytest.mark.parametrize(
    ("text", "markers", "words"),
    [
        ("# A title\nand text", 1, 5),
        ("- one\n* two\n1. three\n  2) four", 4, 8),
        ("a **bold word** and __another__", 2, 5),
        ("yes 👍 and 🇨🇭", 3, 4),  # a flag is two letters
        ("```\n# a comment\n- no item\n```\nprose", 0, 1),
        ("```\n# never closed", 0, 0),
        ("2 * 3 - 1, a_b_c, C# and 3.5", 0, 9),
    ],
)
def test_style_is_counted_outside_of_code(text, markers, words):
    assert said(text).style_density == pytest.approx(markers / words if words else 0.0)


def test_a_text_that_is_all_markup_is_measured_in_no_time():
    for text in ("**" * 50_000, "\n" * 100_000, "```\n" * 50_000, "__a" * 50_000, " " * 100_000 + "#"):
        assert said(text).answer_length <= len(text)  # quadratic patterns would take minutes here


@pytest.mark.parametrize(
    ("signal", "settings", "message"),
    [
        ([0.5], {}, "3 measures"),
        ([0.5, np.nan, 0.1], {}, "finite"),
        (SIGNAL, {"top_percentile": 0.0}, r"in \(0, 1\], not 0.0"),
        (SIGNAL, {"top_percentile": 1.5}, "not 1.5"),
    ],
)
def test_what_cannot_be_shaped_is_refused(signal, settings, message):
    with pytest.raises(ValueError, match=message):
        shaped(signal, GROUP, **settings)
