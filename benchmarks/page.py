"""The page in a real Chromium: how long until its first paint, until its first answer, and until a table of 32 stands.

A bare `paragone serve` in a process of its own, and a browser without a window. Every repetition opens the
page in a fresh profile, with nothing in the browser's cache. "First paint" is the browser's own mark, from the start
of the navigation. "Answer" is the time from a click on an example to the moment its table is in the page and the next
frame is drawn, the server's answer included. "Table of 32" is the time from 32 × 32 numbers to the same moment.

    python benchmarks/page.py [--repetitions 15] [--chromium PROGRAM] [--json FILE]

Needs the extras of dev (playwright) and a Chromium on PATH or by --chromium. Takes about half a minute.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from serving_setup import server

# In the browser: the next frame after this one was drawn.
_DRAWN = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)))"
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_TABLE = f"""async (size) => {{
  const {{ heatmap }} = await import("/page/heatmap.js");
  const {{ graph }} = await import("/page/graph.js");
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const order = Array.from({{ length: size }}, (_, index) => index);
  const matrix = order.map(() => order.map(() => 0.5));
  for (const i of order) for (const j of order) if (i < j) matrix[j][i] = 1 - (matrix[i][j] = random());
  const texts = order.map((index) => `response ${{index}}`);
  const start = performance.now();
  const none = () => {{}};
  document.querySelector("main").append(heatmap(matrix, texts, order, none), graph(matrix, texts, 700, none));
  return (await ({_DRAWN})()) - start;
}}"""
_ANSWER = f"""async (place) => {{
  const chip = document.querySelectorAll(".chip")[place];
  const start = performance.now();
  chip.click();
  await new Promise((done) => {{
    const look = () => document.querySelector(".results:not(.stale) .headline") ? done() : requestAnimationFrame(look);
    requestAnimationFrame(look);
  }});
  return (await ({_DRAWN})()) - start;
}}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    if arguments.chromium is None:
        parser.error("no Chromium was found: give its program with --chromium")
    with server() as port, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        address = f"http://127.0.0.1:{port}/"
        once(browser, address)  # the first start of everything belongs to nobody
        rounds = [once(browser, address) for _ in range(arguments.repetitions)]
        browser.close()
    numbers = {name: [one[name] for one in rounds] for name in rounds[0]}
    for name, values in numbers.items():
        ordered = sorted(values)
        print(f"{name:>12}  median {statistics.median(values):6.1f} ms  ({ordered[0]:.1f} to {ordered[-1]:.1f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


def once(browser: Browser, address: str) -> dict[str, float]:
    """Open the page in a fresh profile and return the milliseconds of each of the three."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector(".headline")
        return {
            "first paint": page.evaluate(_FIRST_PAINT),
            "answer": page.evaluate(_ANSWER, 0),
            "table of 32": page.evaluate(_TABLE, 32),
        }
    finally:
        context.close()


if __name__ == "__main__":
    main()
