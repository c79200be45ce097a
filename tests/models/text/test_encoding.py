"""The unit of work of an engine: sequences with reads inside them."""

import pytest

from paragone_models.text.reader import EncodeItem


def test_an_item_keeps_what_it_is_given():
    item = EncodeItem([5, 6, 7], ((0, 1), (1, 3)), 1)
    assert (list(item.token_ids), item.reads, item.prompt_length, item.content_key) == (
        [5, 6, 7],
        ((0, 1), (1, 3)),
        1,
        None,
    )


def test_a_sequence_without_tokens_is_refused():
    with pytest.raises(ValueError, match="token_ids is empty"):
        EncodeItem([], (), 0)


@pytest.mark.parametrize("read", [(-1, 1), (1, 1), (2, 1), (0, 4), (3, 4)])
def test_a_read_outside_the_sequence_is_refused(read):
    with pytest.raises(ValueError, match="does not lie inside the 3 tokens"):
        EncodeItem([5, 6, 7], (read,), 1)
