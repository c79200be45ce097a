"""What takes long shows how far it is: a bar on a terminal that leaves nothing behind, and lines elsewhere."""

import io
import re
import threading

import pytest
from rich.console import Console
from tqdm import tqdm

from paragone_models import progress
from paragone_models.progress import shown_work


class Written(io.StringIO):
    """A file that tells when something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.news = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if "of 20" in self.getvalue():
            self.news.set()
        return count


@pytest.mark.parametrize("terminal", [True, False])
def test_how_far_it_is_is_shown_meanwhile(monkeypatch, terminal):
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(progress, "_EVERY_S", 0.01)
    file = Written()
    with shown_work("reading", console=Console(file=file, force_terminal=terminal, width=80)) as work:
        work.step("asking [m]")
        work.at(7, 20)
        assert file.news.wait(30)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue())
    assert "asking [m]" in shown
    assert "7 of 20" in shown
    if not terminal:
        assert re.search(r"^asking \[m\], 7 of 20, \d+ s so far$", shown, re.MULTILINE)


def test_of_quick_work_nothing_is_shown():
    for terminal in (True, False):
        file = io.StringIO()
        with shown_work("reading", console=Console(file=file, force_terminal=terminal)) as work:
            work.at(1)
        assert file.getvalue() == ""


def test_a_bar_of_a_download_is_left_alone():
    assert not progress._of_libraries()
    with tqdm(total=3, file=io.StringIO()):
        assert progress._of_libraries()
    with tqdm(total=3, disable=True):
        assert not progress._of_libraries()


def test_what_goes_wrong_in_it_comes_out():
    with pytest.raises(ValueError, match="wrong"), shown_work("reading", console=Console(file=io.StringIO())):
        raise ValueError("wrong")
