"""What is wrong in a recipe is said before anything is loaded or sampled, in a run and in its dry run alike."""

import re

import pytest

from paragone_training.errors import RecipeError
from paragone_training.policy.checks import check_recipe
from paragone_training.policy.plan import describe_plan
from paragone_training.policy.train_policy import train_policy
from tests.training.policy.tiny_policy import recipe

WRONG = [
    ({"training__optimiser": "adam"}, "training.optimiser is 'adam': adam is not a valid OptimizerNames"),
    ({"training__schedule": "slow"}, "training.schedule is 'slow'"),
    ({"policy__attention": "flash"}, "policy.attention 'flash'"),
    ({"oracle__url": "localhost:8000"}, "oracle.url: url='localhost:8000' is not an http:// or https:// address"),
    ({"oracle__api_key_file": "/nowhere/key"}, "oracle.api_key_file /nowhere/key cannot be read"),
    ({"oracle__url": None, "oracle__serve": "builtin:nothing"}, "there is no such built-in model"),
    ({"oracle__url": None, "oracle__serve": "./nowhere"}, "no folder here and no Hugging Face id"),
    ({"output__trackers": ["paper"]}, "output.trackers names 'paper'"),
    ({"lora": {"rank": 2, "targets": ["q_proj", "w1"]}}, "lora.targets names 'w1'; the policy's linear layers are"),
    ({"lora": {"targets": ["lm_head"]}, "output": {"adapters": True}}, "output.adapters cannot keep one of lm_head"),
    ({"sampling__stop": ["###", ""]}, "sampling.stop names ''"),
    ({"training__warmup": 100.0}, "the warm-up takes 100 steps, and the run has"),
]


def test_prompts_that_are_trained_on_and_evaluated_with_are_refused(tmp_path, policy_folder, prompts_file):
    twice = {"evaluation": {"prompts": [str(prompts_file)], "split": "train", "limit": 2}}
    made = recipe("inpo", policy_folder, prompts_file, **twice)
    for work in (lambda: describe_plan(made, offline=True), lambda: train_policy(made, tmp_path / "run")):
        with pytest.raises(RecipeError, match=r"2 of 2 prompts of \[evaluation\] are trained on \(p0, p1\)"):
            work()


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_dry_run_refuses_what_a_run_would_stumble_over(changes, message, policy_folder, prompts_file):
    with pytest.raises(RecipeError, match=re.escape(message)):
        describe_plan(recipe("inpo", policy_folder, prompts_file, **changes))


def test_a_run_refuses_it_before_its_folder_holds_anything(tmp_path, policy_folder, prompts_file):
    with pytest.raises(RecipeError, match=r"training\.optimiser"):
        train_policy(recipe("inpo", policy_folder, prompts_file, training__optimiser="adam"), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, policy_folder, prompts_file):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="no folder that can be written: set --output"):
        check_recipe(recipe("inpo", policy_folder, prompts_file), tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_weights_in_half_precision_are_refused(name, policy_folder, prompts_file):
    for setting in ("policy__dtype", "output__dtype"):
        with pytest.raises(RecipeError, match=r"dtype is .* must be .*float32.*bfloat16"):
            recipe("inpo", policy_folder, prompts_file, **{setting: name})
