"""Published benchmarks: their formulas, and numbers that other people computed."""

from dataclasses import replace

import numpy as np
import pytest

from paragone_evaluation.measures.benchmarks import (
    REWARDBENCH_SECTIONS,
    TiesPrompt,
    best_of_k_result,
    net_vote,
    rewardbench_sections,
    rm_bench,
    ties_score,
)

# GPM-Llama-3.1-8B on the RewardBench leaderboard (October 2024): its 23 subsets, and the leaderboard's own scores.
SUBSETS = {
    "alpacaeval-easy": 0.92, "alpacaeval-length": 0.9368, "alpacaeval-hard": 0.9053, "mt-bench-easy": 1.0,
    "mt-bench-med": 0.975, "mt-bench-hard": 0.8108, "llmbar-natural": 0.91, "llmbar-adver-neighbor": 0.8507,
    "llmbar-adver-GPTInst": 0.9565, "llmbar-adver-GPTOut": 0.9362, "llmbar-adver-manual": 0.8043,
    "refusals-dangerous": 0.94, "refusals-offensive": 0.99, "xstest-should-refuse": 0.9351,
    "xstest-should-respond": 0.976, "donotanswer": 0.6838, "hep-cpp": 0.9451, "hep-go": 0.9451, "hep-java": 0.9329,
    "hep-js": 0.9512, "hep-python": 0.9634, "hep-rust": 0.9268, "math-prm": 0.9754,
}  # fmt: skip
SCORES = {"Chat": 93.30, "Chat Hard": 88.60, "Safety": 91.08, "Reasoning": 95.97, "Overall": 92.24}


def test_the_sections_of_a_published_model_are_those_of_the_leaderboard():
    found = rewardbench_sections(SUBSETS)
    assert {name: 100 * score for name, score in found.items()} == pytest.approx(SCORES, abs=0.01)


def test_there_are_23_subsets_of_2985_rows_and_math_counts_as_much_as_code():
    weights = {name: weight for section in REWARDBENCH_SECTIONS.values() for name, weight in section.items()}
    assert len(weights) == 23
    assert sum(weights.values()) - weights["math-prm"] + 447 == 2985
    assert weights["math-prm"] == sum(weight for name, weight in weights.items() if name.startswith("hep-"))


def test_a_missing_section_leaves_no_overall_score_and_a_missing_subset_its_section():
    assert rewardbench_sections({"math-prm": 0.5}) == {"Reasoning": 0.5}


def test_the_right_response_shares_with_those_that_tie_with_it():
    assert best_of_k_result([3.0, 1.0, 2.0, 0.0]) == 1.0
    assert best_of_k_result([3.0, 3.0, 2.0, 3.0]) == pytest.approx(1 / 3)
    assert best_of_k_result([2.0, 3.0]) == 0.0
    with pytest.raises(ValueError, match="no response"):
        best_of_k_result([])


def test_the_ties_score_is_the_weighted_sum_of_its_parts():
    prompts = [
        TiesPrompt("0", True, (5.0, 4.0), (1.0, 0.0)),  # gap 3, spread 1
        TiesPrompt("0", False, (5.0,), (4.5,)),  # gap 0.5
        TiesPrompt("1", True, (5.0, 1.0), (2.0,)),  # gap −1, spread 4
        TiesPrompt("1", False, (3.0,), (1.0,)),  # gap 2
    ]
    margin = (np.tanh(0.5 / 1 - 1) + np.tanh(-1 / 4 - 1)) / 2
    found = ties_score(prompts)
    assert found["score"] == pytest.approx(0.3 * 0.5 + 0.3 * 1.0 + 0.2 * 0.5 + 0.2 * 0.0 + 0.01 * margin, abs=1e-12)


def test_a_number_that_counts_twice_is_a_number_that_is_there_twice():
    draw = np.random.default_rng(0)
    prompts = [
        TiesPrompt(number, tied, tuple(draw.normal(1, 1, 3 if tied else 1)), tuple(draw.normal(0, 1, 4)))
        for number in "abc"
        for tied in (True, False)
    ]
    doubled = [*prompts, *(replace(prompt, number="again") for prompt in prompts if prompt.number == "b")]
    weighted = ties_score(prompts, weight={"a": 1.0, "b": 2.0, "c": 1.0})
    assert weighted["score"] == pytest.approx(ties_score(doubled)["score"], abs=1e-12)
    without = ties_score(prompts, weight={"a": 1.0, "b": 0.0, "c": 1.0})
    assert without["score"] == pytest.approx(
        ties_score([one for one in prompts if one.number != "b"])["score"], abs=1e-12
    )


def test_a_perfect_model_without_spread_exceeds_one_by_a_hundredth():
    perfect = [TiesPrompt("0", True, (5.0, 5.0), (1.0,)), TiesPrompt("0", False, (5.0,), (1.0,))]
    assert ties_score(perfect)["score"] == pytest.approx(1.01)
    constant = [TiesPrompt("0", True, (1.0, 1.0), (1.0,)), TiesPrompt("0", False, (1.0,), (1.0,))]
    assert ties_score(constant)["score"] == 0.0


def test_ties_without_their_references_have_no_score():
    with pytest.raises(ValueError, match="tied:n and ref:n"):
        ties_score([TiesPrompt("0", True, (1.0,), (0.0,))])


def test_rm_bench_is_hard_above_the_diagonal_and_easy_below_it():
    draw = np.random.default_rng(0)
    wins = (draw.random((20, 3, 3)) < 0.6).astype(float)
    mean = wins.mean(axis=0)
    found = rm_bench(wins)
    assert found["hard"] == pytest.approx((mean[0, 1] + mean[0, 2] + mean[1, 2]) / 3)
    assert found["easy"] == pytest.approx((mean[1, 0] + mean[2, 0] + mean[2, 1]) / 3)
    assert found["total"] == pytest.approx((found["hard"] + found["easy"] + mean.trace() / 3) / 3)
    with pytest.raises(ValueError, match=r"\[n, 3, 3\]"):
        rm_bench(np.zeros((2, 3)))


def test_a_pair_of_judgebench_is_right_if_the_votes_of_both_orders_are_together():
    # right twice; right and tied; right and wrong; wrong twice; the second response is the right one
    logit, swapped = [1.0, 1.0, 1.0, -1.0, -1.0], [-1.0, 0.0, 1.0, 1.0, 0.0]
    assert net_vote(logit, swapped, [1, 1, 1, 1, 0]).tolist() == [1, 1, 0, 0, 1]
