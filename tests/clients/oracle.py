"""A small real oracle for the tests: it speaks the native routes, and prefers the longer response by a fixed rule.

``logit = (len(first) − len(second)) / 10`` over the characters of a response's text or JSON; the reward is the length
over ten. It runs inside an ``httpx2.MockTransport``, or behind a socket of the loopback.
"""

import contextlib
import http.server
import json
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2

from paragone.wire import PreferencesRequest, RewardsRequest, TokensRequest, TournamentsRequest

MODEL = {
    "id": "longer",
    "kind": "bradley-terry",
    "cyclic": False,
    "source": "test:longer",
    "revision": None,
    "identity": "a" * 64,
    "fingerprint": "b" * 16,
    "numerics": {"dtype": "float64"},
    "limits": {"max_tokens": 512, "max_items": 10_000, "max_body_bytes": 1_000_000},
    "temperature": 1.0,
    "calibrated": False,
    "attributes": [],
    "weights": None,
    "aggregation": None,
    "dimension": 1,
    "domain": "the length of a text",
    "demonstration": True,
    "not_shown": [],
    "judged_by": [],
    "ensemble": None,
    "devices": [{"name": "cpu", "serves": True, "problem": None, "max_batch_tokens": 4096}],
    "engine": "local",
    "batching": "packed",
    "max_batch_tokens": 4096,
    "max_batch_tokens_reason": "the default on cpu",
    "pooling": "last",
    "special_tokens": "escape",
    "reasoning": "keep",
}


def length(response: Any) -> int:
    return len(response) if isinstance(response, str) else len(json.dumps(response))


def probability(first: Any, second: Any) -> float:
    return 1.0 / (1.0 + math.exp((length(second) - length(first)) / 10))


def error(status: int, code: str, message: str, item: int | None = None, **headers: str) -> httpx2.Response:
    body: dict[str, Any] = {"code": code, "message": message}
    if item is not None:
        body["item"] = item
    return httpx2.Response(status, json={"error": body}, headers={k.replace("_", "-"): v for k, v in headers.items()})


class Oracle:
    """Answers requests and remembers them. A response ``"bad"`` is one that the model refuses."""

    def __init__(self, **changes: Any) -> None:
        self.seen: list[httpx2.Request] = []
        self.described = MODEL | changes
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # a client is pickled with its transport
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.Lock())

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.seen]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        with self.lock:
            self.seen.append(request)
        path = request.url.path
        if path == "/v1/models":
            return httpx2.Response(200, json={"models": [self.described]})
        if path.startswith("/v1/models/"):
            if path == f"/v1/models/{self.described['id']}":
                return httpx2.Response(200, json=self.described)
            return error(404, "unknown_model", "no model of that name; there is: longer")
        route = {
            "/v1/preferences": ("pairs", "preferences", PreferencesRequest, self.preference),
            "/v1/rewards": ("items", "rewards", RewardsRequest, self.reward),
            "/v1/tournaments": ("groups", "tournaments", TournamentsRequest, self.tournament),
            "/v1/tokens": ("items", "tokens", TokensRequest, self.tokens),
        }.get(path)
        if route is None:
            return error(404, "not_found", "no such route")
        return self.answer(json.loads(request.content), *route)

    def answer(
        self, body: Any, asked: str, answered: str, schema: Any, one: Callable[[Any, Any], Any]
    ) -> httpx2.Response:
        schema.model_validate(body)  # what the client sends is in the wire format
        rows: list[Any] = []
        for place, item in enumerate(body[asked]):
            if '"bad"' in json.dumps(item):
                refused = {"code": "response_too_long", "message": f"{asked}[{place}]: too long", "item": place}
                if body.get("on_error") != "report":
                    return httpx2.Response(422, json={"error": refused})
                # Of a group, the others are answered for.
                whole = asked != "groups" or set(item["responses"]) == {"bad"}
                rows.append({"error": refused} if whole else one(item, body))
            else:
                rows.append(one(item, body))
        usage = {"forward_responses": len(rows), "forward_tokens": 7, "cached_responses": 1, "truncated": 0}
        described = {name: self.described[name] for name in ("identity", "fingerprint", "calibrated")}
        return httpx2.Response(200, json={"model": self.described["id"], **described, answered: rows, "usage": usage})

    def preference(self, pair: Any, _: Any) -> Any:
        p = probability(pair["first"], pair["second"])
        return {
            "probability": p,
            "logit": math.log(p / (1 - p)),
            "first_reward": length(pair["first"]) / 10,
            "second_reward": length(pair["second"]) / 10,
        }

    def reward(self, item: Any, body: Any) -> Any:
        row = {"reward": length(item["response"]) / 10, "attributes": {}, "truncated_tokens": 0}
        if self.described["kind"] == "general-preference":
            row["reward"] = None
        if "representation" in body.get("return", []):
            row["representation"] = [length(item["response"]) / 10]
        return row

    def tournament(self, group: Any, body: Any) -> Any:
        responses = group["responses"]
        voters = [place for place, response in enumerate(responses) if response != "bad"]
        against = group.get("references") or [responses[place] for place in voters]
        rates = {
            place: sum(probability(responses[place], other) for other in against) / len(against) for place in voters
        }
        ranking = sorted(voters, key=lambda place: -rates[place])
        row = {
            # As the service says it of one that is left of a larger group.
            "win_rates": [rates.get(place) if len(voters) > 1 or len(responses) == 1 else None
                          for place in range(len(responses))],
            "ranking": ranking,
            "condorcet_winner": ranking[0],
            "copeland": [0 if place in rates else None for place in range(len(responses))],
            "cyclic_triples": 0,
            "nash": [float(place == ranking[0]) if place in rates else None for place in range(len(responses))],
        }  # fmt: skip
        if len(voters) < len(responses):
            refused = {"code": "response_too_long", "message": "groups[0].responses: too long", "item": 0}
            row["errors"] = [refused | {"response": place} for place in range(len(responses)) if place not in rates]
        if "matrix" in body.get("return", []):
            row["matrix"] = [
                [probability(one, other) if "bad" not in (one, other) else None for other in responses]
                for one in responses
            ]
        if "signal" in body:
            last = max(1, len(voters) - 1)
            signals = {"rank": {place: 1 - rank / last for rank, place in enumerate(ranking)}}
            signals["reward"] = {place: length(responses[place]) / 10 for place in voters}
            values = signals.get(body["signal"])
            row["signal"] = [values.get(place) for place in range(len(responses))] if values else row["win_rates"]
        return row

    def tokens(self, item: Any, _: Any) -> Any:
        text = json.dumps(item["prompt"]) + json.dumps(item["response"])
        return {"text": text, "token_ids": [1, 2], "reads": [[1, 2]], "prompt_length": 1}

    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self)


class Clock:
    """Seconds that pass only while someone sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@contextlib.contextmanager
def listening(answer: Callable[[httpx2.Request], httpx2.Response], *, port: int = 0) -> Iterator[str]:
    """Serve answers behind a socket of the loopback and yield the address; port 0: any that is free."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            request = httpx2.Request(
                self.command, f"http://loopback{self.path}", content=content, headers=dict(self.headers)
            )
            response = answer(request)
            self.send_response(response.status_code)
            for name in ("content-type", "retry-after", "x-paragone-version"):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may be gone
                self.wfile.write(response.content)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
