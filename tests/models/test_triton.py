"""A batch as tensors, and the parts that Triton runs it in."""

import numpy as np
import pytest

from paragone_models.text.reader import EncodeItem
from paragone_models.triton import INPUTS, _families, from_tensors, to_tensors

LIMITS = {"vocabulary": 100, "max_tokens": 50}
ITEMS = [
    EncodeItem([1, 2, 3, 4], ((1, 2), (2, 4)), 2),
    EncodeItem(np.asarray([1, 2, 9]), ((1, 2), (2, 3)), 2),
    EncodeItem((99,), ((0, 1), (0, 1)), 0),
]


def test_items_come_back_from_their_tensors():
    tensors = to_tensors(ITEMS)
    assert [(name, values.dtype, values.ndim) for name, values in tensors.items()] == [
        (name, kind, len(dims)) for name, (_, kind, dims) in INPUTS.items()
    ]
    back = from_tensors(tensors, **LIMITS)
    assert back == [EncodeItem(list(item.token_ids), item.reads, item.prompt_length) for item in ITEMS]
    assert all(isinstance(one, int) for item in back for span in item.reads for one in span)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TOKENS": [1, 2, 3, 4, 1, 2, 9, 100]}, r"token ids reach from 1 to 100; they must lie in \[0, 100\)"),
        ({"TOKENS": [-1, 2, 3, 4, 1, 2, 9, 9]}, "token ids reach from -1 to 9"),
        ({"OFFSETS": [0, 4, 4, 8]}, "OFFSETS must rise from 0 to the 8 entries of TOKENS, by at least 1 each"),
        ({"OFFSETS": [1, 4, 7, 8]}, "OFFSETS must rise from 0"),
        ({"OFFSETS": [0, 4, 7]}, r"OFFSETS has 3 entries, PROMPTS 3 and READS the shape \(3, 2, 2\)"),
        ({"READS": np.zeros((3, 0, 2))}, r"READS the shape \(3, 0, 2\)"),
        ({"READS": np.zeros((3, 2, 2))}, r"read \(0, 0\) does not lie inside the 4 tokens"),
        ({"PROMPTS": [], "OFFSETS": [0], "READS": np.zeros((0, 2, 2))}, "OFFSETS has 1 entries, PROMPTS 0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    tensors = to_tensors(ITEMS) | {name: np.asarray(values, INPUTS[name][1]) for name, values in change.items()}
    with pytest.raises(ValueError, match=message):
        from_tensors(tensors, **LIMITS)


def test_a_call_over_the_limit_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="the call has 8 tokens and the limit is 7: send fewer at a time"):
        from_tensors(to_tensors(ITEMS), vocabulary=100, max_tokens=7)


def test_content_beside_the_tokens_cannot_be_sent():
    with pytest.raises(ValueError, match="content beside the tokens"):
        to_tensors([EncodeItem([1], ((0, 1),), 0, content_key=b"image")])


def test_siblings_stay_together_and_no_part_is_over_the_budget():
    items = [EncodeItem([prompt, prompt, prompt, number], ((3, 4),), 3) for number in range(3) for prompt in (1, 2)]
    assert list(_families(items, 12)) == [[0, 2, 4, 1], [3, 5]] or list(_families(items, 12)) == [[0, 2, 4, 1, 3, 5]]
    assert list(_families(items, 6)) == [[0, 2, 4], [1, 3, 5]]  # three tokens of a prompt, once, and a token for each
    assert list(_families(items, 5)) == [[0, 2], [4], [1, 3], [5]]
    assert list(_families(items, 1)) == [[0], [2], [4], [1], [3], [5]]
