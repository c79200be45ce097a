"""Build the documentation site: the pages of docs/, and the reference that is written from the code.

    pip install -c constraints.txt -e '.[dev]'
    python scripts/build_docs.py                # build/documentation/site; any warning ends it
    python -m http.server -d build/documentation/site

Everything that a page needs is in that folder, the search too: it can be read without a network, and opened as a file.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from reference_pages.commands import command_pages
from reference_pages.errors import errors_page
from reference_pages.http import http_pages
from reference_pages.metrics import metrics_page
from reference_pages.python_api import python_pages
from reference_pages.recipes import recipes_page

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "zensical.toml"
# Pages of the repository that are not in docs/, and where the site has them.
_ELSEWHERE = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "data/README.md": "project/data.md",
    "docker/README.md": "how-to/images.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
# A link in code is text.
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="?((?:https?:)?//[^\s">]+)|"""
    r"""<link\b[^>]*\bhref="?((?:https?:)?//[^\s">]+)|url\(["']?((?:https?:)?//[^\s"')]+)"""
)


class SiteError(Exception):
    """The site cannot be built as it is."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the site; end with 1 where a page has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "documentation")
    chosen = parser.parse_args(arguments)
    try:
        site = build(chosen.output)
    except SiteError as error:
        sys.exit(f"build_docs: {error}")
    print(f"{sum(1 for _ in site.rglob('*.html'))} pages in {site}")


def build(folder: Path) -> Path:
    """Return the folder of the site, built anew below ``folder``.

    Raises:
        SiteError: if a link leads nowhere, the generator warns, or a page would load something from another host.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    stage(pages)
    settings = (ROOT / "docs" / "site" / SETTINGS).read_text(encoding="utf-8")
    names = sorted(str(path.relative_to(pages)) for path in pages.rglob("*.md"))
    (folder / SETTINGS).write_text(with_folders(settings, names), encoding="utf-8")
    return generate(folder)


def generate(folder: Path) -> Path:
    """Return the folder of the site that Zensical makes of a folder with settings and pages.

    Raises:
        SiteError: if it warns, or a page would load something from another host.
    """
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    if done.returncode or "warning" in said.lower():
        raise SiteError(f"the generator found faults:\n{said}")
    site = folder / "site"
    outside = [f"{path.relative_to(site)}: {address}" for path in site.rglob("*") for address in loads(path)]
    if outside:
        raise SiteError(f"pages load from other hosts: {'; '.join(outside[:5])}")
    return site


def with_folders(settings: str, pages: Sequence[str]) -> str:
    """Return the settings with ``"folder/*"`` in their navigation as the pages of that folder, the index first."""

    def listed(match: re.Match[str]) -> str:
        found = [page for page in pages if page.rpartition("/")[0] == match[1]]
        return ", ".join(
            json.dumps(page) for page in sorted(found, key=lambda page: (not page.endswith("index.md"), page))
        )

    return re.sub(r'"([\w/-]+)/\*"', listed, settings)


def stage(pages: Path) -> None:
    """Write all pages, those of docs/, those from elsewhere and those that are generated, into a new folder.

    Raises:
        SiteError: if a link leads to no file at all.
    """
    places = _places()
    for source, page in places.items():
        target = pages / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(relinked(source.read_text(encoding="utf-8"), source, page, places), encoding="utf-8")
        elif page.endswith(".md"):
            target.write_text(_example(source), encoding="utf-8")
        else:
            shutil.copy(source, target)
    for page, text in _generated().items():
        target = pages / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(with_marked_tables(with_links(text, page)), encoding="utf-8")


def with_links(text: str, page: str) -> str:
    """Return the Markdown of a generated page with ``docs/NAME.md`` of a docstring as a link."""

    def link(match: re.Match[str]) -> str:
        return f"[{match[1]}]({os.path.relpath(f'{match[1]}.md', Path(page).parent)})"

    return re.sub(r"(?<![\w`/(])docs/([\w-]+)\.md", link, text)


def with_marked_tables(text: str) -> str:
    """Return the Markdown of a generated page with each table in a ``div``, by whose class the style knows it."""

    def marked(match: re.Match[str]) -> str:
        table, kind = match[0].rstrip(), "reference"
        if "| value | default |" in table.split("\n", 1)[0]:
            table, kind = table.replace("| required |", "| *required* |"), "reference defaults"
        return f'<div class="{kind}" markdown="1">\n\n{table}\n\n</div>\n'

    return re.sub(r"(?:^\|.*\n?)+", marked, text, flags=re.MULTILINE)


def relinked(text: str, source: Path, page: str, places: Mapping[Path, str]) -> str:
    """Return a page's Markdown with its relative links as the site has them; a file it has not is only named.

    Args:
        text: the Markdown.
        source: its file, which relative links start from.
        page: its path in the site.
        places: every file that the site has, and its path there.

    Raises:
        SiteError: if a link leads to no file at all.
    """

    def moved(match: re.Match[str]) -> str:
        if re.match(r"\w+:", match[2]):
            return match[0]
        target = (source.parent / match[2]).resolve()
        if not target.exists():
            raise SiteError(f"{source}: there is no {match[2]}")
        if target not in places:
            return match[1]
        return f"[{match[1]}]({os.path.relpath(places[target], Path(page).parent)}{match[3] or ''})"

    parts = _CODE.split(text)
    # Code is at the odd places; a link's text may be code, so links are looked for in all that lies between blocks.
    blocks = {f"\0{number}\0": part for number, part in enumerate(parts) if number % 2}
    joined = "".join(f"\0{number}\0" if number % 2 else part for number, part in enumerate(parts))
    return re.sub(r"\0\d+\0", lambda found: blocks[found[0]], _LINK.sub(moved, joined))


def loads(path: Path) -> Iterator[str]:
    """Yield the addresses on other hosts that a file of the site would load from; links that are followed are none."""
    if path.suffix in (".html", ".css"):
        for found in _OUTSIDE.finditer(path.read_text(encoding="utf-8")):
            yield next(filter(None, found.groups()))


def _places() -> dict[Path, str]:
    """Return where the site has each file, or the folder that its index stands for."""
    docs = ROOT / "docs"
    places = {path: str(path.relative_to(docs)) for path in sorted(docs.rglob("*")) if path.is_file()}
    places = {path: place for path, place in places.items() if place != f"site/{SETTINGS}"}
    places |= {ROOT / name: place for name, place in _ELSEWHERE.items()}
    for path in _examples():
        places[path] = f"examples/{path.name.removesuffix('.py').removesuffix('.md')}.md"
    for folder in ("decisions", "examples"):
        places[(docs if folder == "decisions" else ROOT) / folder] = f"{folder}/index.md"
    return places


def _examples() -> list[Path]:
    return sorted(path for path in (ROOT / "examples").iterdir() if path.name != "__pycache__")


def _example(source: Path) -> str:
    """Return the page of an example, a file or a folder of them; of a folder of pages, their index."""
    if source.name in ("decisions", "examples"):
        if source.name == "decisions":
            entries = {path.name: path.read_text().split("\n", 1)[0].lstrip("# ") for path in source.glob("*.md")}
            title = "Decisions"
        else:
            entries = {f"{path.stem}.md": f"`{path.name}`" for path in _examples()}
            title = "Examples"
        return f"# {title}\n\n" + "".join(f"* [{entries[name]}]({name})\n" for name in sorted(entries))
    files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
    shown = [
        f"```{ {'.py': 'python', '.yaml': 'yaml', '.toml': 'toml'}.get(path.suffix, 'text') } "
        f'title="{path.relative_to(ROOT)}"\n{path.read_text(encoding="utf-8").rstrip()}\n```\n'
        for path in files
        if "__pycache__" not in path.parts
    ]
    return f"# {source.name}\n\n" + "\n".join(shown)


def _generated() -> dict[str, str]:
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    serving = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    pages = {
        "reference/errors.md": errors_page(serving),
        "reference/metrics.md": metrics_page(),
        "reference/recipes.md": recipes_page(),
    }
    groups = {
        "http": http_pages(document),
        "commands": command_pages(entry_points(group="paragone.commands")),
        "python": python_pages(),
    }
    return pages | {
        f"reference/{folder}/{name}": text for folder, some in groups.items() for name, text in some.items()
    }


if __name__ == "__main__":
    main()
