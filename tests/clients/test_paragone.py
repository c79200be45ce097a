import subprocess
import sys

import pytest

import paragone


def imported_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after a statement."""
    script = f"{statement}\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_paragone_imports_nothing_heavy():
    assert not imported_after("import paragone") & {"torch", "numpy", "httpx2", "pydantic", "typer", "rich"}


def test_the_wire_types_bring_no_http_client():
    assert not imported_after("import paragone.wire, paragone.codes") & {"torch", "numpy", "httpx2", "typer"}


def test_the_client_brings_no_torch_and_no_numpy():
    modules = imported_after("from paragone import Client, AsyncClient; import paragone.adapters.trl")
    assert "httpx2" in modules
    assert not modules & {"torch", "numpy", "transformers", "fastapi", "typer"}


@pytest.mark.parametrize("name", paragone.__all__)
def test_every_exported_name_can_be_had_and_is_listed(name):
    assert getattr(paragone, name) is not None
    assert name in dir(paragone)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Clint'"):
        paragone.Clint  # noqa: B018


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert paragone.__version__ == version("paragone")
