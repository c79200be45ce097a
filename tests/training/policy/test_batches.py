"""The passes of an epoch: every pair once, the same steps on any number of processes."""

import itertools

import pytest

from paragone_training.policy.batches import PairPasses, TrainingPair, of_batch


def made(count, *, world, size=2, step=8):
    pairs = [TrainingPair((1, 2), (number + 10, 3), (4,), (float(number), *[0.0] * 6)) for number in range(count)]
    return PairPasses(pairs, size=size, step=step, world=world, pad_id=0, seed=5)


def steps(passes, *, size=2, step=8):
    """Return the pairs of every optimiser step."""
    a_step = step // size
    found = [[int(value) for value in passes[index]["preference"]] for index in range(len(passes))]
    return [sorted(itertools.chain(*found[start : start + a_step])) for start in range(0, len(found), a_step)]


@pytest.mark.parametrize("count", [8, 16, 19, 21, 23])
@pytest.mark.parametrize("world", [2, 4])
def test_the_pairs_of_every_step_are_those_of_one_process(count, world):
    one, many = made(count, world=1), made(count, world=world)
    left_out = count % 8 if count % 8 < world else 0
    expected = steps(one)[: -1 if left_out else None]
    assert steps(many) == expected
    assert len(many) % world == 0


def test_every_pair_is_in_an_epoch_once_and_the_next_epoch_has_another_order():
    passes = made(21, world=1)
    first = [int(value) for index in range(len(passes)) for value in passes[index]["preference"]]
    passes.set_epoch(1)
    second = [int(value) for index in range(len(passes)) for value in passes[index]["preference"]]
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second


def test_a_pass_has_its_chosen_sequences_first():
    sequences, targets = of_batch(made(2, world=1)[0])
    assert sequences.input_ids.shape == (4, 4)
    assert [int(row[2]) - 10 for row in sequences.input_ids[:2]] == [int(value) for value in targets.preference]
    assert sequences.input_ids[2].tolist() == [1, 2, 4, 0]
    assert sequences.answered[2].tolist() == [False, False, True, False]
