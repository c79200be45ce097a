"""The page of recipes, from the fields of their classes."""

import re

from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.preference.recipe import Recipe
from paragone_training.scratch.language import LanguageRecipe
from paragone_training.settings_tables import settings_table

__all__ = ["recipes_page"]

_RECIPES = {
    "Preference models: `train model`, `train head`": Recipe,
    "Policies: `train policy`": PolicyRecipe,
    "A small language model from nothing: `train language`": LanguageRecipe,
}


def recipes_page() -> str:
    """Return the page: every section and key of every recipe, with value, default and meaning."""
    parts = [
        "# Recipes\n",
        "A recipe is a TOML file. Unknown keys are refused with the nearest known one; `--set SECTION.KEY=VALUE` "
        "replaces a value from the command line. What the settings are for is told in [training](../training.md) and "
        "[policies](../policies.md).\n",
    ]
    for title, recipe in _RECIPES.items():
        # Each section is a heading, so that the page's contents list them.
        sections = re.sub(r"^(`\[\w+\]`) ", r"### \1\n\n", settings_table(recipe), flags=re.MULTILINE)
        parts.append(f"## {title}\n\n{sections}")
    return "\n".join(parts)
