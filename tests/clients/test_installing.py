"""The words for what is not installed: they lead to an install that works, wherever this one came from."""

import pytest

from paragone.installing import _command, pip_install


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({}, "pip install 'paragone[service]'"),
        ({"url": "file:///tmp/paragone-0.1.0-py3-none-any.whl", "archive_info": {}},
         "pip install '/tmp/paragone-0.1.0-py3-none-any.whl[service]'"),
        ({"url": "https://host/paragone.tar.gz", "archive_info": {}},
         "pip install 'paragone[service] @ https://host/paragone.tar.gz'"),
        ({"url": "https://me:secret@host/paragone.git", "vcs_info": {"vcs": "git", "commit_id": "a"}},
         "pip install 'paragone[service] @ git+https://host/paragone.git@a'"),
    ],
)  # fmt: skip
def test_an_install_from_elsewhere_is_added_to_from_there(origin, command):
    assert _command(origin, "service", place=True) == command
    assert _command(origin, "service", place=False) == "pip install 'paragone[service]'"


def test_a_clone_is_added_to_in_its_folder_with_its_constraints_and_as_editable_as_it_is(tmp_path):
    folder = tmp_path / "my clone"
    folder.mkdir()
    origin = {"url": folder.as_uri(), "dir_info": {}}
    assert _command(origin, "service", place=True) == f"pip install '.[service]' in {folder}"
    (folder / "constraints.txt").write_text("")
    editable = {**origin, "dir_info": {"editable": True}}
    expected = "pip install -c constraints.txt -e '.[service,training]' in"
    assert _command(editable, "service,training", place=True) == f"{expected} {folder}"
    assert _command(editable, "service,training", place=False) == f"{expected} its clone"


def test_the_words_are_about_this_installation():
    assert pip_install("models", "images").startswith("pip install ")
    assert "[models,images]'" in pip_install("models", "images")
