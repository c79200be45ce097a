"""Small real things that tests hold in the hand: an engine behind a gate, and a client that leaves."""

import asyncio
import contextlib
import json

from paragone_service.engine.contract import Health
from paragone_service.engine.local import DeviceThread, LocalEngine

from .conftest import serving


class Gated:
    """The local engine behind a gate: it waits until it is let, and may be told to fail or to give NaN."""

    name = "local"
    shares_prompts = False

    def __init__(self, model):
        self._device = DeviceThread("gated")
        self._engine = LocalEngine(model, self._device)
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = []
        self.error = None
        self.poisoned_length = None
        self.healthy = True

    async def encode(self, items):
        self.calls.append(len(items))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        hidden = (await self._engine.encode(items)).clone()
        for row, item in enumerate(items):
            if len(item.token_ids) == self.poisoned_length:
                hidden[row] = float("nan")
        return hidden

    async def health(self):
        return Health(self.healthy, "" if self.healthy else "told so")

    async def close(self):
        self._device.close()


@contextlib.asynccontextmanager
async def gated(hosted, **settings):
    engine = Gated(hosted["bt"])
    async with serving({"bt": hosted["bt"]}, engines={"bt": engine}, **settings) as client:
        yield client, engine
        engine.gate.set()


class Leaving:
    """A client on the ASGI level that sends a request and closes its connection when it is told to."""

    def __init__(self, client, body, path="/v1/rewards", *, query=""):
        self.left = asyncio.Event()
        content = json.dumps(body).encode()
        messages = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def receive():
            message = next(messages, None)
            if message is None:
                await self.left.wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message):
            raise AssertionError(f"nobody reads {message}")

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"content-type", b"application/json")],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self.done = asyncio.create_task(client.app(scope, receive, send))


async def metric(client, line):
    text = (await client.get("/metrics")).text
    return next(float(one.split()[-1]) for one in text.splitlines() if one.startswith(line + " "))
