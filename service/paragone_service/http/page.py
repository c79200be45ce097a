"""The page at ``/``: the files of ``paragone_service/page``, read once, answered without a key.

The files are the same for everybody and say nothing of this server; whatever the page asks of it needs the key. No
script but these files runs beside a key that somebody typed, and none of them can make markup of a text: the headers
forbid both, whatever the files do.
"""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files as resources
from types import SimpleNamespace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PageFile", "page_files", "page_routes"]

_ROOT = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Asked again each time, and answered 304: a new release must not run with scripts of the old one.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page, with what is sent of it."""

    content: bytes
    compressed: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Return the files by the path that each is answered at."""
    folder = resources("paragone_service") / "page"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _TYPES:
            content = entry.read_bytes()
            etag = hashlib.blake2b(content, digest_size=12).hexdigest()
            path = "/" if entry.name == _ROOT else f"/page/{entry.name}"
            found[path] = PageFile(content, gzip.compress(content, mtime=0), _TYPES[suffix], etag)
    return found


def page_routes(files: dict[str, PageFile]) -> list[Route]:
    """Return a route for each of the files."""
    route = SimpleNamespace(path="/page")  # one name for all, in metrics and log

    def answering(path: str, file: PageFile) -> Route:
        async def answer(request: Request) -> Response:
            request.scope["route"] = route
            return _answer(file, request)

        return Route(path, answer, methods=["GET"], include_in_schema=False)

    return [answering(path, file) for path, file in files.items()]


def _answer(file: PageFile, request: Request) -> Response:
    compressed = _takes_gzip(request.headers.get("accept-encoding", ""))
    # Two encodings are two representations, and a strong tag names one of them.
    etag = f'"{file.etag}-gzip"' if compressed else f'"{file.etag}"'
    headers = {**_HEADERS, "etag": etag}
    if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if compressed:
        headers["content-encoding"] = "gzip"
    return Response(file.compressed if compressed else file.content, headers=headers, media_type=file.media_type)


def _takes_gzip(header: str) -> bool:
    for part in header.lower().split(","):
        name, _, quality = part.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
