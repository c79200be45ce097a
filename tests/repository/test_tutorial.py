"""The tutorial: its parts as scripts/tutorial.py sees them, and all of it once, shortened."""

import importlib

import pytest

tutorial = importlib.import_module("tutorial")
PAGE = tutorial.PAGE.read_text()


def test_every_block_of_the_page_is_run_written_or_compared():
    blocks = list(tutorial.blocks_of(PAGE))
    assert {block.language for block in blocks} == {"sh", "text", "toml", "python"}
    assert [block.file for block in blocks if block.file] == ["my/head.toml", "my/model.toml", "my/grpo.py"]
    assert all(block.file for block in blocks if block.language in ("toml", "python"))
    assert PAGE.count("```") == 2 * len(blocks)
    for long in tutorial._SHORTER:
        assert long in PAGE, "the shortened run would be as long as the whole"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  b\nc", "a b\n\nc\n", True),
        ("accuracy 7… %", "accuracy 75.0 %", True),
        ("accuracy 7… %", "accuracy 65.0 %", False),
        ("one\n…\nfour", "one\ntwo\nthree\nfour", True),
        ("one\nfour", "one\ntwo\nfour", False),
        ("(x) [1] * 2", "(x) [1] * 2", True),
    ],
)
def test_an_ellipsis_stands_for_anything_and_nothing_else_does(shown, printed, same):
    assert tutorial.matches(shown, printed) is same


def test_a_command_that_prints_something_else_and_one_that_fails_are_named(tmp_path):
    page = "```sh\necho two\n```\n\n```text\none\n```\n"
    with pytest.raises(tutorial.TutorialError, match=r"the page says\none[\s\S]*printed is\ntwo"):
        tutorial.follow(page, tmp_path, short=True)
    with pytest.raises(tutorial.TutorialError, match=r"exit 3\n ?ended with 3"):
        tutorial.follow("```sh\nexit 3\n```\n", tmp_path, short=True)


def test_the_tutorial_leads_to_a_trained_and_served_judge_and_a_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").symlink_to(tutorial.ROOT / "data")
    tutorial.follow(PAGE, tmp_path, short=True)
    assert (tmp_path / "my" / "report" / "report.html").is_file()
    assert (tmp_path / "my" / "policy" / "model.safetensors").is_file()
