"""What can be wrong in a recipe of a policy, found before anything is loaded, sampled or asked, and in a dry run."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer

from paragone.addresses import checked_urls
from paragone_models.files.sources import builtin_folder
from paragone_training.errors import RecipeError
from paragone_training.policy.exports import check_push, check_trackers
from paragone_training.policy.functions import function_of
from paragone_training.policy.model.weights import policy_config
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.trainer import training_arguments

__all__ = ["check_recipe"]


def check_recipe(recipe: PolicyRecipe, folder: Path, *, offline: bool = False) -> None:
    """Refuse what a run would stumble over later.

    Args:
        offline: leave out what needs the policy's files, and the Hub.

    Raises:
        RecipeError: if an address, a key file, the name of a model or a function, the optimiser, a tracker, the
            attention, an adapter's layer or the run's folder is none; the message names the setting.
    """
    _check_addresses(recipe)
    _check_key_files(recipe)
    _check_hosted(recipe)
    if recipe.oracle and recipe.oracle.function is not None:
        function_of(recipe.oracle.function)
    _check_optimiser(recipe)
    check_trackers(recipe.output.trackers, folder / "tracking")
    _check_writable(folder)
    if not offline:
        _check_model(recipe)
        if recipe.output.push is not None:
            check_push(recipe.output.push)


def _check_addresses(recipe: PolicyRecipe) -> None:
    servers = recipe.servers.urls if recipe.servers else ()
    named = {
        "oracle.url": recipe.oracle.url if recipe.oracle else None,
        "evaluation.judge_url": recipe.evaluation.judge_url,
    }
    for name, url in [*named.items(), *(("servers.urls", url) for url in servers)]:
        if url is not None:
            try:
                checked_urls(url)
            except ValueError as error:
                raise RecipeError(f"{name}: {error}") from error


def _check_key_files(recipe: PolicyRecipe) -> None:
    files = {"oracle.api_key_file": recipe.oracle.api_key_file if recipe.oracle else None}
    if recipe.servers:
        files["servers.api_key_file"] = recipe.servers.api_key_file
    for name, file in files.items():
        if file is None:
            continue
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{name} {file} cannot be read: {error}") from error
        if not key:
            raise RecipeError(f"{name} {file} is empty; it must hold the bearer key")


def _check_hosted(recipe: PolicyRecipe) -> None:
    for name, source in (
        ("oracle.serve", recipe.oracle.serve if recipe.oracle else None),
        ("evaluation.judge_serve", recipe.evaluation.judge_serve),
    ):
        if source is None:
            continue
        # What follows the first comma are settings, as `paragone serve --model` takes them.
        place = source.partition(",")[0]
        if place.startswith("builtin:"):
            try:
                builtin_folder(place.removeprefix("builtin:"))
            except KeyError as error:
                raise RecipeError(f"{name} is {source!r}; there is no such built-in model") from error
        # Ids of the Hub have one slash and no more; anything else is a folder.
        elif not Path(place).expanduser().is_dir() and (place.startswith((".", "/", "~")) or place.count("/") != 1):
            raise RecipeError(f"{name} is {source!r}, which is no folder here and no Hugging Face id")


def _check_optimiser(recipe: PolicyRecipe) -> None:
    training = recipe.training
    try:
        arguments = training_arguments(
            Path(tempfile.gettempdir()), training, optim=training.optimiser, bf16=False, lr_scheduler_type="linear"
        )
        # Made for a model of one weight: this is where a package that is missing is noticed.
        model: Any = nn.Linear(1, 1)
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training.optimiser is {training.optimiser!r}: {error}") from error


def _check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written; nothing is made."""
    present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        raise RecipeError(f"the run would go to {folder}, and {present} is no folder that can be written: set --output")


def _check_model(recipe: PolicyRecipe) -> None:
    policy = recipe.policy
    config = policy_config(policy.source, policy.revision)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=policy.attention)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"policy {policy.source} with policy.attention {policy.attention!r}: {error}") from error
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in recipe.lora.targets if recipe.lora else ():
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise RecipeError(f"lora.targets names {target!r}; the policy's linear layers are {known}")
        # Merged, such an adapter changes the embeddings too, which no adapter of the initial policy says.
        if recipe.output.adapters and model.config.tie_word_embeddings and target.rpartition(".")[2] == "lm_head":
            raise RecipeError(
                "output.adapters cannot keep one of lm_head, tied to the embeddings: remove it from lora.targets"
            )
