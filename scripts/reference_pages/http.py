"""The pages of the HTTP API, from the OpenAPI document: one a group of routes, and one of the schemas."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .markdown import paragraph, table

__all__ = ["http_pages"]

# In the order of the pages: what is asked most stands first.
_TITLES = {
    "scoring": "Scoring: preferences, tournaments, rewards, cohorts",
    "references": "Reference sets",
    "inspection": "Models and tokens",
    "files": "Data files",
    "runs": "Runs that are watched",
    "rollout": "Loading models while the server runs",
    "operation": "Health and metrics",
}
_SCHEMAS = "schemas.md"


def http_pages(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and text of every page, ``index.md`` among them.

    Args:
        document: the OpenAPI document.
    """
    groups: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            (tag,) = operation["tags"]
            groups.setdefault(tag, []).append((method.upper(), path, operation))
    order = list(_TITLES)
    groups = dict(sorted(groups.items(), key=lambda group: order.index(group[0])))
    schemas = document["components"]["schemas"]
    pages = {
        f"{tag}.md": "\n".join([f"# {_title(tag)}\n", *(_operation(*route, schemas) for route in routes)])
        for tag, routes in groups.items()
    }
    pages[_SCHEMAS] = "\n".join(["# Schemas\n", *(_schema(name, schema) for name, schema in schemas.items())])
    pages["index.md"] = _index(document["info"], groups)
    return pages


def _title(tag: str) -> str:
    return _TITLES[tag]


def _index(information: Mapping[str, Any], groups: Mapping[str, list[tuple[str, str, Mapping[str, Any]]]]) -> str:
    parts = ["# HTTP API\n", paragraph(information["description"]) + "\n"]
    for tag, routes in groups.items():
        rows = [
            (f"[`{method} {path}`]({tag}.md#{_anchor(method, path)})", operation["description"].split("\n\n")[0])
            for method, path, operation in routes
        ]
        parts.append(f"## {_title(tag)}\n\n{table(('route', 'what it does'), rows)}")
    parts.append(
        "The routes of other servers, which unchanged clients of theirs find here, are in "
        "[dialects](../../dialects.md). For programs: [openapi.json](../../openapi.json).\n"
    )
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    parts = [f"## `{method} {path}` {{ #{_anchor(method, path)} }}\n", paragraph(operation["description"]) + "\n"]
    parameters = [
        (f"`{one['name']}`", one["in"], _type(one["schema"]), paragraph(one.get("description", "")))
        for one in operation.get("parameters", ())
    ]
    if parameters:
        parts.append(table(("parameter", "in", "value", "meaning"), parameters))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        parts += [_part("Request", method, path), *_content(content, schemas)]
    answers, errors = [], []
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            for content in response.get("content", {}).values():
                answers += [_part(f"Answer {status}", method, path), *_content(content, schemas)]
        else:
            errors.append((status, response["description"]))
    if errors:
        answers += [_part("Errors", method, path), table(("status", "codes"), errors)]
    return "\n".join(parts + answers)


def _part(title: str, method: str, path: str) -> str:
    # Every route has a request: without an id of its own the heading's would be `request_7`.
    return f"### {title} {{ #{_anchor(method, path)}-{title.lower().replace(' ', '-')} }}\n"


def _content(content: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    if name:
        yield f"[`{name}`]({_SCHEMAS}#{name.lower()}):\n"
        yield _fields(schemas[name])
    examples = [one["value"] for one in content.get("examples", {}).values()] or [
        content[key] for key in ("example",) if key in content
    ]
    for example in examples[:1]:
        text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
        yield f"```{'text' if isinstance(example, str) else 'json'}\n{text.rstrip()}\n```\n"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    prose = paragraph(schema.get("description", ""))
    return f"## {name} {{ #{name.lower()} }}\n\n{prose}\n\n{_fields(schema)}"


def _fields(schema: Mapping[str, Any]) -> str:
    if "properties" not in schema:
        return f"{_type(schema)}\n"
    required = schema.get("required", ())
    rows = [
        (f"`{name}`", _type(field), _default(field, name in required), paragraph(field.get("description", "")))
        for name, field in schema["properties"].items()
    ]
    return table(("field", "value", "default", "meaning"), rows)


def _default(field: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = field.get("default")
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(schema: Mapping[str, Any]) -> str:
    """Return the values that a schema allows, as Markdown."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}]({_SCHEMAS}#{name.lower()})"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(_type(choice) for choice in choices)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    return f"{kind or 'any'}{_limits(schema)}"


def _limits(schema: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return f" ({', '.join(found)})" if found else ""


def _anchor(method: str, path: str) -> str:
    return f"{method.lower()}{path.translate(str.maketrans({'/': '-', '{': '', '}': '', ':': '-'}))}"
