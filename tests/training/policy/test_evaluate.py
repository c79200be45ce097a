"""Win rates with intervals and at equal lengths, and answers in other people's layouts."""

import json
import re

import numpy as np
import pytest

from paragone_evaluation.readers import Prompt
from paragone_training.errors import RecipeError
from paragone_training.policy.evaluate import (
    describe_responses,
    length_controlled,
    win_rate,
    win_rate_in_words,
    write_report,
)
from paragone_training.policy.exports import export_answers
from paragone_training.policy.rows import Answer, Response, write_json, write_rows


def answers(rates):
    return [Answer(str(number), np.array([[0.5, rate], [1 - rate, 0.5]]), None) for number, rate in enumerate(rates)]


def test_the_win_rate_is_the_mean_over_prompts_with_an_interval_around_it():
    rates = np.random.default_rng(0).uniform(0.3, 1.0, size=200)
    lengths = {str(number): (10.0, 10.0) for number in range(200)}
    found = win_rate(answers(rates), lengths, responses=1, rule="mean-probability")

    assert found["win_rate"] == pytest.approx(rates.mean())
    half = 1.96 * rates.std() / np.sqrt(200)
    np.testing.assert_allclose(found["interval"], [rates.mean() - half, rates.mean() + half], atol=0.006)
    assert found["controlled"] == pytest.approx(rates.mean(), abs=0.01)


def test_a_missing_comparison_is_no_half_and_a_prompt_without_any_is_left_out():
    lengths = {"0": (1.0, 1.0), "1": (1.0, 1.0)}
    rows = [*answers([0.8]), Answer("1", np.array([[0.5, np.nan], [np.nan, 0.5]]), "too long")]
    found = win_rate(rows, lengths, responses=1, rule="mean-probability")
    assert (found["prompts"], found["win_rate"]) == (1, pytest.approx(0.8))
    assert win_rate(rows[1:], lengths, responses=1, rule="mean-probability")["win_rate"] is None


def test_only_comparisons_between_the_two_policies_count():
    table = np.full((4, 4), 0.5)
    table[:2, 2:], table[2:, :2] = 0.7, 0.3
    table[0, 1], table[1, 0] = 1.0, 0.0
    found = win_rate([Answer("0", table, None)], {"0": (1.0, 1.0)}, responses=2, rule="mean-probability")
    assert found["win_rate"] == pytest.approx(0.7)


def test_a_judge_that_counts_characters_gives_a_half_at_equal_lengths():
    longer = np.random.default_rng(1).normal(30.0, 40.0, size=500)
    preference = 1 / (1 + np.exp(-2.0 * np.tanh(longer / longer.std())))
    assert preference.mean() > 0.65
    assert length_controlled(preference, longer) == pytest.approx(0.5, abs=0.01)


def test_a_judge_that_ignores_length_keeps_its_win_rate():
    longer = np.random.default_rng(2).normal(30.0, 40.0, size=500)
    assert length_controlled(np.full(500, 0.8), longer) == pytest.approx(0.8, abs=0.01)
    assert length_controlled(np.full(5, 0.8), np.zeros(5)) == pytest.approx(0.8, abs=0.01)


def row(text, finished=True):
    return Response("1", "Q?", 0, [1], list(range(len(text))), text, finished, None)


def test_responses_are_described_by_length_and_end():
    found = describe_responses([row("abc"), row("abcde", finished=False)])
    assert found == {"responses": 2, "tokens": 4.0, "characters": 4.0, "finished": 0.5}


def test_no_response_has_no_length():
    assert describe_responses([]) == {"responses": 0, "tokens": None, "characters": None, "finished": None}


@pytest.fixture
def measured(tmp_path):
    """The folder of a run of two iterations, of which the second lost all held-out answers."""
    write_json(
        tmp_path / "recipe.json",
        {
            "method": "sppo", "policy": {"source": "mine"}, "loss": {"eta": 20.0}, "data": {},
            "sampling": {"responses": 4}, "training": {"iterations": 2}, "reference": {"policy": "previous"},
            "targets": {"pairs": "all", "labels": "soft", "win_rates": "with-self"},
        },
    )  # fmt: skip
    rates = {
        "prompts": 40,
        "win_rate": 0.61,
        "interval": [0.52, 0.7],
        "controlled": 0.55,
        "controlled_interval": [0.41, 0.66],
    }
    lengths = {"responses": 2, "tokens": 12.0, "characters": 34.0, "finished": 0.25}
    evaluation = {"initial": lengths, "iterate": lengths | {"finished": 0.75}, "oracle": rates, "judge": rates}
    evaluation |= {"kl_to_initial": 1.5, "kl_error": 0.5, "entropy": 54.0, "initial_entropy": 60.0}
    nothing = {"prompts": 0, "win_rate": None, "interval": None, "controlled": None, "controlled_interval": None}
    lost = {"initial": lengths, "iterate": describe_responses([]), "oracle": nothing}
    numbers = {"pairs": 8, "cyclic_share": 0.125, "rotation": None, "sample_finished": 0.5}
    for number, held_out in enumerate((evaluation, lost), start=1):
        write_json(
            tmp_path / f"iteration-{number:02d}" / "metrics.json",
            {"iteration": number, "evaluation": held_out, **numbers},
        )
    return tmp_path


def test_the_report_names_axes_and_shows_intervals_ends_and_lengths_beside_the_win_rate(measured):
    write_report(measured)
    page = (measured / "report.html").read_text()
    charts = {
        re.search('aria-label="([^"]*)"', chart)[1]: re.findall(r"<text[^>]*>([^<]*)</text>", chart)
        for chart in re.findall("<svg.*?</svg>", page, flags=re.DOTALL)
    }

    # Not its labels: this method has a number of each response.
    assert "4 responses a prompt; pairs all, win rates with-self; reference previous." in page
    names = {"probability", "share", "characters", "tokens", "nats a response"}
    assert {texts[-1] for texts in charts.values()} == names
    for texts in charts.values():
        assert "iterate (0: the initial policy)" in texts
        assert texts[:2] == ["0", "1"]
        assert len(set(texts)) == len(texts)
    rows = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in re.findall("<tr>.*?</tr>", page)]
    assert ["0", "", "0.500", "0.500", "0.25", "34", "12", "0"] in rows
    measured_rates = ["0.610 [0.520, 0.700]", "0.550 [0.410, 0.660]"]
    assert ["1", "judge", *measured_rates, "0.75", "34", "12", "1.5 ± 0.98"] in rows
    assert ["2", "oracle", "", "", "", "", "", ""] in rows
    assert "0.70" in charts["win rate against the initial policy"]


def test_the_first_sentence_says_who_wins_by_whose_judgement_and_whether_that_is_sure():
    lengths = {"initial": {"characters": 30.0}, "iterate": {"characters": 45.0}}
    rates = {"prompts": 40, "win_rate": 0.61, "interval": [0.52, 0.7]}
    words = win_rate_in_words({**lengths, "oracle": rates, "judge": rates | {"win_rate": 0.5, "interval": [0.4, 0.6]}})
    assert "61.0 % by the oracle that it was trained on (95 % interval 52.0 – 70.0: better)" in words
    assert "50.0 % by a judge that it was not trained on (95 % interval 40.0 – 60.0: not told apart" in words
    assert words.endswith("on 40 prompts. Its responses have 45 characters, at first 30.")
    assert ": worse)" in win_rate_in_words({**lengths, "oracle": rates | {"interval": [0.1, 0.4]}})
    assert "a hint, and no verdict" in win_rate_in_words({**lengths, "oracle": rates | {"prompts": 4}})
    assert "nobody judged it" in win_rate_in_words({**lengths, "oracle": {"win_rate": None}})


def test_the_report_shows_iteration_100_behind_99(measured):
    metrics = json.loads((measured / "iteration-01" / "metrics.json").read_text())
    for number in (100, 99):
        write_json(measured / f"iteration-{number:02d}" / "metrics.json", metrics | {"iteration": number})
    write_report(measured)
    rows = re.findall("<tr><td>([0-9]+)</td>", (measured / "report.html").read_text())
    numbers = [int(number) for number in rows]
    assert numbers[-4:] == [1, 2, 99, 100]


@pytest.fixture
def samples(tmp_path):
    prompts = [Prompt("81", "Why?", (1, 2)), Prompt("82", [{"role": "user", "content": "How?"}], (1, 3))]
    rows = [
        Response(
            prompt.id, prompt.text, number, prompt.token_ids, (5, 6), "text 2", finished=True, sampler_logprob=-1.0
        )
        for prompt in prompts
        for number in range(2)
    ]
    write_rows(tmp_path / "samples.parquet", rows, Response)
    return tmp_path / "samples.parquet"


def test_answers_go_out_in_the_layout_of_alpaca_eval(samples, tmp_path):
    assert export_answers(samples, tmp_path / "out.json", layout="alpaca_eval", name="mine") == 2
    first = {"dataset": "paragone", "instruction": "Why?", "output": "text 2", "generator": "mine"}
    assert json.loads((tmp_path / "out.json").read_text())[0] == first


def test_answers_go_out_in_the_layouts_of_arena_hard_and_mt_bench(samples, tmp_path):
    export_answers(samples, tmp_path / "arena.jsonl", layout="arena-hard", name="mine")
    arena = [json.loads(line) for line in (tmp_path / "arena.jsonl").read_text().splitlines()]
    assert arena[1]["uid"] == "82"
    assert arena[1]["messages"][0] == {"role": "user", "content": "How?"}
    assert arena[1]["messages"][1] == {"role": "assistant", "content": {"answer": "text 2"}}
    assert arena[1]["metadata"] == {"token_len": 2}

    export_answers(samples, tmp_path / "mt.jsonl", layout="mt-bench", name="mine")
    mt = [json.loads(line) for line in (tmp_path / "mt.jsonl").read_text().splitlines()]
    assert mt[0]["question_id"] == 81
    assert mt[0]["choices"] == [{"index": 0, "turns": ["text 2"]}]
    with pytest.raises(RecipeError, match="must be one of alpaca_eval, arena-hard, mt-bench"):
        export_answers(samples, tmp_path / "x", layout="other", name="mine")
