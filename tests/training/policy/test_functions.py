"""An oracle that is a function: what it answers, and that nothing else becomes a number."""

import json
import math

import numpy as np
import pytest

from paragone_evaluation.readers import Prompt
from paragone_training.errors import OracleGoneError, OracleReplacedError, RecipeError, RunError
from paragone_training.policy.functions import FunctionOracle, function_of, name_of
from paragone_training.policy.plan import describe_plan
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows import Response, read_answers, read_json_file, read_rows
from paragone_training.policy.train_policy import train_policy
from paragone_training.settings import parse
from tests.training.policy.tiny_policy import recipe, tables

HERE = "tests.training.policy.test_functions"
GROUP = (Prompt("p", "What is it?"), ["a", "bbb"])


def longer(_prompt, responses):
    """Rewards: a logit for every four characters."""
    return [len(response) / 4 for response in responses]


async def position(_prompt, responses):
    """Probabilities of a judge that likes what it is shown first."""
    return [[0.7] * len(responses) for _ in responses]


def answers_nothing(_prompt, _responses):
    raise KeyError("no verdict")


def answers_nan(_prompt, responses):
    return [math.nan for _ in responses]


def answers_none(_prompt, responses):
    return [[0.5, None] for _ in responses]


def answers_too_much(_prompt, responses):
    return [[1.5] * len(responses) for _ in responses]


def answers_one(_prompt, _responses):
    return 0.5


def is_away(_prompt, _responses):
    raise ConnectionError("judge is restarting")


def takes_one(_prompt):
    return []


def answer(name, **options):
    with FunctionOracle(f"{HERE}:{name}", **options) as oracle:
        (found,) = oracle.submit([GROUP]).result()
    return found


def test_rewards_become_probabilities_of_their_difference():
    expected = 1 / (1 + math.exp(-0.5))
    assert answer("longer").raw == pytest.approx(np.array([[0.5, 1 - expected], [expected, 0.5]]))


def test_a_table_is_taken_in_both_orders_as_it_is():
    assert answer("position").raw.tolist() == [[0.5, 0.7], [0.7, 0.5]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answers_nothing", "failed for prompt 'p': KeyError"),
        ("answers_nan", "each must be a finite number: raise an error instead"),
        ("answers_none", r"each must be a probability in \[0, 1\]"),
        ("answers_too_much", r"each must be a probability in \[0, 1\]"),
        ("answers_one", "2 responses have 2 rewards or 2×2 probabilities"),
    ],
)
def test_what_is_no_answer_stops_the_run(name, message):
    with pytest.raises(RunError, match=message):
        answer(name)


def test_a_judge_that_is_away_is_asked_again_until_patience_ends():
    with pytest.raises(OracleGoneError, match=r"gave no answer to prompt 'p'.*judge is restarting.*mend it and resume"):
        answer("is_away", patience_s=0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://127.0.0.1:8000", "must be module:function or file.py:function"),
        (f"{HERE}:nothing", "has no function nothing"),
        ("no_such_module:judge", "no_such_module cannot be imported"),
        ("/nowhere/judge.py:judge", "/nowhere/judge.py cannot be imported"),
        (f"{HERE}:takes_one", "must take a prompt and its responses"),
    ],
)
def test_a_name_that_leads_to_no_judge_is_refused_before_anything_runs(name, message, policy_folder, prompts_file):
    with pytest.raises(RecipeError, match=message):
        describe_plan(recipe("inpo", policy_folder, prompts_file, oracle={"function": name}))


def test_a_function_in_a_recipe_is_its_name(policy_folder, prompts_file):
    made = recipe("inpo", policy_folder, prompts_file, oracle=longer)
    assert made.oracle is not None
    assert made.oracle.function == name_of(longer) == f"{HERE}:longer"
    with pytest.raises(RecipeError, match="which no name leads to"):
        recipe("inpo", policy_folder, prompts_file, oracle=lambda _prompt, responses: [0.0] * len(responses))
    with pytest.raises(RecipeError, match="those of a service: remove them beside function"):
        recipe("inpo", policy_folder, prompts_file, oracle={"function": f"{HERE}:longer", "model": "bt"})


def test_a_file_is_found_beside_the_recipe(tmp_path):
    (tmp_path / "judge.py").write_text("def judge(prompt, responses):\n    return [0.0 for _ in responses]\n")
    made = parse(PolicyRecipe, tables("inpo", tmp_path, tmp_path, None, oracle="judge.py:judge"), folder=tmp_path)
    assert made.oracle is not None
    assert function_of(made.oracle.function or "")("p", ["a"]) == [0.0]


def test_a_run_is_judged_by_a_function_in_training_and_evaluation_and_resumes_with_the_same_one_only(
    tmp_path, policy_folder, prompts_file
):
    evaluated = {"prompts": [str(prompts_file)]}
    made = recipe("inpo", policy_folder, prompts_file, oracle=longer, evaluation=evaluated, training__iterations=1)
    assert f"6 calls of {HERE}:longer" in describe_plan(made)
    train_policy(made, tmp_path)
    folder = tmp_path / "iteration-01" / "round-1"
    responses = [row.text for row in read_rows(folder / "samples.parquet", Response) if row.prompt_id == "p3"]
    (raw,) = [found.raw for found in read_answers(folder / "oracle.parquet") if found.prompt_id == "p3"]
    lengths = np.array([len(text) / 4 for text in responses])
    assert raw == pytest.approx(1 / (1 + np.exp(lengths[None, :] - lengths[:, None])))
    assert read_json_file(tmp_path / "evaluation-01" / "summary.json")["oracle"]["prompts"] == 3

    known = read_json_file(tmp_path / "oracle.json")
    assert known["model"] == f"{HERE}:longer"
    (tmp_path / "oracle.json").write_text(json.dumps(known | {"fingerprint": "0" * 64}))
    with pytest.raises(OracleReplacedError, match="put the file back and resume"):
        train_policy(made, tmp_path, resume=True)
