"""The pages of the Python API: lists of public names, whose docstrings mkdocstrings renders."""

import importlib
import pkgutil

import paragone
import paragone_models
from paragone import adapters, exceptions

__all__ = ["python_pages"]


def python_pages() -> dict[str, str]:
    """Return the name and text of every page: the client, its exceptions, its adapters, and the models."""
    modules = [f"{adapters.__name__}.{module.name}" for module in pkgutil.iter_modules(adapters.__path__)]
    public = {module: importlib.import_module(module).__all__ for module in modules}
    client = [name for name in paragone.__all__ if not name.startswith("__")]
    return {
        "client.md": _page(
            "Client", "How it is used: [client](../../client.md).", {"": [f"paragone.{name}" for name in client]}
        ),
        "exceptions.md": _page(
            "Exceptions",
            "Which code raises which, and what to do: [errors](../errors.md).",
            {"": [f"{exceptions.__name__}.{name}" for name in exceptions.__all__ if name[0].isupper()]},
        ),
        "adapters.md": _page(
            "Adapters",
            "How each trainer uses its own: [training loops](../../loops.md).",
            {f"`{module}`": [f"{module}.{name}" for name in names] for module, names in public.items() if names},
        ),
        "models.md": _page(
            "Models",
            "Models without a server: [models](../../models.md).",
            {"": [f"paragone_models.{name}" for name in paragone_models.__all__ if not name.startswith("__")]},
        ),
    }


def _page(title: str, introduction: str, sections: dict[str, list[str]]) -> str:
    parts = [f"# {title}\n", f"{introduction}\n"]
    for heading, names in sections.items():
        if heading:
            parts.append(f"## {heading}\n")
        parts += [f"::: {name}\n" for name in names]
    return "\n".join(parts)
