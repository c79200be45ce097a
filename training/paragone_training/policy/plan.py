"""What a run would do, without doing it: responses, oracle calls, optimiser steps, memory."""

from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from paragone_training.errors import RecipeError
from paragone_training.policy.batches import optimiser_steps
from paragone_training.policy.methods import steps_of
from paragone_training.policy.prompts import read_prompts, render
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.weights import context_of, load_tokenizer, policy_config

__all__ = ["describe_plan", "most_pairs"]

_OPTIMISER_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "rmsprop": 1, "sgd": 0}


def describe_plan(recipe: PolicyRecipe, *, offline: bool = False) -> str:
    """Return the plan of a run in words.

    Args:
        recipe: what would be run.
        offline: leave out what needs the policy's files: whether prompts fit, and memory.

    Raises:
        RecipeError: if the policy's files cannot be loaded, or a prompt does not fit.
        DataError: if prompts cannot be read.
    """
    prompts = read_prompts(recipe.data.prompts, split=recipe.data.split)
    held_out = []
    if recipe.evaluation.prompts:
        held_out = read_prompts(recipe.evaluation.prompts, split=recipe.evaluation.split)
        held_out = held_out[: recipe.evaluation.limit or None]
    lines = [f"{name} = {value!r}" for name, value in asdict(recipe).items() if name not in ("lora",)]
    lines += [f"lora = {asdict(recipe.lora)!r}" if recipe.lora else "no adapters: all weights are trained", ""]
    if not offline:
        tokenizer = load_tokenizer(recipe.policy.source, recipe.policy.revision)
        config = policy_config(recipe.policy.source, recipe.policy.revision)
        longest = context_of(config, recipe.policy.max_length) - recipe.sampling.max_new_tokens
        render([*prompts, *held_out], tokenizer, longest=longest)
    lines += _work(recipe, len(prompts), len(held_out))
    if not offline:
        lines += _memory(recipe, config)
    return "\n".join(lines)


def most_pairs(responses: int, selection: str) -> int:
    """Return how many pairs a prompt gives if no comparison is tied or missing.

    Args:
        responses: K.
        selection: of ``targets.pairs``.
    """
    return {"all": responses * (responses - 1) // 2, "disjoint": responses // 2, "best-versus-worst": 1}[selection]


def _work(recipe: PolicyRecipe, prompts: int, held_out: int) -> list[str]:
    count = min(recipe.data.per_iteration or prompts, prompts) if recipe.data.per_iteration else prompts
    if recipe.data.per_iteration:
        count = recipe.data.per_iteration
    sampling, training = recipe.sampling, recipe.training
    rounds = steps = regressions = 0
    pairs = count * most_pairs(sampling.responses, recipe.targets.pairs)
    try:
        an_iteration, laid_out = optimiser_steps(pairs, training)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    for iteration in range(1, training.iterations + 1):
        planned = steps_of(recipe.method, iteration)
        rounds += len({step.round for step in planned})
        regressions += len(planned)
        steps += len(planned) * an_iteration
    evaluated = held_out * recipe.evaluation.responses
    judges = 1 + bool(recipe.evaluation.judge_url or recipe.evaluation.judge_serve or recipe.evaluation.judge_model)
    responses = rounds * count * sampling.responses
    lines = [
        f"{prompts} prompts, {count} an iteration, {held_out} held out",
        f"{responses} responses in {rounds} sampling rounds, at most {sampling.max_new_tokens} tokens each",
        f"{rounds * count} tables of {sampling.responses}×{sampling.responses} asked of the oracle: {responses} passes "
        "of a kind that reads one response, no pass for the comparisons",
        f"at most {pairs} pairs an iteration; {an_iteration} optimiser steps a regression on a schedule of {laid_out}, "
        f"{regressions} regressions, {steps} steps in all",
    ]
    if held_out:
        lines.append(
            f"evaluation: {evaluated * (1 + training.iterations)} responses, {judges} judge(s) asked for "
            f"{held_out * training.iterations} tables each"
        )
    return lines


def _memory(recipe: PolicyRecipe, config: Any) -> list[str]:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    weights = sum(weight.numel() for weight in model.parameters())
    itemsize = getattr(torch, recipe.policy.dtype).itemsize
    trained = weights
    if recipe.lora:
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        trained = sum(recipe.lora.rank * (module.in_features + module.out_features) for module in linear[:-1])
    states = _OPTIMISER_STATES.get(recipe.training.optimiser, 2)
    model_gb, training_gb = weights * itemsize / 1e9, trained * itemsize * (1 + states) / 1e9
    logits = recipe.training.chunk_tokens * config.get_text_config().vocab_size * 4 / 1e9
    disk = weights * getattr(torch, recipe.output.dtype).itemsize / 1e9
    return [
        f"memory: {weights / 1e6:,.1f} M weights, {model_gb:.3f} GB in {recipe.policy.dtype}; gradients and optimiser "
        f"{training_gb:.3f} GB; logits of a chunk {logits:.3f} GB; activations come on top. One model is in memory",
        f"disk: {disk:.3f} GB for each iterate that a regression writes",
    ]
