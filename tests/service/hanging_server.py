"""A real server with a worker that hangs for ever once a text says so: ``hanging_server FOLDER PORT SETTINGS``.

It hosts two models, ``good`` and ``bad``. The bad one's forward hangs at a text of more than a hundred tokens; with
``hang`` in the settings, the event loop does, its reading, or a call in C that keeps Python's lock; with ``device``
every model's forward hangs at such a text on the first device, for four seconds, and on no other.
"""

import asyncio
import ctypes
import json
import sys
import threading
import time

from paragone_models import load_model
from paragone_service import hosting
from paragone_service.config import Settings
from paragone_service.engine.local import DeviceThread, LocalEngine
from paragone_service.serve import host

LONG = 100


def for_ever():
    while True:
        time.sleep(0.05)


class Hanging(LocalEngine):
    hang = "forward"

    async def encode(self, items):
        if max(len(item.token_ids) for item in items) > LONG:
            if self.hang == "loop":
                for_ever()
            if self.hang == "lock":
                ctypes.PyDLL(None).sleep(100)  # in C, and Python's lock is not given back meanwhile
            if self.hang == "task":
                raise asyncio.CancelledError  # what ends a task that nobody thought could end
            await self._thread.run(for_ever)
        return await super().encode(items)


class HangingOnOne(LocalEngine):
    async def encode(self, items):
        if self._thread.name == "cpu:0" and max(len(item.token_ids) for item in items) > LONG:
            await self._thread.run(lambda: time.sleep(4))
        return await super().encode(items)


class HangingReader:
    def __init__(self, reader):
        self._reader = reader

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def read(self, conversations, **more):
        if any("for ever" in str(one.prompt) for one in conversations):
            for_ever()
        return self._reader.read(conversations, **more)


def main():
    folder, port, settings = sys.argv[1:]
    values = json.loads(settings)
    hang = values.pop("hang", "forward")
    models = {name: load_model(folder, name=name, device="cpu") for name in ("good", "bad")}
    if hang == "device":
        hosting.LocalEngine = HangingOnOne
        host(Settings(port=int(port), devices="cpu*2", **values), models)
        return
    if hang == "reading":
        models["bad"].reader = HangingReader(models["bad"].reader)
    bad = Hanging(models["bad"], DeviceThread("bad"))
    bad.hang = hang
    good = LocalEngine(models["good"], DeviceThread("good"))
    host(Settings(port=int(port), **values), models, engines={"good": good, "bad": bad})


if __name__ == "__main__":
    threading.current_thread().name = "main"
    main()
