"""``paragone train``: the door. Recipes are read and checked here, once."""

import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from paragone_training.recipe import RatedRecipe, Recipe, load_recipe

__all__ = ["train"]

train = typer.Typer(no_args_is_help=True, add_completion=False, help="Train preference models and policies.")


@train.callback()
def _train() -> None:
    """Train preference models and policies."""


@train.command("model")
def model(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, see docs/training.md.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the model; runs/NAME unless given.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and data, say what would be done.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a reward or preference model; `paragone serve --model NAME=FOLDER` hosts it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(capture=True)
    warnings.simplefilter("default", UserWarning)
    loaded = load_recipe(recipe, settings or [])
    folder = output or Path(loaded.output.folder or f"runs/{recipe.stem}")
    from paragone_training.run import load_rows, train_model

    if dry_run:
        typer.echo(_described(loaded))
        if isinstance(loaded, RatedRecipe):
            from paragone_training.rated.run import load_rated_rows

            rated = load_rated_rows(loaded)
            counts = f"{len(rated.ratings)} ratings and {len(rated.pairs)} pairs to train on, "
            counts += f"{len(rated.held_out_ratings)} and {len(rated.held_out_pairs)} held out"
        else:
            rows = load_rows(loaded)
            counts = f"{len(rows.train)} pairs to train on, {len(rows.evaluate)} held out"
        typer.echo(f"{counts}; the model would go to {folder}")
        return
    typer.echo(str(train_model(loaded, folder, resume=resume)))


def _described(recipe: Recipe) -> str:
    lines = []
    for section, values in asdict(recipe).items():
        lines.append(f"[{section}]" if values is not None else f"[{section}] none")
        lines += [f"  {key} = {value!r}" for key, value in (values or {}).items()]
    return "\n".join(lines)
