"""What a run would do, without doing it: responses, oracle calls, optimiser steps, memory."""

import shlex
from collections.abc import Sequence
from typing import Any

import torch

from paragone_evaluation.readers import read_prompts
from paragone_training.errors import RecipeError
from paragone_training.policy.gradient import optimiser_steps
from paragone_training.policy.model.gpu_memory import plan_memory
from paragone_training.policy.model.weights import context_of, load_tokenizer, policy_config
from paragone_training.policy.recipe import PolicyRecipe, command_line
from paragone_training.policy.rows import dealt, render
from paragone_training.policy.targets import most_pairs

__all__ = ["describe_plan"]


def describe_plan(recipe: PolicyRecipe, *, offline: bool = False, ranks: Sequence[int] = (1,)) -> str:
    """Return the plan of a run in words.

    Args:
        offline: leave out what needs the policy's files: whether prompts fit, and memory.
        ranks: numbers of processes that share the model (FSDP2), each with its own line of memory; 1 shares nothing.

    Raises:
        RecipeError: if the policy's files cannot be loaded, or a prompt does not fit.
        DataError: if prompts cannot be read.
    """
    prompts = read_prompts(recipe.data.prompts, split=recipe.data.split)
    held_out = []
    if recipe.evaluation.prompts:
        held_out = read_prompts(recipe.evaluation.prompts, split=recipe.evaluation.split)
        held_out = held_out[: recipe.evaluation.limit or None]
    tables = recipe.model_dump()
    adapters = tables.pop("lora")
    lines = [f"{name} = {value!r}" for name, value in tables.items()]
    lines += [f"lora = {adapters!r}" if adapters else "no adapters: all weights are trained", ""]
    if not offline:
        tokenizer = load_tokenizer(recipe.policy.source, recipe.policy.revision)
        config = policy_config(recipe.policy.source, recipe.policy.revision)
        longest = context_of(config, recipe.policy.max_length) - recipe.sampling.max_new_tokens
        rendered = render([*prompts, *held_out], tokenizer, longest=longest)
        prompt = max(len(prompt.token_ids) for prompt in rendered)
    lines += _work(recipe, len(prompts), len(held_out))
    if not offline:
        lines += _memory(recipe, config, prompt, ranks)
    return "\n".join(lines)


def _work(recipe: PolicyRecipe, prompts: int, held_out: int) -> list[str]:
    count = dealt(prompts, recipe.data.per_iteration)
    sampling, training = recipe.sampling, recipe.training
    pairs = count * most_pairs(sampling.responses, recipe.targets.pairs)
    try:
        optimised, laid_out = optimiser_steps(pairs, training)
    except ValueError as error:
        raise RecipeError(f"data.prompts gives {count} prompts an iteration: {error}") from error
    # The method says how many rounds and steps each iteration has; the first may differ.
    iterations = [recipe.objective.steps(iteration) for iteration in range(1, training.iterations + 1)]
    rounds = sum(len({step.round for step in steps}) for steps in iterations)
    steps = sum(map(len, iterations))
    # The initial policy answers once; every iterate is compared with the same answers.
    evaluated = held_out * recipe.evaluation.responses
    judges = 1 + bool(recipe.evaluation.judge_url or recipe.evaluation.judge_serve or recipe.evaluation.judge_model)
    responses = rounds * count * sampling.responses
    lines = [
        f"{prompts} prompts, {count} an iteration, {held_out} held out",
        f"{responses} responses in {rounds} sampling rounds, at most {sampling.max_new_tokens} tokens each, sampled by "
        f"{_samplers(recipe)}",
        f"{rounds * count} tables of {sampling.responses}×{sampling.responses} asked of the oracle: {responses} passes "
        "of a kind that reads one response, no pass for the comparisons",
        f"at most {pairs} pairs an iteration; {optimised} optimiser steps a training step on a schedule of {laid_out}, "
        f"{steps} training steps, {steps * optimised} optimiser steps in all",
    ]
    if held_out:
        lines.append(
            f"evaluation: {evaluated * (1 + training.iterations)} responses, {judges} judge(s) asked for "
            f"{held_out * training.iterations} tables each"
        )
    return lines


def _samplers(recipe: PolicyRecipe) -> str:
    servers = recipe.servers
    if servers is None:
        return "this process"
    if servers.reload == "restart":
        example = shlex.join(command_line(servers.command or "", model="MODEL", port="PORT", index=0))
        return f"{servers.count} {servers.kind} server(s), {servers.phases}, started for each iterate: {example}"
    how = "that read each iterate" if servers.reload == "update" else f"given each iterate by {servers.command}"
    return f"{len(servers.urls)} {servers.kind} server(s), {servers.phases}, {how}: {', '.join(servers.urls)}"


def _memory(recipe: PolicyRecipe, config: Any, prompt: int, ranks: Sequence[int]) -> list[str]:
    lines, tokens = [], prompt + recipe.sampling.max_new_tokens
    for count in ranks:
        plan = plan_memory(recipe, config, tokens=tokens, prompt=prompt, shards=count)
        parts = {
            "weights": plan.weights,
            "gathered layers": plan.gathered,
            "gradients": plan.gradients,
            "optimiser": plan.optimiser,
            "activations": plan.activations,
            "logits of a chunk": plan.logits,
        }
        owner = "one process" if count == 1 else f"each of {count} processes (FSDP2)"
        figures = ", ".join(f"{name} {value / 1e9:.3f}" for name, value in parts.items() if value)
        lines.append(f"memory of {owner}, GB: {plan.total / 1e9:.3f} = {figures}")
    how = "packed, prompts once" if plan.padded is None else f"padded: {plan.padded}"
    # Iterates stay on disk: a later one may be the reference, and a run goes on from any of them.
    disk = plan.model_weights * getattr(torch, recipe.output.dtype).itemsize / 1e9
    return [
        f"{plan.model_weights / 1e6:,.1f} M weights; a pass is {2 * recipe.training.pairs_per_pass} sequences of "
        f"{tokens} tokens at most, {plan.rows} together ({how}). One model is in memory",
        *lines,
        f"disk: {disk:.3f} GB for each iterate that a training step writes",
    ]
