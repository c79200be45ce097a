"""The budget of a forward pass, found by trying."""

import pytest
import torch

from paragone_models.forward import LocalForward
from paragone_models.machine import CANDIDATES, Budget, best_budget
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from tests.models import packs


class Machine:
    """A clock, and packers that take as long as their budget says."""

    def __init__(self, speeds: dict[int, float], memory: int = 10**9) -> None:
        self.now = 0.0
        self.speeds = speeds
        self.memory = memory
        self.budgets: list[int] = []

    def run(self, budget: int, items) -> int:
        self.budgets.append(budget)
        tokens = sum(len(item.token_ids) for item in items)
        if len(items) > 1 and budget > self.memory:
            raise torch.OutOfMemoryError("no more")
        self.now += tokens / self.speeds[budget]
        return tokens

    def best(self, limit_s: float = 1e9, max_length: int = 4096) -> Budget:
        return best_budget(
            self.run,
            list(self.speeds),
            vocabulary=packs.VOCABULARY,
            max_length=max_length,
            limit_s=limit_s,
            clock=lambda: self.now,
        )


@pytest.mark.parametrize(
    ("speeds", "budget"),
    [
        ({512: 100, 1024: 200, 2048: 400}, 2048),
        ({512: 100, 1024: 200, 2048: 150}, 1024),
        ({512: 96, 1024: 98, 2048: 100}, 512),
    ],
)
def test_the_smallest_budget_that_is_nearly_the_fastest_is_taken(speeds, budget):
    assert Machine(speeds).best().tokens == budget


def test_no_larger_budget_is_tried_after_the_time_is_up():
    machine = Machine({512: 100, 1024: 200, 2048: 400})
    best = machine.best(limit_s=0.1)
    assert best.tokens == 512
    assert set(machine.budgets) == {512}
    assert "nothing larger was tried" in best.reason


def test_a_budget_that_does_not_fit_into_memory_is_not_taken():
    best = Machine({512: 100, 1024: 200, 2048: 400}, memory=1500).best()
    assert best.tokens == 1024
    assert "2048 tokens do not fit into memory" in best.reason


def test_the_reason_has_the_speeds_that_were_seen():
    assert "512: 100, 1024: 200" in Machine({512: 100, 1024: 200}).best().reason


def test_no_sequence_of_the_warm_up_is_longer_than_the_backbone_reads():
    lengths = []
    best_budget(
        lambda _, items: lengths.extend(len(item.token_ids) for item in items) or 1,
        [64],
        vocabulary=packs.VOCABULARY,
        max_length=20,
        limit_s=1,
    )
    assert max(lengths) == 20


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
def test_a_warm_up_sets_the_budget_packed_or_padded(family):
    head = RepresentationHead(packs.HIDDEN, ModelSpec(kind="bradley-terry", dimension=1))
    local = LocalForward(PreferenceNetwork(packs.decoder(family), head), max_batch_tokens=77)
    assert (local.packer is None) == (family == "gpt_neox")
    assert local.warm_up(max_length=64, limit_s=0.0).tokens == local.max_batch_tokens == CANDIDATES["cpu"][0]
    assert local.packer is None or local.packer.max_tokens == CANDIDATES["cpu"][0]


def test_a_warm_up_leaves_no_trace():
    head = RepresentationHead(packs.HIDDEN, ModelSpec(kind="bradley-terry", dimension=1))
    local = LocalForward(PreferenceNetwork(packs.decoder("qwen3"), head), max_batch_tokens=77)
    local.warm_up(max_length=64, limit_s=0.0)
    assert local.packer.executed_tokens == 0
    assert local.packer.store.bytes == 0


def test_sequences_that_run_apart_need_no_warm_up():
    head = RepresentationHead(packs.HIDDEN, ModelSpec(kind="bradley-terry", dimension=1))
    local = LocalForward(PreferenceNetwork(packs.decoder("qwen3"), head), max_batch_tokens=77, deterministic=True)
    budget = local.warm_up(max_length=64)
    assert budget.tokens == 77
    assert "run apart" in budget.reason
