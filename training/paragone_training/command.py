"""``paragone train``: the door. Recipes are read and checked here, once."""

import functools
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paragone_models.files.sources import completed
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.recipe import load_recipe
from paragone_training.settings import as_toml, load

__all__ = ["train"]

_Output = Annotated[Path | None, typer.Option(help="Folder of what is made; runs/NAME unless given.")]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
]
_Data = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the recipe's relative data files, in place of its own.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")]

train = typer.Typer(no_args_is_help=True, add_completion=False, help="Train preference models and policies.")


def _pointing_at_data(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that says, of a data file which is not there, how to name its folder."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        try:
            command(**arguments)
        except DataError as error:
            if arguments.get("data") or not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise DataError(f"{error}. Give the folder of the recipe's data by --data (data/README.md)") from error

    return run


@train.callback()
def _train() -> None:
    """Train preference models and policies."""


@train.command("model")
@_pointing_at_data
def _model(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, see docs/training.md.")],
    output: _Output = None,
    settings: _Settings = None,
    data: _Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and data, say what would be done.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="With --dry-run: load no backbone, and tokenise nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: _Json = False,
) -> None:
    """Train a reward or preference model; `paragone serve --model NAME=FOLDER` hosts it."""
    _log()
    logging.captureWarnings(capture=True)
    warnings.simplefilter("default", UserWarning)
    if offline and not dry_run:
        raise RecipeError("--offline asks about the plan: give --dry-run with it")
    loaded = load_recipe(recipe, settings or [], data=data)
    folder = output or Path(loaded.output.folder or f"runs/{recipe.stem}")
    # torch is imported where it is needed: a wrong recipe is refused at once, and --help does not wait.
    from paragone_models.files.weight_bars import hide_weight_bars
    from paragone_training.preference.train_model import check_run, load_rows, train_model

    hide_weight_bars()
    if dry_run:
        counts, *more = [load_rows(loaded).describe()] if offline else check_run(loaded)
        plan = [f"{counts}; the model would go to {folder}", *more]
        settled = {"folder": str(folder), "recipe": loaded.model_dump(mode="json")}
        _tell_plan(settled, loaded.settings_read(), plan, as_json=as_json)
        return
    _tell([train_model(loaded, folder, resume=resume)], as_json=as_json)


@train.command("head")
@_pointing_at_data
def _head(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECIPE…", help="TOML files with a backbone.source, see docs/training.md; a response passes once."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the head, or of the folders of several; runs/NAME unless given."),
    ] = None,
    settings: _Settings = None,
    data: _Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and data, say what would be done.")] = False,
    as_json: _Json = False,
) -> None:
    """Fit heads to a frozen backbone: one pass per response and seconds of fitting; kilobytes for `paragone serve`."""
    _log()
    heads = []
    for path in recipes:
        loaded = load_recipe(path, settings or [], data=data)
        own = output / path.stem if output and len(recipes) > 1 else output
        heads.append((loaded, own or Path(loaded.output.folder or f"runs/{path.stem}")))
    from paragone_models.files.weight_bars import hide_weight_bars
    from paragone_training.preference.head_fit import check_head_recipe, check_head_run
    from paragone_training.preference.train_head import train_heads
    from paragone_training.preference.train_model import load_rows

    hide_weight_bars()
    if not dry_run:
        _tell(train_heads(heads), as_json=as_json)
        return
    plans = []
    for loaded, folder in heads:
        check_head_recipe(loaded)
        rows = load_rows(loaded)
        check_head_run(loaded, rows)
        plan = [f"{rows.describe()}; the head would go to {folder}", *rows.account.describe()]
        plans.append({"folder": str(folder), "recipe": loaded.model_dump(mode="json"), "plan": plan})
        if not as_json:
            typer.echo("\n".join([as_toml(loaded.settings_read(head_alone=True)), "", *plan]))
    if as_json:
        typer.echo(json.dumps({"plans": plans}, ensure_ascii=False))


@train.command("language")
@_pointing_at_data
def _language(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, as training/recipes/policy/mini-policy.toml.")],
    output: _Output = None,
    settings: _Settings = None,
    data: _Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and texts, print the plan.")] = False,
    as_json: _Json = False,
) -> None:
    """Train a small causal language model from random weights: a policy to begin with."""
    _log()
    from paragone_training.scratch.language import LanguageRecipe, describe_language_plan, train_language_model

    loaded = load(LanguageRecipe, recipe, settings or [], data=data)
    folder = output or Path(loaded.output.folder or f"runs/{recipe.stem}")
    if dry_run:
        plan = [describe_language_plan(loaded), f"the model would go to {folder}"]
        settled = {"folder": str(folder), "recipe": loaded.model_dump(mode="json")}
        _tell_plan(settled, loaded.model_dump(), plan, as_json=as_json)
        return
    from paragone_models.files.weight_bars import hide_weight_bars

    hide_weight_bars()
    _tell([train_language_model(loaded, folder)], as_json=as_json)


@train.command("policy")
@_pointing_at_data
def _policy(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, see docs/policies.md.")],
    output: _Output = None,
    settings: _Settings = None,
    data: _Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and prompts, print the plan.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="With --dry-run: do not look at the policy's files.")
    ] = False,
    ranks: Annotated[
        list[int] | None,
        typer.Option(help="With --dry-run: memory of each of so many processes with FSDP2; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    as_json: _Json = False,
) -> None:
    """Train a policy against a preference oracle: sample, ask, fit, evaluate, again."""
    _log()
    if (offline or ranks) and not dry_run:
        raise RecipeError("--offline and --ranks ask about the plan: give --dry-run with them")
    if min(ranks or [1]) < 1:
        raise RecipeError(f"--ranks is {min(ranks or [1])}; it must be at least 1")
    from paragone_training.policy.recipe import load_policy_recipe

    loaded = load_policy_recipe(recipe, settings or [], data=data)
    folder = output or Path(loaded.output.folder or f"runs/{recipe.stem}")
    if dry_run:
        from paragone_training.policy.plan import describe_plan

        plan = [describe_plan(loaded, folder, offline=offline, ranks=ranks or [1]), f"the run would go to {folder}"]
        _tell_plan({"folder": str(folder), "recipe": loaded.model_dump(mode="json")}, None, plan, as_json=as_json)
        return
    from paragone_models.files.weight_bars import hide_weight_bars
    from paragone_training.policy.train_policy import train_policy

    hide_weight_bars()
    _tell([train_policy(loaded, folder, resume=resume)], as_json=as_json)


@train.command("answers")
def _answers(
    samples: Annotated[Path, typer.Argument(help="A samples.parquet, RUN/evaluation-03/samples.parquet say.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    layout: Annotated[
        str, typer.Option(metavar="alpaca_eval|arena-hard|mt-bench", help="Whose layout.")
    ] = "alpaca_eval",
    name: Annotated[str, typer.Option(help="Name of the policy in the file.")] = "paragone-policy",
    as_json: _Json = False,
) -> None:
    """Write a policy's answers in the layout of a benchmark."""
    from paragone_training.policy.exports import export_answers

    count = export_answers(samples, output, layout=layout, name=name)
    typer.echo(json.dumps({"file": str(output), "answers": count}) if as_json else f"{count} answers in {output}")


@train.command("extrapolate")
def _extrapolate(
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="A", autocompletion=completed, help="The weaker model: a folder or builtin:NAME."
        ),
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="B", autocompletion=completed, help="The stronger model, trained from A.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the new model.")],
    alpha: Annotated[str, typer.Option(help="1 is B, more goes beyond it; auto searches on --data.")] = "auto",
    data: Annotated[Path | None, typer.Option(help="Validation pairs, in any layout that training reads.")] = None,
    split: Annotated[str, typer.Option(help="Rows of --data: of this split, and those without one.")] = "validation",
    dtype: Annotated[
        str, typer.Option(metavar="float32|bfloat16|float16", help="Storage type of the backbone.")
    ] = "float32",
    as_json: _Json = False,
) -> None:
    """Go beyond B on the line from A (ExPO): theta = A + alpha (B - A), on every tensor; nothing is trained."""
    _log()
    factor = None
    if alpha != "auto":
        try:
            factor = float(alpha)
        except ValueError:
            raise RecipeError(f"--alpha is {alpha!r}; it must be auto or a number, 1.52 say") from None
        if not math.isfinite(factor):
            raise RecipeError(f"--alpha is {alpha!r}; it must be a finite number")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise RecipeError(f"--dtype is {dtype!r}; it must be float32, bfloat16 or float16")
    from paragone_evaluation.readers import read_pairs
    from paragone_models.files.weight_bars import hide_weight_bars
    from paragone_models.progress import shown_work
    from paragone_training.data import training_pairs
    from paragone_training.preference.extrapolation import extrapolate

    hide_weight_bars()
    with shown_work("extrapolating"):
        pairs = training_pairs(read_pairs(data), split=split) if data else []
        extrapolate(source, target, output, alpha=factor, pairs=pairs, dtype=dtype)
    _tell([output], as_json=as_json)


def _tell(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print the folders that were made."""
    paths = list(map(str, folders))
    typer.echo(json.dumps({"folders": paths}) if as_json else "\n".join(paths))


def _tell_plan(
    values: Mapping[str, Any], tables: Mapping[str, Any] | None, plan: Sequence[str], *, as_json: bool
) -> None:
    """Print what would be done, after the recipe's tables where they are given."""
    if as_json:
        typer.echo(json.dumps({**values, "plan": "\n".join(plan).splitlines()}, ensure_ascii=False))
    else:
        typer.echo("\n".join([*([] if tables is None else [as_toml(tables), ""]), *plan]))


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # A run makes thousands of requests, and httpx would log each of them.
    for noisy in ("httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
