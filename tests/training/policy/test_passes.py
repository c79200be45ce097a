"""The passes of an epoch: every pair once, the same steps on any number of processes."""

import itertools

import pytest

from paragone_training.policy.passes import PairPasses, of_batch, steps_of_epoch
from paragone_training.policy.rows import TrainingPair


def made(count, *, size=2, step=8):
    pairs = [TrainingPair((1, 2), (number + 10, 3), (4,), (float(number), *[0.0] * 6)) for number in range(count)]
    return PairPasses(pairs, size=size, step=step, pad_id=0, seed=5)


@pytest.mark.parametrize("count", [8, 9, 16, 17, 19, 21, 23, 4, 7])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_epoch_is_whole_steps_of_nearly_equal_size(count, size):
    if count < 8 // size:
        with pytest.raises(ValueError, match="cannot fill the 8 passes of a step"):
            made(count, size=size)
        return
    passes = made(count, size=size)
    sizes = [len(passes[index]["preference"]) for index in range(len(passes))]

    assert len(passes) == steps_of_epoch(count, size=size, step=8) * (8 // size)
    assert sum(sizes) == count
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    # One pair a pass leaves no smaller step to make; else a pass has its size at most.
    assert max(sizes) <= size or size == 1


def test_every_pair_is_in_an_epoch_once_and_the_next_epoch_has_another_order():
    passes = made(21)
    first = [int(value) for index in range(len(passes)) for value in passes[index]["preference"]]
    passes.set_epoch(1)
    second = [int(value) for index in range(len(passes)) for value in passes[index]["preference"]]
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second


def test_a_pass_has_its_chosen_sequences_first():
    sequences, targets = of_batch(made(2, step=2)[0])
    assert sequences.input_ids.shape == (4, 4)
    assert [int(row[2]) - 10 for row in sequences.input_ids[:2]] == [int(value) for value in targets.preference]
    assert sequences.input_ids[2].tolist() == [1, 2, 4, 0]
    assert sequences.answered[2].tolist() == [False, False, True, False]


def test_pairs_of_like_length_share_a_pass_and_no_pair_changes_its_step():
    lengths = [5, 90, 7, 60, 30, 8, 75, 31] * 3
    pairs = [
        TrainingPair((1,), tuple(range(length)), (4,), (float(number), *[0.0] * 6))
        for number, length in enumerate(lengths)
    ]
    grouped = PairPasses(pairs, size=2, step=8, pad_id=0, seed=5)
    plain = PairPasses(
        [TrainingPair((1,), (2,), (4,), pair.targets) for pair in pairs], size=2, step=8, pad_id=0, seed=5
    )

    def numbers(passes):
        return [[int(value) for value in passes[index]["preference"]] for index in range(len(passes))]

    def steps(passes):
        return [list(itertools.chain(*passes[first : first + 4])) for first in range(0, len(passes), 4)]

    def padded(passes):
        return sum(len(passed) * max(lengths[number] for number in passed) for passed in passes)

    mine, unsorted = numbers(grouped), numbers(plain)
    for ours, theirs in zip(steps(mine), steps(unsorted), strict=True):
        assert sorted(ours) == sorted(theirs)
        assert [lengths[number] for number in ours] == sorted((lengths[number] for number in ours), reverse=True)
    assert padded(mine) < 0.85 * padded(unsorted)
