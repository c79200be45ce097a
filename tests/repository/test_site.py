"""The pages of the site that are written from the code, and how the others get there. scripts/check builds it whole."""

import json
import re
import subprocess
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import build_docs
import pytest
from prometheus_client import generate_latest
from reference_pages.commands import command_pages
from reference_pages.errors import errors_page
from reference_pages.http import http_pages
from reference_pages.markdown import cell, paragraph
from reference_pages.metrics import metrics_page
from reference_pages.python_api import python_pages
from reference_pages.recipes import recipes_page

import paragone
from paragone.codes import ErrorCode
from paragone.command_help import EXIT_CODES
from paragone.exceptions import EXCEPTIONS
from paragone_service.http.errors import HTTP_STATUS
from paragone_service.metrics import Metrics
from paragone_training.preference.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads((ROOT / "docs" / "openapi.json").read_text())
SERVING = (ROOT / "docs" / "serving.md").read_text()


def small(group: str) -> str:
    """Ask something.

    Args:
        group: whom.
    """
    return group


def test_prose_of_docstrings_becomes_markdown():
    assert paragraph("Give ``a`` a [K] row:\n* one\n* two\n") == "Give `a` a \\[K] row:\n\n* one\n* two"
    assert cell("a | b\n  c \\| d") == "a &#124; b c &#124; d"
    assert cell("`A|<B>` `C`") == "<code>A&#124;<wbr>&lt;B&gt;</code> `C`"


def test_every_route_and_every_schema_has_its_place():
    pages = http_pages(DOCUMENT)
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            assert f"## `{method.upper()} {path}` {{ #" in pages[f"{operation['tags'][0]}.md"]
            assert f"[`{method.upper()} {path}`]" in pages["index.md"]
    first, *_, last = re.findall(r"^## (.*)$", pages["index.md"], re.MULTILINE)
    assert (first, last) == ("Scoring: preferences, tournaments, rewards, cohorts", "Health and metrics")
    headings = re.findall(r"^## (\w+) \{", pages["schemas.md"], re.MULTILINE)
    assert headings == list(DOCUMENT["components"]["schemas"])


def test_a_field_has_its_values_its_default_and_its_meaning():
    scoring = http_pages(DOCUMENT)["scoring.md"]
    assert re.search(r'^\| `truncation` \| `"prompt"`, `"error"` \| `"prompt"` \| What happens', scoring, re.MULTILINE)
    assert re.search(r"^\| `deadline_s` \| number \(> 0, ≤ 86400\) or null \|  \| Seconds", scoring, re.MULTILINE)
    assert re.search(r"^\| `pairs` \| list of \[Pair\]\(schemas\.md#pair\) or .* \| required \|", scoring, re.MULTILINE)


def test_every_command_has_a_page_and_its_options_their_values_and_defaults():
    commands = list(entry_points(group="paragone.commands"))
    pages = command_pages(commands)
    assert set(pages) == {"index.md", *(f"{command.name}.md" for command in commands)}
    assert "| `--timeout-s` | `SECONDS` | `60` | Give up on an answer after so many seconds. |" in pages["ask.md"]
    assert "(environment: PARAGONE_API_KEY)" in pages["ask.md"]
    assert "paragone ask PROMPT FIRST SECOND [OPTIONS]" in pages["ask.md"]
    assert "| `PROMPT` |" in pages["ask.md"]
    linked = build_docs.with_links(pages["annotate.md"], "reference/commands/annotate.md")
    assert "[annotate](../../annotate.md)" in linked
    assert all(f"| {code} | {meaning} |" in pages["index.md"] for code, meaning in EXIT_CODES.items())
    assert "## paragone train head\n" in pages["train.md"]
    assert "| `--json` |  |  |" in pages["ask.md"]
    assert (
        "| `--host` | `HOST` | `127.0.0.1` | Address to listen on. Anything but loopback needs a key. |"
        in pages["serve.md"]
    )


def test_a_command_that_is_added_gets_a_page_without_more_ado():
    entry = EntryPoint("small", "tests.repository.test_site:small", "paragone.commands")
    pages = command_pages([entry])
    assert pages["small.md"].startswith("# paragone small\n\nAsk something.")
    assert "[`paragone small`](small.md) | Ask something. |" in pages["index.md"]


def test_every_code_has_its_status_its_exception_and_a_remedy():
    page = errors_page(SERVING)
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| \[`(\w+)`\]\(#(\w+)\) \| .+ \|$", page, re.MULTILINE)
    assert [(code, int(status), name) for code, status, name, _ in rows] == [
        (code.value, HTTP_STATUS[code], EXCEPTIONS[code].__name__) for code in ErrorCode
    ]
    remedies = page.split("## What to do")[1]
    assert all(f"{{ #{anchor} }}" in remedies for *_, anchor in rows)
    assert "](../dialects.md)" in page, "links of docs/serving.md lead from the folder below"
    with pytest.raises(KeyError, match="overloaded"):
        errors_page(SERVING.replace("| `overloaded` |", "| `overlooked` |"))


def test_every_metric_of_the_registry_is_on_its_page_with_its_labels():
    page, exposed = metrics_page(), generate_latest(Metrics().registry).decode()
    written = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert written == set(re.findall(r"^# TYPE (\w+(?<!_created)) ", exposed, re.MULTILINE))
    assert "| `paragone_requests_total` | counter | `route`, `status` | Requests answered. |" in page


def test_every_key_of_a_recipe_is_on_its_page():
    page = recipes_page()
    for name, section in Recipe.model_fields.items():
        assert f"### `[{name}]`\n" in page or f"| `{name}` |" in page, section


def test_each_table_of_a_generated_page_has_its_class_and_pages_of_docs_have_none(tmp_path):
    text = (
        "a\n\n| field | value | default | meaning |\n|---|---|---|---|\n| b |\n\n## c\n\n| code | status |\n|---|---|\n"
    )
    marked = build_docs.with_marked_tables(text)
    assert re.findall(r'<div class="([\w ]+)" markdown="1">', marked) == ["reference defaults", "reference"]
    assert re.sub(r"</?div.*>\n?", "", marked).split() == text.split()
    assert "| *required* |" in build_docs.with_marked_tables(
        "| key | value | default |\n|---|---|---|\n| a | b | required |\n"
    )
    build_docs.stage(tmp_path)
    assert '<div class="reference defaults"' in (tmp_path / "reference" / "recipes.md").read_text()
    assert "<div" not in (tmp_path / "serving.md").read_text()
    assert (
        "; [serving](../../serving.md) lists them all" in (tmp_path / "reference" / "commands" / "serve.md").read_text()
    )


def test_every_public_name_of_the_client_and_its_adapters_is_rendered():
    pages = python_pages()
    assert set(re.findall(r"^::: paragone\.(\w+)$", pages["client.md"], re.MULTILINE)) == set(paragone.__all__) - {
        "__version__"
    }
    for module in (ROOT / "clients" / "paragone" / "adapters").glob("[a-z]*.py"):
        assert f"## `paragone.adapters.{module.stem}`" in pages["adapters.md"]


def test_links_lead_to_where_the_site_has_the_page(tmp_path):
    source = tmp_path / "docs" / "how-to" / "here.md"
    (source.parent / "deep").mkdir(parents=True)
    for path in (source, source.parent / "deep" / "there.md", tmp_path / "code.py"):
        path.touch()
    places = {source: "how-to/here.md", source.parent / "deep" / "there.md": "other/there.md"}

    def moved(text):
        return build_docs.relinked(text, source, "how-to/here.md", places)

    assert moved("[`a` b](deep/there.md#c), [d](here.md)") == "[`a` b](../other/there.md#c), [d](here.md)"
    assert moved("[the `code`](../../code.py)") == "the `code`", "a file that is no page is named, and no link"
    assert moved("[e](https://example.org/x.md) [f](#here)") == "[e](https://example.org/x.md) [f](#here)"
    code = "```python\nx = [1](nowhere)\n```\n`[y](nowhere)`"
    assert moved(code) == code
    with pytest.raises(build_docs.SiteError, match=r"there is no \.\./gone\.md"):
        moved("[gone](../gone.md)")


def test_what_a_page_would_load_from_another_host_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<script src="https://a.example/x.js"></script><script src=local.js></script><a href="https://b.example">b</a>'
        '<link rel="stylesheet" href="//c.example/y.css"><img src="data:image/png;base64,AA">'
    )
    assert list(build_docs.loads(page)) == ["https://a.example/x.js", "//c.example/y.css"]
    style = tmp_path / "style.css"
    style.write_text("@font-face { src: url('https://d.example/f.woff2') } body { background: url(e.png) }")
    assert list(build_docs.loads(style)) == ["https://d.example/f.woff2"]


def test_every_page_stands_in_the_navigation_once(tmp_path):
    build_docs.stage(tmp_path)
    pages = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md"))
    settings = (ROOT / "docs" / "site" / build_docs.SETTINGS).read_text()

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for one in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(one)]

    listed = leaves(tomllib.loads(build_docs.with_folders(settings, pages))["project"]["nav"])
    assert sorted(listed) == pages, "a new page of docs/ gets its place in `nav` of docs/site/zensical.toml"


def test_a_broken_link_and_a_broken_anchor_end_the_build(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / build_docs.SETTINGS).write_text(
        '[project]\nsite_name = "S"\ndocs_dir = "pages"\n[project.theme]\nfont = false\n'
        "[project.validation]\ninvalid_links = true\ninvalid_link_anchors = true\n"
    )
    page = tmp_path / "pages" / "index.md"
    page.write_text("# One\n\n[here](#one)\n")
    assert (build_docs.generate(tmp_path) / "index.html").is_file()
    page.write_text("# One\n\n[here](#two)\n\n[there](three.md)\n")
    with pytest.raises(build_docs.SiteError, match=r"anchor does not exist[\s\S]*page does not exist"):
        build_docs.generate(tmp_path)


def test_the_site_is_no_part_of_the_repository():
    ignored = subprocess.run(["git", "check-ignore", "-q", "build/documentation/site"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
