"""Policy recipes: what is refused before anything runs, and that every shipped one loads and plans."""

import json
from pathlib import Path

import pytest

from paragone_evaluation.readers import Prompt, read_prompts
from paragone_training.errors import RecipeError
from paragone_training.policy.methods.method import describe
from paragone_training.policy.model.weights import load_tokenizer
from paragone_training.policy.passes import PairPasses
from paragone_training.policy.plan import describe_plan
from paragone_training.policy.recipe import PolicyRecipe, load_policy_recipe
from paragone_training.policy.rows import TrainingPair, deal
from paragone_training.policy.run_prompts import render
from paragone_training.policy.targets import most_pairs
from paragone_training.settings import parse
from tests.corpora import stand_in
from tests.training.policy.tiny_policy import LOSSES, recipe, tables, write_prompts

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "training" / "recipes" / "policy"
PAIR = TrainingPair((1,), (2,), (3,), (1.0,) * 7)
SHIPPED = sorted(path for path in FOLDER.glob("*.toml") if path.stem != "mini-policy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__tau": 0.7}, r"tau must lie in \[0, eta\] = \[0, 0.5\], not 0.7: raise eta"),
        ({"loss__step": 1.0}, r"inpo has no loss.step; its numbers are eta, tau"),
        ({"loss": {"eta": 1.0}}, "inpo needs loss.tau"),
        ({"loss__label_smoothing": 0.1}, "loss.label_smoothing is for dpo"),
        ({"sampling__responses": 1}, "sampling.responses is 1; a preference needs at least 2"),
        ({"sampling__temprature": 1.0}, r"unknown key 'sampling.temprature'; did you mean 'temperature'\?"),
        ({"sampling__top_p": 0.0}, r"sampling.top_p is 0.0; it must lie in \(0, 1\]"),
        ({"sampling__temperature": 0.0}, "sampling.temperature is 0.0; it must be positive"),
        ({"training__pairs_per_step": 3}, "training.pairs_per_step 3 is no multiple of pairs_per_pass 2"),
        ({"training__schedule_epochs": 0.5}, "training.schedule_epochs 0.5 is below epochs 1.0"),
        ({"training__iterations": 0}, "training.iterations is 0; it must be at least 1"),
        ({"targets__win_rates": "without-self"}, "targets.win_rates is for sppo and gpo"),
        ({"reference__policy": "every-n"}, "reference.every says how often"),
        ({"oracle": {}}, r"\[oracle\] needs either url"),
        ({"oracle__serve": "builtin:mini-bradley-terry"}, r"\[oracle\] needs either url"),
        ({"data": {"prompts": []}}, "data.prompts is empty"),
        ({"output__adapters": True}, r"output.adapters are those of \[lora\]"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_with_value_limit_and_remedy(changes, message):
    with pytest.raises(RecipeError, match=message):
        parse(PolicyRecipe, tables("inpo", Path("p"), Path("q"), None, **changes))


def test_an_unknown_method_is_refused():
    with pytest.raises(RecipeError, match="method is 'ppo'; it must be one of sppo, gpo, inpo"):
        parse(PolicyRecipe, tables("inpo", Path("p"), Path("q"), None) | {"method": "ppo"})


def test_dpo_has_no_soft_label_and_no_tie():
    with pytest.raises(RecipeError, match="dpo has no soft labels"):
        parse(PolicyRecipe, tables("dpo", Path("p"), Path("q"), None, targets__labels="soft"))
    with pytest.raises(RecipeError, match="dpo has no label for a tie"):
        parse(PolicyRecipe, tables("dpo", Path("p"), Path("q"), None, targets__ties="keep"))


@pytest.mark.parametrize("method", ["sppo", "gpo"])
def test_methods_that_regress_single_responses_start_from_the_previous_policy(method):
    with pytest.raises(RecipeError, match=r"set reference\.policy = 'previous'"):
        parse(PolicyRecipe, tables(method, Path("p"), Path("q"), None, reference={"policy": "initial"}))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_policy_recipe_loads_and_plans(path, tmp_path):
    fetched = "policy_prompts.jsonl" in path.read_text(encoding="utf-8")
    rows = [{"prompt": f"What is {number}?", "split": "train" if number < 80 else "test"} for number in range(90)]
    data = stand_in(tmp_path, policy_prompts=rows) if fetched else None
    loaded = load_policy_recipe(path, data=data)
    if Path(loaded.data.prompts[0]).name == "prompts.example.jsonl":
        # A place for the prompts of the published run; here are as many as an iteration gets.
        write_prompts(tmp_path / "prompts.jsonl", train=loaded.data.per_iteration or 100, test=0)
        loaded = load_policy_recipe(path, [f"data.prompts=['{tmp_path / 'prompts.jsonl'}']"])
    plan = describe_plan(loaded, offline=True)
    header = path.read_text(encoding="utf-8").split("[", 1)[0]
    assert all(f"# {word}" in header for word in ("Hardware", "Time", "Command", "Expected"))
    assert "optimiser steps" in plan
    assert "tables of" in plan


@pytest.mark.parametrize("per_iteration", [0, 1, 4, 6, 7, 100000])
@pytest.mark.parametrize("selection", ["all", "disjoint"])
def test_a_plan_counts_what_a_run_deals(per_iteration, selection, policy_folder, prompts_file):
    made = recipe(
        "egpo",
        policy_folder,
        prompts_file,
        data__per_iteration=per_iteration,
        targets__pairs=selection,
        sampling__responses=4,
        training__pairs_per_step=2,
        training__pairs_per_pass=2,
    )
    prompts = read_prompts(made.data.prompts, split="train")
    hands = [deal(prompts, iteration=t, per_iteration=per_iteration, seed=0) for t in (1, 2)]
    pairs = len(hands[0]) * most_pairs(4, selection)
    steps = len(PairPasses([PAIR] * pairs, size=2, step=2, pad_id=0, seed=0))  # a step is one pass here

    plan = describe_plan(made, offline=True)
    assert f"6 prompts, {len(hands[0])} an iteration, 0 held out" in plan
    assert f"{2 * 4 * sum(map(len, hands))} responses in 4 sampling rounds" in plan
    assert f"at most {pairs} pairs an iteration; {steps} optimiser steps a training step" in plan
    assert f"4 training steps, {4 * steps} optimiser steps in all" in plan


def test_a_plan_refuses_prompts_that_cannot_fill_a_step(policy_folder, prompts_file):
    with pytest.raises(RecipeError, match=r"6 prompts an iteration: 18 pairs cannot fill the 32 passes of a step"):
        describe_plan(recipe("inpo", policy_folder, prompts_file, training__pairs_per_step=64), offline=True)


def test_there_are_recipes_for_the_published_settings():
    assert {path.stem for path in SHIPPED} >= {
        "sppo-mistral-7b",
        "sppo-llama-3-8b",
        "sppo-gemma-2-9b",
        "inpo-llama-3-8b-sft",
        "gpo-llama-3-8b",
        "everyday-sppo",
        "mini-sppo",
        "mini-inpo",
    }


def test_a_plan_counts_responses_oracle_calls_and_steps(policy_folder, prompts_file):
    plan = describe_plan(recipe("egpo", policy_folder, prompts_file))
    # 2 iterations of 2 rounds over 6 prompts, 3 responses and so 3 pairs each
    assert "72 responses in 4 sampling rounds, at most 8 tokens each" in plan
    assert "24 tables of 3×3 asked of the oracle: 72 passes" in plan
    assert "at most 18 pairs an iteration; 5 optimiser steps a training step" in plan
    assert "4 training steps, 20 optimiser steps in all" in plan
    assert "One model is in memory" in plan


@pytest.mark.parametrize(("warmup", "idle"), [(0.1, True), (0.0, False)])
def test_a_plan_says_what_the_warm_up_takes_of_few_steps(policy_folder, prompts_file, warmup, idle):
    plan = describe_plan(recipe("egpo", policy_folder, prompts_file, training__warmup=warmup))
    said = "in all; the first of the 5 has learning rate 0 by the warm-up (training.warmup = 0 uses it)"
    assert (said in plan) == idle


def test_pairs_of_a_prompt_by_selection():
    assert [most_pairs(5, one) for one in ("all", "disjoint", "best-versus-worst")] == [10, 2, 1]


def test_a_policy_without_a_chat_template_is_refused(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template: choose an instruction-tuned model"):
        render([Prompt("a", "Hello?")], tokenizer, longest=10)


def test_a_prompt_over_the_context_is_refused_by_name(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    with pytest.raises(RecipeError, match=r"prompt 'long' has \d+ tokens; the context leaves 10 beside"):
        render([Prompt("long", "What is it? " * 30)], tokenizer, longest=10)


def test_messages_and_text_render_alike(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    messages = [{"role": "user", "content": "Go on"}]
    one, two = render([Prompt("a", "Go on"), Prompt("b", messages)], tokenizer, longest=50)
    assert one.token_ids == two.token_ids
    assert two.text == '[{"role": "user", "content": "Go on"}]'


def test_a_row_s_tools_reach_the_template_and_make_another_prompt(policy_folder, tmp_path):
    tools = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "Go"}, {"prompt": "Go", "tools": tools})))
    plain, tooled = read_prompts([path], split="train")
    assert (plain.tools, tooled.tools) == (None, tools)

    tokenizer = load_tokenizer(str(policy_folder))
    tokenizer.chat_template = "{% if tools %}{{ tools[0].function.name }} {% endif %}{{ messages[0].content }}"
    one, two = render([plain, tooled], tokenizer, longest=50)
    assert tokenizer.decode(one.token_ids).strip() == "Go"
    assert tokenizer.decode(two.token_ids).strip() == "weather Go"


def test_iterations_get_disjoint_prompts_until_all_were_used():
    prompts = [Prompt(str(number), f"{number}?") for number in range(7)]
    dealt = [deal(prompts, iteration=t, per_iteration=3, seed=1) for t in (1, 2, 3)]
    first = [prompt.id for part in dealt for prompt in part][:7]

    assert sorted(first) == [str(number) for number in range(7)]
    assert [len(part) for part in dealt] == [3, 3, 3]
    assert deal(prompts, iteration=2, per_iteration=3, seed=1) == dealt[1]
    assert deal(prompts, iteration=5, per_iteration=0, seed=1) == prompts


def test_every_method_of_a_recipe_describes_itself():
    for method in LOSSES:
        assert describe(recipe(method, Path("p"), Path("q")).objective).startswith(method)


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ({"comand": "vllm serve"}, r"unknown key 'servers.comand'; did you mean 'command'\?"),
        ({}, "servers.reload is 'restart': servers.command has to say what is run"),
        ({"command": "vllm serve {model}"}, r"servers.command needs \{model\} and \{port\}"),
        (
            {"command": "vllm serve {modell} --port {port}"},
            r"KeyError\('modell'\); known are \{model\}, \{port\}, \{index\}",
        ),
        ({"command": "vllm serve '{model} --port {port}"}, "No closing quotation"),
        ({"command": "x {model} {port}", "urls": ["http://a"]}, "servers.urls are not this run's to restart"),
        ({"reload": "update"}, "servers.reload is 'update': servers.urls has to name servers that run"),
        (
            {"reload": "update", "urls": ["http://a"], "command": "x"},
            "servers.command is not run with reload",
        ),
        ({"reload": "update", "urls": ["http://a"], "count": 2}, "servers.count is for reload = 'restart'"),
        ({"reload": "command", "urls": ["http://a"]}, "servers.reload is 'command': servers.command has to say"),
        (
            {"reload": "command", "urls": ["http://a"], "command": "x {model}", "phases": "colocated"},
            "needs servers that this run can stop or put to sleep",
        ),
        ({"reload": "rsync"}, "servers.reload is 'rsync'; it must be one of restart, update, command"),
        ({"command": "x {model} {port}", "tries": 0}, "servers.tries is 0; it must be at least 1"),
        (
            {"command": "x {model} {port}", "request_timeout_s": 0},
            "request_timeout_s is 0.0; it must be positive",
        ),
        ({"command": "x {model} {port}", "patience_s": -1}, "servers.patience_s is -1.0; it must be 0 or more"),
    ],
)
def test_servers_that_cannot_be_run_are_refused(servers, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        recipe("inpo", tmp_path, tmp_path / "prompts.jsonl", servers=servers)


def test_the_plan_says_who_draws(policy_folder, prompts_file):
    arguments = ("inpo", policy_folder, prompts_file)
    assert "sampled by the processes of the run" in describe_plan(recipe(*arguments))
    command = "vllm serve {model} --port {port}"
    restarted = describe_plan(recipe(*arguments, servers={"command": command, "count": 2, "phases": "colocated"}))
    assert "2 vllm server(s), colocated, started for each iterate: vllm serve MODEL --port PORT" in restarted
    assert "'request_timeout_s': 600.0" in restarted
    updated = describe_plan(recipe(*arguments, servers={"urls": ["http://a:1"], "reload": "update", "kind": "sglang"}))
    assert "1 sglang server(s), disaggregated, that read each iterate: http://a:1" in updated


def test_a_servers_key_file_is_relative_to_the_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    text = 'method = "inpo"\n[policy]\nsource = "x"\n[data]\nprompts = ["p"]\n[oracle]\nurl = "http://a"\n'
    text += "[loss]\neta = 0.5\ntau = 0.1\n"
    path.write_text(text + '[servers]\nreload = "update"\nurls = ["http://b"]\napi_key_file = "key"\n')
    loaded = load_policy_recipe(path).servers
    assert loaded is not None
    assert loaded.api_key_file == str(tmp_path / "key")


def test_prompts_that_do_not_fit_are_cut_from_the_left_where_that_is_asked_for(policy_folder):
    tokenizer, notes = load_tokenizer(str(policy_folder)), list[str]()
    long = "go on " * 40 + "What is it?"
    turns = [
        {"role": "system", "content": "tell me every year"},
        {"role": "user", "content": "water bottles " * 20},
        {"role": "assistant", "content": "teams"},
        {"role": "user", "content": "kids work"},
        {"role": "assistant", "content": "learn"},
        {"role": "user", "content": "What is it?"},
    ]
    prompts = [Prompt("a", "Hi"), Prompt("b", long), Prompt("c", turns)]
    short, text, talk = render(prompts, tokenizer, longest=40, notes=notes, cut=True)

    assert short.content == "Hi"
    # As little as makes it fit: one character more would be too long.
    assert isinstance(text.content, str)
    assert long.endswith(text.content)
    assert len(text.token_ids) <= 40
    assert len(render([Prompt("d", long[-len(text.content) - 1 :])], tokenizer, longest=60)[0].token_ids) > 40
    # A whole turn went, the system message and the last one did not.
    assert talk.content == [turns[0], *turns[3:]]
    assert notes == ["2 of 3 prompts have more than 40 tokens, cut from the left: b, c"]


def test_of_a_prompt_that_is_cut_the_system_message_loses_text_before_the_user(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    turns = [{"role": "system", "content": "tell me " * 40}, {"role": "user", "content": "What is it?"}]
    (cut,) = render([Prompt("a", turns)], tokenizer, longest=40, cut=True)
    assert cut.content[1] == turns[1]
    assert turns[0]["content"].endswith(cut.content[0]["content"])
    assert 0 < len(cut.content[0]["content"]) < 100
    with pytest.raises(
        RecipeError, match=r"what cannot be cut has more than the 3 that sampling.max_new_tokens leaves"
    ):
        render([Prompt("a", turns)], tokenizer, longest=3, cut=True)


def test_prompts_that_do_not_fit_are_left_out_and_counted_where_that_is_asked_for(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    notes: list[str] = []
    (prompt,) = render([Prompt("a", "Hi"), Prompt("long", "What is it? " * 30)], tokenizer, longest=40, notes=notes)
    assert (prompt.id, notes) == ("a", ["1 of 2 prompts have more than 40 tokens, left out: long"])
    with pytest.raises(RecipeError, match="no prompt fits the 2 tokens"):
        render([Prompt("a", "Hi")], tokenizer, longest=2, notes=[])
