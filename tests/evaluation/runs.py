"""What the tests of whole evaluations share: a quick run, its page, and the files of benchmarks."""

import json
import re
from html.parser import HTMLParser

from paragone_evaluation.evaluation import evaluate_models
from paragone_evaluation.readers import read_evaluation_set
from paragone_evaluation.results import MeasureSettings
from tests.evaluation.conftest import text, write

QUICK = MeasureSettings(resamples=50)


class Checker(HTMLParser):
    """Notes unclosed tags and everything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "line", "circle", "polyline", "br"):
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")] + [tag] * (tag == "script")

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def run(tmp_path, rows, scorer, **options):
    data = read_evaluation_set(write(tmp_path / "file.jsonl", rows))
    return evaluate_models(data, scorer, tmp_path / "out", options.pop("settings", QUICK), **options)


def published(folder, part):
    """Return the one result that RewardBench's reader finds: it looks into a folder per organisation."""
    (found,) = [path for organisation in (folder / part).iterdir() for path in organisation.glob("*.json")]
    content = json.loads(found.read_text())
    assert f"{found.parent.name}/{found.stem}" == content["model"]
    return content


def page_of(written):
    page = written.files[0].read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert "NaN" not in page
    assert "nan" not in re.sub(r"<[^>]*>", "", page).lower().split()
    return page


def ratings(count):
    return [
        {
            "id": f"r{number}",
            "group": f"q{number // 6}_a",
            "prompt": f"P{number // 3}?",
            "response": text(number),
            "ratings": {"helpful": number % 4, "verbose": (number * 5) % 7},
        }
        for number in range(count)
    ]
