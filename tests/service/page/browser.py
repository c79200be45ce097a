"""A real Chromium, and a real server in a thread, for the tests of the page."""

import contextlib
import threading
import time
from importlib.resources import files

import pytest
from playwright.sync_api import sync_playwright

from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.http.middleware import Drain
from paragone_service.http.server import Server, configure
from tests.service.page.chromium import find_chromium

needs_browser = pytest.mark.browser

_AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@contextlib.contextmanager
def served(models, /, **settings):
    """Yield the address of a server of these models."""
    settings = Settings(port=0, device="cpu", **settings)
    drain = Drain()
    server = Server(configure(create_app(settings, models, drain=drain), settings), drain)
    server.install_signal_handlers = lambda: None
    server.capture_signals = contextlib.nullcontext  # a thread can have none
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def chromium():
    """Yield a browser without a window."""
    executable, environment = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, env=environment, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser, address, *, refusals=(), **options):
    """Yield a page in a fresh profile; what stands in its console fails the test.

    ``refusals`` are statuses of answers that the test brings about, which the browser complains of itself.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(8_000)
    complaints = []

    def complain(message):
        expected = any(f"status of {status}" in message.text for status in refusals)
        if message.type in ("error", "warning") and not expected:
            complaints.append(message.text)

    page.on("console", complain)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(address)
        yield page
        assert complaints == []
    finally:
        context.close()


def violations(page):
    """Return what axe-core finds on a page: the rule, and the elements that break it."""
    page.evaluate(_AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]
