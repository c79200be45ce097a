"""The page at /docs: the OpenAPI document as one file of HTML, which loads nothing, from this host or from another.

The usual viewers fetch scripts from a content network: behind a firewall they stay empty, and elsewhere that network
may run what it likes beside a key. This page has no script at all, and its headers forbid any.
"""

import functools
import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse

__all__ = ["docs_route"]

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #f4f4f2; padding: .8rem; overflow-x: auto; font-size: 85% }
pre.text { font: inherit; background: none; padding: 0; white-space: pre-wrap }
h2 { border-top: 1px solid #ccc; padding-top: 1rem } h2 code { font-size: 90% }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd } pre { background: #2a2a2a } }
"""


def docs_route(app: FastAPI) -> APIRouter:
    """Return the route of the page, made once from the application's OpenAPI document."""
    router = APIRouter()
    page = functools.cache(lambda: _page(app.openapi()))

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(), headers=_HEADERS)

    return router


def _page(document: Mapping[str, Any]) -> str:
    information = document["info"]
    title = f"{html.escape(information['title'])} {html.escape(information['version'])}"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>',
        _text(information.get("description", "")),
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p><ul>',
    ]
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for method, path, operation in operations:
        parts.append(f'<li><a href="#{_anchor(method, path)}">{method} {html.escape(path)}</a> ')
        parts.append(f"{html.escape(operation.get('summary', ''))}</li>")
    parts.append('<li><a href="#schemas">Schemas</a></li></ul>')
    for method, path, operation in operations:
        parts += _operation(method, path, operation)
    parts.append('<h2 id="schemas">Schemas</h2>')
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        parts.append(_folded(f'<code id="{html.escape(name)}">{html.escape(name)}</code>', schema))
    return "".join((*parts, "</body></html>"))


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{_anchor(method, path)}"><code>{method} {html.escape(path)}</code></h2>'
    yield _text(operation.get("description", operation.get("summary", "")))
    for parameter in operation.get("parameters", ()):
        yield _folded(f"{html.escape(parameter['in'])} <code>{html.escape(parameter['name'])}</code>", parameter)
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<h3>Request ({html.escape(media)})</h3>"
        yield from _content(content)
    yield "<h3>Answers</h3><table>"
    for status, response in operation["responses"].items():
        yield f"<tr><th>{html.escape(str(status))}</th><td>{html.escape(response.get('description', ''))}"
        if str(status).startswith("2"):  # examples of errors are all alike: their code is the description
            for content in response.get("content", {}).values():
                yield from _content(content)
        yield "</td></tr>"
    yield "</table>"


def _content(content: Mapping[str, Any]) -> Iterator[str]:
    examples = [example.get("value") for example in content.get("examples", {}).values()]
    for example in examples or [content[key] for key in ("example",) if key in content]:
        yield f"<pre>{_shown(example)}</pre>"
    schema = content.get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        yield f'<p>Schema: <a href="#{html.escape(name)}"><code>{html.escape(name)}</code></a></p>'
    elif schema:
        yield _folded("Schema", schema)


def _folded(summary: str, value: Any) -> str:
    return f"<details><summary>{summary}</summary><pre>{_shown(value)}</pre></details>"


def _shown(value: Any) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))


def _text(text: str) -> str:
    return f'<pre class="text">{html.escape(text.strip())}</pre>'


def _anchor(method: str, path: str) -> str:
    return html.escape(f"{method.lower()}{path.replace('/', '-')}")
