"""What ``scripts/release`` refuses before it builds anything. The whole of it is run by hand: docs/releasing.md."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path):
    """Return what makes a repository with one tagged commit, and its folder."""
    root = tmp_path / "repository"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "release", root / "scripts" / "release")

    def git(*words):
        who = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)

    def tagged(tag, *, version="0.2.0", heading="## 0.2.0 (2026-12-01)"):
        (root / "pyproject.toml").write_text(f'[project]\nname = "paragone"\nversion = "{version}"\n')
        (root / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n## 0.1.0 (2026-11-01)\n")
        git("init", "-q")
        git("add", "-A")
        git("commit", "-q", "-m", "A release")
        git("tag", tag)

    return root, tagged


def refusal(root, *arguments):
    done = subprocess.run([root / "scripts" / "release", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("tag", ["", "0.2.0", "v0.2", "v0.2.0rc1", "v0.2.0; true"])
def test_a_tag_is_of_three_numbers(repository, tag):
    root, _ = repository
    assert f"the tag '{tag}' is not vMAJOR.MINOR.PATCH" in refusal(root, tag)


def test_a_tag_has_to_be_there(repository):
    root, tagged = repository
    tagged("v0.2.0")
    assert "there is no tag v0.3.0 here: git tag v0.3.0" in refusal(root, "v0.3.0")


def test_a_folder_that_is_there_is_not_overwritten(repository):
    root, tagged = repository
    tagged("v0.2.0")
    (root / "dist" / "0.2.0").mkdir(parents=True)
    assert "dist/0.2.0 is there already" in refusal(root, "v0.2.0")


def test_the_version_of_the_package_is_that_of_the_tag(repository):
    root, tagged = repository
    tagged("v0.2.1")
    assert "v0.2.1 has version 0.2.0 in pyproject.toml: set it to 0.2.1" in refusal(root, "v0.2.1")


@pytest.mark.parametrize(
    ("heading", "reason"),
    [
        ("## 0.20 (2026-12-01)", "CHANGELOG.md of v0.2.0 has no section '## 0.2.0'"),
        ("## 0.2.0 (unreleased)", "CHANGELOG.md of v0.2.0 calls 0.2.0 unreleased: give it a date"),
    ],
)
def test_the_changelog_has_a_dated_section_of_the_version(repository, heading, reason):
    root, tagged = repository
    tagged("v0.2.0", heading=heading)
    assert reason in refusal(root, "v0.2.0")
