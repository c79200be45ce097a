"""The page at /docs: everything of the OpenAPI document is on it, and a browser fetches nothing for it."""

import html
from html.parser import HTMLParser

import pytest

pytestmark = pytest.mark.anyio

VOID = {"meta"}


class Page(HTMLParser):
    """Collect tags and what they point to; check that each is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets, self.anchors, self.open = set(), [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.targets += [value for name, value in attributes if name in ("href", "src", "srcset", "action", "data")]
        self.anchors |= {value for name, value in attributes if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


async def test_the_page_loads_nothing_and_no_script_may_run_on_it(client):
    response = await client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    page = Page(response.text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in response.text
    assert "@import" not in response.text
    assert {target for target in page.targets if not target.startswith("#")} == {"openapi.json"}
    assert not page.open


async def test_every_route_status_and_schema_of_the_document_is_on_the_page(client):
    text = (await client.get("/docs")).text
    page = Page(text)
    document = (await client.get("/openapi.json")).json()
    assert {target[1:] for target in page.targets if target.startswith("#")} <= page.anchors
    assert set(document["components"]["schemas"]) <= page.anchors
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            place = text.index(f'<h2 id="{method}{path.replace("/", "-")}"')
            section = text[place : text.index("<h2", place + 1)]
            for status, response in operation["responses"].items():
                assert f"<th>{status}</th><td>{html.escape(response['description'])}" in section, (path, status)
