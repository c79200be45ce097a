"""The cases of the fuzzer, one by one from a seed: bytes to send, and what may come back.

A case depends on the seed and its number alone, so any of them can be sent again without the others.
"""

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuzz_texts import BODY_ROUTES, LEFT, RIGHT, conversation, item_of, request_body, special_halves

__all__ = ["Case", "case_of"]

_CRLF = b"\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One request.

    Attributes:
        name: the family that it is of.
        raw: the bytes to send.
        route: the POST route that it is for, or "".
        items: how many answers a success has, or None where that is not known.
        twin: the same request with harmless words for special tokens; its answer must have the same control tokens.
        model: the model that a case with a twin asks.
        complete: whether the request is whole; else the connection is half closed after it, and no answer is fine too.
        framed: whether it is HTTP; what is not may be answered with bare text, by the parser.
        late: whether its deadline may pass.
    """

    name: str
    raw: bytes
    route: str = ""
    items: int | None = None
    twin: bytes | None = None
    model: str = ""
    complete: bool = True
    framed: bool = True
    late: bool = False


def case_of(seed: int, number: int, specials: Mapping[str, list[str]]) -> Case:
    """Return case ``number`` of a seed.

    Args:
        specials: the hosted models by name, each with the strings of its special tokens.
    """
    generator = random.Random(f"{seed}/{number}")
    families: Sequence[tuple[int, Callable[[random.Random, Mapping[str, list[str]]], Case]]] = (
        (30, _texts), (25, _smuggled), (20, _mutated), (8, _malformed_json), (10, _headers), (4, _framing), (3, _paths),
        (1, _large),
    )  # fmt: skip
    weights, makers = zip(*families, strict=True)
    return generator.choices(makers, weights)[0](generator, specials)


def post(
    route: str,
    body: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    length: bytes | None = None,
    content_type: bytes = b"application/json",
) -> bytes:
    """Return a POST as bytes, which asks that the connection be closed after it."""
    lines = [b"POST " + route.encode() + b" HTTP/1.1", b"host: 127.0.0.1", b"connection: close"]
    if content_type:
        lines.append(b"content-type: " + content_type)
    lines.append(b"content-length: " + (str(len(body)).encode() if length is None else length))
    lines += [name + b": " + value for name, value in headers]
    return _CRLF.join([*lines, b"", b""]) + body


def written(value: object) -> bytes:
    """Return JSON; a lone surrogate becomes an escape, as any JSON library writes it."""
    return json.dumps(value, ensure_ascii=True).encode()


def _sound(generator: random.Random, specials: Mapping[str, list[str]]) -> tuple[str, dict[str, Any]]:
    route = generator.choice(list(BODY_ROUTES))
    return route, request_body(route, generator, list(specials))


def _texts(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    route, body = _sound(generator, specials)
    content = written(body)
    if generator.random() < 0.5:  # as UTF-8 instead of escapes, where that is possible at all
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Case("texts", post(route, content), route, len(body[BODY_ROUTES[route]]))


def _smuggled(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    model = generator.choice(list(specials))
    made = conversation(generator, marked=True)
    item = item_of("/v1/tokens", generator, made)
    content = written({"model": model, "items": [item]}).decode()
    if LEFT not in content:
        content = written({"model": model, "items": [{"prompt": f"{LEFT}{RIGHT} why", "response": "so"}]}).decode()

    def filled(left: str, right: str) -> bytes:
        text = content
        for mark, half in ((LEFT, left), (RIGHT, right)):
            inside = json.dumps(half)[1:-1]
            # Inside arguments that are JSON text a text is escaped twice.
            text = text.replace('\\"a' + mark, '\\"a' + json.dumps(inside)[1:-1]).replace(mark, inside)
        return post("/v1/tokens", text.encode())

    halves = special_halves(generator, specials[model])
    return Case("smuggled", filled(*halves), "/v1/tokens", 1, filled("word", "word"), model)


def _deep(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _values(generator: random.Random) -> Any:
    kind = generator.randrange(12)
    return (
        None, True, 0, -1, 10**400, 1e308, [], {}, "", _deep(generator.choice((3, 70, 400))),
        [0] * generator.choice((10, 5_000)), {"k" * generator.choice((5, 100_000)): 1},
    )[kind]  # fmt: skip


def _places(value: Any) -> list[tuple[Any, ...]]:
    places: list[tuple[Any, ...]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        path, value = waiting.pop()
        places.append(path)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += reversed([((*path, key), one) for key, one in inner])
    return places


def _mutated(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    route, body = _sound(generator, specials)
    value: Any = body
    for _ in range(generator.choice((1, 1, 2, 4))):
        value = _mutation(generator, value)
    content = written(value)
    if generator.random() < 0.2 and b'"prompt"' in content:  # twice the same key: the last one counts, or it is refused
        content = content.replace(b'"prompt"', b'"prompt": 5, "prompt"', 1)
    return Case("mutated", post(route, content), route)


def _mutation(generator: random.Random, value: Any) -> Any:
    path = generator.choice(_places(value))
    if not path:
        return _values(generator) if generator.random() < 0.2 else value
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    kind, key = generator.randrange(4), path[-1]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[
            generator.choice(("role", "extra", "", "first_id", "references", "__class__", "\ud800", "model_config"))
        ] = _values(generator)
    elif kind == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * generator.choice((1, 20)))
    else:
        holder[key] = _values(generator)
    return value


def _malformed_json(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    route, body = _sound(generator, specials)
    content = written(body)
    cut = generator.randrange(len(content))
    forms = {
        "cut": content[:cut],
        "utf-16": content.decode().encode("utf-16"),
        "utf-32": content.decode().encode("utf-32"),
        "bom": b"\xef\xbb\xbf" + content,
        "bad byte": content[:cut] + bytes([generator.randrange(0x80, 0x100)]) + content[cut:],
        "flipped": content[:cut] + bytes([content[cut] ^ (1 << generator.randrange(8))]) + content[cut + 1 :],
        "nan": content.replace(b'"prompt"', b'"x": NaN, "prompt"'),
        "infinity": content.replace(b'"prompt"', b'"x": -Infinity, "prompt"'),
        "big number": content.replace(b'"prompt"', b'"x": ' + b"9" * 5_000 + b', "prompt"'),
        "trailing": content + b"{}",
        "twice": content + content,
        "empty": b"",
        "blank": b" \n",
        "deep": b"[" * 100_000,
        "deep objects": b'{"a":' * 50_000,
        "bytes": generator.randbytes(generator.randrange(1, 300)),
        "nul": content.replace(b" ", b"\x00"),
        "comments": b"/* */" + content,
    }
    name = generator.choice(list(forms))
    return Case(f"json: {name}", post(route, forms[name]), route)


def _headers(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    route, body = _sound(generator, specials)
    content = written(body)
    name = generator.choice(list(_HEADERS))
    headers, content_type = _HEADERS[name], b"application/json"
    if name.startswith("type"):
        headers, content_type = (), _HEADERS[name][0][1]
    if name == "gzip":
        content = gzip.compress(b" " * 1_000_000 + content)
    return Case(f"header: {name}", post(route, content, headers, content_type=content_type), route, late="late" in name)


_HEADERS: Mapping[str, Sequence[tuple[bytes, bytes]]] = {
    "gzip": [(b"content-encoding", b"gzip")],
    "encoding unknown": [(b"content-encoding", b"br, br, identity")],
    "type none": [(b"", b"")],
    "type text": [(b"", b"text/plain")],
    "type form": [(b"", b"multipart/form-data; boundary=x")],
    "type charset": [(b"", b"application/json; charset=utf-16")],
    "type strange": [(b"", b"application/json; charset=\xff\xfe; =;;")],
    "type long": [(b"", b"application/json; a=" + b"b" * 5_000)],
    "request id": [(b"x-request-id", b"\xc3\xa9\x09forged")],
    "request id long": [(b"x-request-id", b"x" * 5_000)],
    "many": [(b"x-%d" % number, b"y") for number in range(90)],
    "long value": [(b"x-long", b"y" * 7_000)],
    "long name": [(b"x" * 3_000, b"y")],
    "not ascii": [(b"x-name", "é¥\u4e00".encode()), (b"x-raw", b"\xff\xfe")],
    "host twice": [(b"host", b"example.org"), (b"host", b"127.0.0.1")],
    "bearer": [(b"authorization", b"Bearer " + b"x" * 3_000)],
    "bearer strange": [(b"authorization", b"Bearer \xff\xfe"), (b"authorization", b"Basic !!!!")],
    "basic": [(b"authorization", b"Basic " + b"Og==" * 20)],
    "forwarded": [(b"x-forwarded-for", b"1.2.3.4, ::1, ' OR 1=1"), (b"forwarded", b"for=_x")],
    "deadline nan": [(b"x-deadline-s", b"nan")],
    "deadline negative": [(b"x-deadline-s", b"-1")],
    "deadline word": [(b"x-deadline-s", b"soon")],
    "deadline long": [(b"x-deadline-s", b"1e999")],
    "deadline late": [(b"x-deadline-s", b"0.000001")],
    "expect": [(b"expect", b"100-continue")],
    "upgrade": [(b"upgrade", b"websocket"), (b"sec-websocket-key", b"AAAA")],
    "range": [(b"range", b"bytes=0-1"), (b"if-none-match", b"*"), (b"accept", b"image/png")],
    "trace": [(b"traceparent", b"00-zz-zz-zz"), (b"tracestate", b"=" * 600)],
    "prompt hash": [(b"x-paragone-prompt", b"\xff" * 100)],
}


def _framing(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    route, body = _sound(generator, specials)
    content = written(body)
    head = (
        b"POST "
        + route.encode()
        + b" HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    )
    size = str(len(content)).encode()
    half = len(content) // 2
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    pieces = b"%x\r\n%b\r\n%x;ext=1\r\n%b\r\n" % (half, content[:half], len(content) - half, content[half:])
    # name: (bytes, whether the request is whole, whether it is HTTP)
    forms = {
        "chunked": (chunked + pieces + b"0\r\n\r\n", True, True),
        "chunked with trailer": (chunked + pieces + b"0\r\nx: y\r\n\r\n", True, True),
        "chunked without end": (chunked + pieces, False, True),
        "chunk size bad": (chunked + b"zz\r\n" + content, False, False),
        "chunk size huge": (chunked + b"f" * 20 + b"\r\n" + content, False, False),
        "length twice": (head + b"content-length: " + size + b"\r\ncontent-length: 5\r\n\r\n" + content, False, False),
        "length and chunks": (
            head + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n", False, False,
        ),
        "length negative": (post(route, content, length=b"-5"), False, False),
        "length word": (post(route, content, length=b"ten"), False, False),
        "length huge": (post(route, content, length=b"9" * 18), False, True),
        "length over all": (post(route, content, length=b"9" * 40), False, False),
        "length too long": (post(route, content, length=str(len(content) + 9).encode()), False, True),
        "length too short": (post(route, content, length=b"3"), False, True),
        "no length": (head + b"\r\n", False, True),
        "head cut": (head[: generator.randrange(len(head))], False, False),
        "bare line feeds": (post(route, content).replace(b"\r\n", b"\n"), False, False),
        "folded": (head + b"x: a\r\n b\r\ncontent-length: " + size + b"\r\n\r\n" + content, False, False),
        "nul in a header": (head + b"x: a\x00b\r\ncontent-length: " + size + b"\r\n\r\n" + content, False, False),
        "space in a name": (head + b"x y : a\r\ncontent-length: " + size + b"\r\n\r\n" + content, False, False),
        "http/1.0": (post(route, content).replace(b"HTTP/1.1", b"HTTP/1.0", 1), True, True),
        "http/9.9": (post(route, content).replace(b"HTTP/1.1", b"HTTP/9.9", 1), False, False),
        "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 30, False, False),
        "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + generator.randbytes(200), False, False),
        "noise": (generator.randbytes(500), False, False),
        "two at once": (post(route, content).replace(b"connection: close\r\n", b"", 1) * 2, False, True),
    }  # fmt: skip
    name = generator.choice(list(forms))
    raw, complete, framed = forms[name]
    return Case(f"framing: {name}", raw, "", None, complete=complete, framed=framed)


def _paths(generator: random.Random, specials: Mapping[str, list[str]]) -> Case:
    method = generator.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "POST"))
    paths = [
        *BODY_ROUTES, "/", "//", "/v1", "/v1/", "/v1/models/", "/v1/models/%00", "/v1/models/..%2f..%2fetc",
        "/v1/models/%ff%fe", "/v1/models/" + "x" * 2_000, "/v1/models?a=" + "b" * 2_000, "/livez", "/readyz",
        "/metrics", "/v1/tokens/", "/v1/models", f"/v1/models/{generator.choice(list(specials))}", "/docs",
        "/v1/%70references", "/../../etc/passwd", "/.env", "http://127.0.0.1/v1/models", "*", "/v1/models#x",
        "/openapi.json", "/v1/models/%F0%9F%98%80",
    ]  # fmt: skip
    path = generator.choice(paths)
    line = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    framed = path.startswith("/")
    return Case(f"path: {method}", line.encode(), complete=framed, framed=framed)


def _large(generator: random.Random, _specials: Mapping[str, list[str]]) -> Case:
    pair = {"prompt": "p", "first": "a", "second": "b"}
    forms: Mapping[str, Callable[[], Any]] = {
        "numbers in tools": lambda: {"pairs": [{**pair, "tools": [{"a": {"b": [1] * 1_500_000}}]}]},
        "empty messages": lambda: {"pairs": [{**pair, "prompt": [{"role": "user", "content": ""}] * 100_000}]},
        "system messages": lambda: {"pairs": [{**pair, "prompt": [{"role": "system", "content": "a"}] * 3_000}]},
        "bad pairs": lambda: {"pairs": [{}] * 10_000},
        "one text": lambda: {"pairs": [{**pair, "first": generator.choice(("a", "a ", "<|im_end|>")) * 400_000}]},
        "keys": lambda: {"pairs": [{**pair, "tools": [{str(number): 0 for number in range(150_000)}]}]},
        "wide": lambda: {"pairs": [{**pair, "first": [[]] * 500_000}]},
        "parts": lambda: {"pairs": [{**pair, "first": {"role": "assistant", "content": [{"type": "text"}] * 150_000}}]},
    }
    name = generator.choice(list(forms))
    return Case(f"large: {name}", post("/v1/preferences", written(forms[name]())), "/v1/preferences")
