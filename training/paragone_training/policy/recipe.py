"""A policy recipe: everything that decides how a policy is trained, one frozen value, checked before anything runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragone_training.errors import RecipeError
from paragone_training.policy.methods.methods import PAIRWISE, Method, method_of
from paragone_training.policy.sampling.servers_check import check_servers
from paragone_training.policy.sections import (
    EvaluationSection,
    MethodName,
    OracleSection,
    PolicyDataSection,
    PolicyLossSection,
    PolicyOutputSection,
    PolicySection,
    PolicyTrainingSection,
    ReferenceSection,
    SamplingSection,
    ServersSection,
    TargetSection,
)
from paragone_training.settings import LoraSection, build, in_folder, overridden, read_toml

__all__ = ["PolicyRecipe", "load_policy_recipe", "parse_policy_recipe"]


@dataclass(frozen=True)
class PolicyRecipe:
    """One recipe, checked.

    Attributes:
        method: which of the algorithms.
        policy: what is trained.
        data: on which prompts.
        oracle: who is asked.
        sampling: how responses are drawn.
        servers: who draws them, or None: this process.
        targets: what is made of the tables.
        loss: the method's numbers.
        reference: which policy the KL is to.
        training: how gradient steps are taken.
        lora: adapters, merged after every iteration, or None for full fine-tuning.
        evaluation: how iterates are compared.
        output: where to.
    """

    method: MethodName
    policy: PolicySection
    data: PolicyDataSection
    oracle: OracleSection
    loss: PolicyLossSection = field(default_factory=PolicyLossSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    servers: ServersSection | None = None
    targets: TargetSection = field(default_factory=TargetSection)
    reference: ReferenceSection = field(default_factory=ReferenceSection)
    training: PolicyTrainingSection = field(default_factory=PolicyTrainingSection)
    lora: LoraSection | None = None
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    output: PolicyOutputSection = field(default_factory=PolicyOutputSection)

    @property
    def objective(self) -> Method:
        """The method with its numbers."""
        loss = self.loss
        return method_of(
            self.method, eta=loss.eta, tau=loss.tau, step=loss.step, beta=loss.beta, smoothing=loss.label_smoothing
        )


def load_policy_recipe(path: Path, assignments: Sequence[str] = (), *, data: Path | None = None) -> PolicyRecipe:
    """Return the recipe of a TOML file, its paths made relative to the file.

    Args:
        path: the file.
        assignments: ``section.key=value`` overrides.
        data: folder of relative data files, in place of the recipe's own.

    Raises:
        RecipeError: if it cannot be read or run.
    """
    tables = overridden(read_toml(path), assignments)
    for section, key in (("data", "prompts"), ("evaluation", "prompts")):
        names = tables.get(section, {}).get(key) if isinstance(tables.get(section), dict) else None
        if isinstance(names, list):
            tables[section][key] = [
                in_folder(name, path.parent, data) if isinstance(name, str) else name for name in names
            ]
    for section in ("oracle", "servers"):
        table = tables.get(section)
        if isinstance(table, dict) and isinstance(table.get("api_key_file"), str):
            table["api_key_file"] = str(path.parent / table["api_key_file"])
    return parse_policy_recipe(tables)


def parse_policy_recipe(tables: dict[str, Any]) -> PolicyRecipe:
    """Return the recipe that tables say.

    Args:
        tables: of a TOML file.

    Raises:
        RecipeError: if it cannot be run; the value, the limit and the remedy are in the message.
    """
    recipe: PolicyRecipe = build(PolicyRecipe, tables)
    _ = recipe.objective  # refuses numbers that the method cannot take
    _check_oracle(recipe)
    if recipe.servers is not None:
        check_servers(recipe.servers)
    _check_counts(recipe)
    _check_targets(recipe)
    _check_reference(recipe)
    return recipe


def _check_oracle(recipe: PolicyRecipe) -> None:
    oracle, judge = recipe.oracle, recipe.evaluation
    if (oracle.url is None) == (oracle.serve is None):
        raise RecipeError("[oracle] needs either url (a running service) or serve (a model that this run hosts)")
    if judge.judge_url is not None and judge.judge_serve is not None:
        raise RecipeError("[evaluation] takes judge_url or judge_serve, not both")
    if not recipe.data.prompts:
        raise RecipeError("data.prompts is empty; name at least one file of prompts")
    if oracle.patience_s < 0 or oracle.timeout_s <= 0 or oracle.concurrency < 1:
        raise RecipeError("oracle.patience_s must not be negative, timeout_s and concurrency must be positive")


def _check_counts(recipe: PolicyRecipe) -> None:
    sampling, training = recipe.sampling, recipe.training
    if sampling.responses < 2:
        raise RecipeError(
            f"sampling.responses is {sampling.responses}; a preference needs at least 2 responses to a prompt"
        )
    for name, value in (
        ("sampling.max_new_tokens", sampling.max_new_tokens),
        ("sampling.batch", sampling.batch),
        ("training.iterations", training.iterations),
        ("training.pairs_per_step", training.pairs_per_step),
        ("training.pairs_per_pass", training.pairs_per_pass),
        ("training.chunk_tokens", training.chunk_tokens),
        ("training.log_steps", training.log_steps),
        ("evaluation.responses", recipe.evaluation.responses),
    ):
        if value < 1:
            raise RecipeError(f"{name} is {value}; it must be at least 1")
    for name, value in (
        ("policy.max_length", recipe.policy.max_length),
        ("data.per_iteration", recipe.data.per_iteration),
        ("sampling.top_k", sampling.top_k),
        ("training.save_steps", training.save_steps),
        ("training.seed", training.seed),
        ("evaluation.limit", recipe.evaluation.limit),
    ):
        if value < 0:
            raise RecipeError(f"{name} is {value}; it must not be negative")
    if training.pairs_per_step % training.pairs_per_pass:
        raise RecipeError(
            f"training.pairs_per_step {training.pairs_per_step} is no multiple of pairs_per_pass "
            f"{training.pairs_per_pass}"
        )
    for name, number, positive in (
        ("sampling.temperature", sampling.temperature, True),
        ("training.learning_rate", training.learning_rate, True),
        ("training.epochs", training.epochs, True),
        ("training.noise_limit", training.noise_limit, True),
        ("training.collective_timeout_s", training.collective_timeout_s, True),
        ("sampling.penalty", sampling.penalty, False),
        ("training.warmup", training.warmup, False),
        ("training.max_gradient_norm", training.max_gradient_norm, False),
    ):
        if not math.isfinite(number) or number < 0 or (positive and number == 0):
            raise RecipeError(f"{name} is {number}; it must be {'positive' if positive else '0 or more'} and finite")
    if not 0 < sampling.top_p <= 1:
        raise RecipeError(f"sampling.top_p is {sampling.top_p}; it must lie in (0, 1]")
    if training.schedule_epochs and training.schedule_epochs < training.epochs:
        raise RecipeError(
            f"training.schedule_epochs {training.schedule_epochs} is below epochs {training.epochs}: a schedule is laid"
            " out for at least as many epochs as are run"
        )


def _check_targets(recipe: PolicyRecipe) -> None:
    targets, method = recipe.targets, recipe.method
    if method in PAIRWISE and targets.win_rates != "with-self":
        raise RecipeError(f"targets.win_rates is for sppo and gpo; {method} is trained on pairs: remove it")
    if method == "dpo" and targets.labels == "soft":
        raise RecipeError("dpo has no soft labels: set targets.labels to 'sampled' or 'hard'")
    if method == "dpo" and targets.ties == "keep":
        raise RecipeError("dpo has no label for a tie: set targets.ties = 'drop'")


def _check_reference(recipe: PolicyRecipe) -> None:
    reference = recipe.reference
    if (reference.policy == "every-n") != (reference.every > 0):
        raise RecipeError("reference.every says how often policy = 'every-n' resets: set both or neither")
    if recipe.method in ("sppo", "gpo") and reference.policy != "previous":
        raise RecipeError(
            f"{recipe.method} is regressed from the policy that gave the responses: set reference.policy = 'previous' "
            "(inpo, egpo and omwu have a KL to another reference)"
        )
