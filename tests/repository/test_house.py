"""What holds for the repository as a whole."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {
    "clients": "paragone",
    "models": "paragone_models",
    "service": "paragone_service",
    "evaluation": "paragone_evaluation",
    "training": "paragone_training",
}


def test_every_part_has_one_package_and_no_stray_module_beside_it():
    for folder, package in PARTS.items():
        beside = [
            path.name for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        ]
        assert beside == [package], f"{folder} is on sys.path: whatever lies in it can be imported by accident"


def test_the_import_contracts_hold():
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("package", PARTS.values())
def test_every_package_says_that_it_is_typed(package):
    folder = next(folder for folder, name in PARTS.items() if name == package)
    assert (ROOT / folder / package / "py.typed").is_file()


def test_importing_the_models_loads_neither_torch_nor_transformers():
    code = """
import sys
from paragone_models import tournament
from paragone_models.comparator import Comparator
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_of_the_entry_points_can_be_loaded():
    commands = list(entry_points(group="paragone.commands"))
    assert {"ask", "serve", "train"} <= {command.name for command in commands}
    for command in commands:
        assert callable(command.load())


def test_ignored_names_are_anchored_so_that_no_package_drops_out_of_the_wheel():
    lines = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    generated = {"__pycache__/", "*.egg-info/"}
    assert [line for line in lines if not line.startswith("/") and line not in generated] == []


def test_the_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "paragone":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_changelog_has_an_entry_for_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_relative_link_in_the_documents_leads_somewhere():
    documents = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "data").glob("*.md"),
    ]
    assert len(documents) > 5
    broken = []
    for document in documents:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        local = [link for link in links if not link.startswith(("http:", "https:", "mailto:"))]
        broken += [f"{document.name}: {link}" for link in local if not (document.parent / link).exists()]
    assert broken == []


def test_no_file_of_code_is_longer_than_six_hundred_lines():
    exceptions: dict[str, str] = {}
    files = [path for folder in PARTS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 600 and name not in exceptions} == {}
