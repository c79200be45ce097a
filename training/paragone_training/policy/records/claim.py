"""A folder belongs to one run: what a resumed run may change, and what it may not."""

import dataclasses
import json
from pathlib import Path

from paragone_training.errors import RecipeError
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows.files import read_json, write_json

__all__ = ["claim"]

_MAY_CHANGE = {
    "oracle": {"url", "api_key_file", "concurrency", "patience_s", "timeout_s"},
    "servers": {
        "urls",
        "api_key_file",
        "reload",
        "command",
        "count",
        "phases",
        "concurrency",
        "request_timeout_s",
        "round_timeout_s",
        "tries",
        "patience_s",
        "start_timeout_s",
    },
    "training": {"iterations", "log_steps", "collective_timeout_s"},
    "evaluation": {"judge_url"},
    "output": {"folder", "trackers"},
}
"""Settings that a resumed run may have changed: none changes a result (more iterations add some), but for the limits of
servers, which decide what is left out: a run that they stopped has to be able to go on with others."""


def claim(recipe: PolicyRecipe, folder: Path, *, resume: bool) -> None:
    """Write down what is run in a folder, or see that it is what was run there.

    Args:
        recipe: what is run.
        folder: of the run.
        resume: go on with an earlier run.

    Raises:
        RecipeError: if the folder holds a run and ``resume`` is not asked for, or the run was another one.
    """
    path, plain = folder / "recipe.json", dataclasses.asdict(recipe)
    if not path.exists():
        write_json(path, plain)
        return
    if not resume:
        raise RecipeError(f"{folder} holds an earlier run: go on with --resume, or choose another --output")

    before, after = read_json(path), json.loads(json.dumps(plain))
    for section, values in after.items():
        was = before.get(section)
        keys = values.keys() | was.keys() if isinstance(values, dict) and isinstance(was, dict) else None
        changed = {section} if keys is None else {f"{section}.{key}" for key in keys if values.get(key) != was.get(key)}
        if (values != was) and (changed := changed - {f"{section}.{key}" for key in _MAY_CHANGE.get(section, ())}):
            raise RecipeError(
                f"{', '.join(sorted(changed))} is not what the run in {folder} was started with: put it back, or "
                "choose another --output"
            )
    write_json(path, plain)
