"""What a run would do, without doing it: responses, oracle calls, optimiser steps, and the memory of a gradient step.

Memory is that of each of N processes, from a dry run on the meta device, where nothing is allocated. T tokens of a
sequence, P of a prompt. Estimated: weights, gradients, optimiser, saved activations, logits of a chunk. Not estimated:
the libraries themselves, the allocator's gaps, communication buffers, and sampling, which comes before.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from paragone.addresses import without_userinfo
from paragone_evaluation.readers import Prompt
from paragone_models.packing.attention import packed
from paragone_models.packing.segments import segments_attention
from paragone_training.data import PromptGroup
from paragone_training.errors import RecipeError
from paragone_training.policy.checks import check_recipe
from paragone_training.policy.gradient import check_schedule
from paragone_training.policy.model.logprobs import packed_row, packed_states, unpacked
from paragone_training.policy.model.weights import context_of, load_tokenizer, policy_config
from paragone_training.policy.passes import optimiser_steps
from paragone_training.policy.recipe import PolicyRecipe, PolicyTrainingSection, command_line
from paragone_training.policy.rows import deal
from paragone_training.policy.run_prompts import read_run_prompts
from paragone_training.policy.targets import most_pairs
from paragone_training.saved_activations import fused_attention, kept_bytes, meta_attention, saved_bytes

__all__ = ["MemoryPlan", "describe_plan", "plan_memory"]


_OPTIMISER_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "rmsprop": 1, "sgd": 0}
# A chunk's float32 logits, their exponentials and their gradient, in the backward pass.
_LOGITS_ALIVE = 3


def describe_plan(
    recipe: PolicyRecipe, folder: Path = Path("runs"), *, offline: bool = False, ranks: Sequence[int] = (1,)
) -> str:
    """Return the plan of a run in words.

    Args:
        folder: where the run would go.
        offline: leave out what needs the policy's files: whether prompts fit, and memory.
        ranks: numbers of processes that share the model (FSDP2), each with its own line of memory; 1 shares nothing.

    Raises:
        RecipeError: if the policy's files cannot be loaded, a prompt does not fit, or ``check_recipe`` refuses.
        DataError: if prompts cannot be read.
    """
    check_recipe(recipe, folder, offline=offline)
    read = read_run_prompts(recipe)
    tables = recipe.model_dump()
    adapters = tables.pop("lora")
    lines = [f"{name} = {value!r}" for name, value in tables.items()]
    lines += [f"lora = {adapters!r}" if adapters else "no adapters: all weights are trained", ""]
    if not offline:
        tokenizer = load_tokenizer(recipe.policy.source, recipe.policy.revision)
        config = policy_config(recipe.policy.source, recipe.policy.revision)
        context = context_of(config, recipe.policy.max_length)
        read = read.rendered(recipe, tokenizer, context)
        lines += read.notes
        prompt = max(len(prompt.token_ids) for prompt in [*read.prompts, *read.held_out])
    lines += _stored_work(recipe, read.stored) if read.stored else _work(recipe, read.prompts, len(read.held_out))
    if not offline:
        lines += _memory(recipe, config, prompt, ranks)
    return "\n".join(lines)


def _work(recipe: PolicyRecipe, prompts: Sequence[Prompt], held_out: int) -> list[str]:
    # Dealt and not computed: what a plan says is what a run is dealt.
    count = len(deal(prompts, iteration=1, per_iteration=recipe.data.per_iteration, seed=recipe.training.seed))
    sampling, training = recipe.sampling, recipe.training
    pairs = count * most_pairs(sampling.responses, recipe.targets.pairs)
    try:
        optimised, laid_out = optimiser_steps(pairs, training)
    except ValueError as error:
        raise RecipeError(f"data.prompts gives {count} prompts an iteration: {error}") from error
    idle = check_schedule(training, optimised, laid_out)
    # The method says how many rounds and steps each iteration has; the first may differ.
    iterations = [recipe.objective.steps(iteration) for iteration in range(1, training.iterations + 1)]
    rounds = sum(len({step.round for step in steps}) for steps in iterations)
    steps = sum(map(len, iterations))
    # The initial policy answers once; every iterate is compared with the same answers.
    evaluated = held_out * recipe.evaluation.responses
    judges = 1 + bool(recipe.evaluation.judge_url or recipe.evaluation.judge_serve or recipe.evaluation.judge_model)
    responses = rounds * count * sampling.responses
    lines = [
        f"{len(prompts)} prompts, {count} an iteration, {held_out} held out",
        f"{responses} responses in {rounds} sampling rounds, at most {sampling.max_new_tokens} tokens each, sampled by "
        f"{_samplers(recipe)}",
        f"{rounds * count} tables of {sampling.responses}×{sampling.responses} asked of the oracle: "
        + (
            f"{rounds * count} calls of {recipe.oracle.function}"
            if recipe.oracle and recipe.oracle.function
            else f"{responses} passes of a kind that reads one response, no pass for the comparisons"
        ),
        f"at most {pairs} pairs an iteration; {optimised} optimiser steps a training step on a schedule of {laid_out}, "
        f"{steps} training steps, {steps * optimised} optimiser steps in all" + (f"; {idle}" if idle else ""),
    ]
    if recipe.oracle and recipe.oracle.skew_weights:
        weights = [recipe.oracle.skew_weight(iteration) for iteration in range(1, training.iterations + 1)]
        lines.append(
            f"weight of the oracle's cyclic part, by iteration: {', '.join(f'{weight:g}' for weight in weights)}"
        )
    if held_out:
        lines.append(
            f"evaluation: {evaluated * (1 + training.iterations)} responses, {judges} judge(s) asked for "
            f"{held_out * training.iterations} tables each"
        )
    return lines


def _stored_work(recipe: PolicyRecipe, groups: Sequence[PromptGroup]) -> list[str]:
    compared = [{frozenset((label.first, label.second)) for label in group.labels} for group in groups]
    pairs = sum(map(len, compared))
    try:
        optimised, laid_out = optimiser_steps(pairs, recipe.training)
    except ValueError as error:
        raise RecipeError(f"data.pairs gives {pairs} pairs: {error}") from error
    idle = check_schedule(recipe.training, optimised, laid_out)
    return [
        f"{len(groups)} prompts with {sum(len(group.responses) for group in groups)} stored responses; nothing is "
        "sampled, and no oracle is asked for targets",
        f"at most {pairs} pairs; {optimised} optimiser steps on a schedule of {laid_out}"
        + (f"; {idle}" if idle else ""),
    ]


def _samplers(recipe: PolicyRecipe) -> str:
    servers = recipe.servers
    if servers is None:
        return "the processes of the run"
    if servers.reload == "restart":
        example = shlex.join(command_line(servers.command or "", model="MODEL", port="PORT", index=0))
        return f"{servers.count} {servers.kind} server(s), {servers.phases}, started for each iterate: {example}"
    how = "that read each iterate" if servers.reload == "update" else f"given each iterate by {servers.command}"
    urls = ", ".join(map(without_userinfo, servers.urls))
    return f"{len(servers.urls)} {servers.kind} server(s), {servers.phases}, {how}: {urls}"


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
    keep = recipe.output.keep
    kept = f"; those of the last {keep} iterations are kept, and what later ones read" if keep else ""
    return [
        f"{plan.model_weights / 1e6:,.1f} M weights; a pass is {2 * recipe.training.pairs_per_pass} sequences of "
        f"{tokens} tokens at most, {plan.rows} together ({how}). One model is in memory",
        *lines,
        f"disk: {disk:.3f} GB for each iterate that a training step writes{kept}",
    ]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process, at the peak of a gradient step.

    Attributes:
        gathered: with FSDP: the layer at work, the next one, and what belongs to no layer, whole.
        model_weights: number of weights of the whole model.
        rows: tokens of a pass at most, padding counted.
        padded: why passes are padded, or None: they are packed.
    """

    weights: int
    gathered: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    model_weights: int
    rows: int
    padded: str | None

    @property
    def total(self) -> int:
        """Their sum, in bytes."""
        return self.weights + self.gathered + self.gradients + self.optimiser + self.activations + self.logits


def plan_memory(recipe: PolicyRecipe, config: Any, *, tokens: int, prompt: int, shards: int = 1) -> MemoryPlan:
    """Return the memory of a gradient step of one process, on a device of the kind that is here.

    Args:
        tokens: of the longest sequence, T.
        prompt: of the longest prompt, P.
        shards: processes that share weights, gradients and optimiser (FSDP2); 1 shares nothing.
    """
    training = recipe.training
    attention = meta_attention(recipe.policy.attention)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    # A tied output layer is the embeddings under another name.
    weights = sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    trained = _trained(model, recipe)
    itemsize = torch.float32.itemsize  # of the weights; where passes are in bfloat16, layers cast as they go
    computed = torch.bfloat16 if training.bf16 else torch.float32
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]  # noqa: SLF001
    largest = max((sum(weight.numel() for weight in layer.parameters()) for layer in layers), default=weights)
    outside = weights - sum(weight.numel() for layer in layers for weight in layer.parameters())
    # FSDP2 fetches the next layer while one is at work; what belongs to no layer stays whole throughout.
    gathered = (2 * largest + outside) * computed.itemsize if shards > 1 else 0
    rows, saved, padded = _activations(model.to(computed), training, len(layers), tokens=tokens, prompt=prompt)
    states = _OPTIMISER_STATES.get(training.optimiser, 2)
    return MemoryPlan(
        weights=weights * itemsize // shards,
        gathered=gathered,
        gradients=trained * itemsize // shards,
        optimiser=trained * itemsize * states // shards,
        activations=saved,
        logits=_LOGITS_ALIVE * training.chunk_tokens * config.get_text_config().vocab_size * 4,
        model_weights=weights,
        rows=rows,
        padded=padded,
    )


def _activations(
    model: Any, training: PolicyTrainingSection, layers: int, *, tokens: int, prompt: int
) -> tuple[int, int, str | None]:
    """Return the rows of a pass, the bytes that it saves, and why it is padded, or None."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    padded, pairs = unpacked(model.config, training.batching, device), training.pairs_per_pass
    if padded is None:
        rows = pairs * (2 * tokens - prompt)
        saved = _saved_bytes_packed(model, pairs=pairs, tokens=tokens, prompt=prompt)
    else:
        rows = 2 * pairs * tokens
        saved = saved_bytes(model, sequences=2 * pairs, tokens=tokens)
    if training.gradient_checkpointing:
        # Each layer keeps its input, and one layer at a time is computed again.
        inputs = layers * rows * model.config.get_text_config().hidden_size * model.dtype.itemsize
        saved = inputs + saved // max(layers, 1)
    return rows, saved, padded


def _saved_bytes_packed(model: Any, *, pairs: int, tokens: int, prompt: int) -> int:
    """Return the bytes that a packed forward pass of the backbone saves for its backward pass, weights left out."""
    # Tokens that say whose they are: nothing is shared but a pair's prompt.
    items = [([3 * pair] * prompt, [3 * pair + side] * (tokens - prompt)) for side in (1, 2) for pair in range(pairs)]
    row = packed_row(items)

    def forward() -> Tensor:
        with packed(model.config):
            return packed_states(model.base_model, row, segments_attention(_fused_segment))

    return kept_bytes(model, forward)


def _trained(model: nn.Module, recipe: PolicyRecipe) -> int:
    if recipe.lora is None:
        return sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(recipe.lora.rank * (module.in_features + module.out_features) for module in linear[:-1])


def _fused_segment(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """Attend as a fused kernel does to one node of a packed row."""
    return fused_attention(query, key, value, attn_mask)
