"""docs/serving.md says what is true: its tables against the code, its file through the loader."""

import re
import tomllib
from pathlib import Path

import pytest

from paragone.codes import ErrorCode
from paragone_service.config import Settings
from paragone_service.http.bodies import MAX_GROUP, MAX_ITEMS, MAX_RESPONSES
from paragone_service.http.counting import MAX_PARTS
from paragone_service.http.errors import HTTP_STATUS
from paragone_service.model_settings import ModelSettings
from paragone_service.settings_sources import load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def rows(heading):
    """The cells of every row of the table under a heading row that starts so."""
    table = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_errors_is_the_table_of_the_code():
    documented = {ErrorCode(code.strip("`")): int(status) for code, status, _ in rows("| code | status |")}
    assert documented == dict(HTTP_STATUS)


def test_every_setting_is_documented_with_its_default():
    documented = {name.strip("`"): default.strip("`") for name, default, _ in rows("| setting | default |")}
    assert set(documented) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, bool | int | float | str):
            assert documented[name] == str(field.default).replace("False", "false").replace("True", "true"), name


def test_every_key_of_a_model_is_documented():
    documented = {name.strip("` ") for names, _ in rows("| key of a model |") for name in names.split(",")}
    assert documented == set(ModelSettings.model_fields)


def test_the_file_on_the_page_can_be_used(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tomllib.loads(text)
    path = tmp_path / "paragone.toml"
    path.write_text(text, encoding="utf-8")
    settings = load_settings({}, path)
    assert settings.default_model == "judge"
    assert settings.models["ratings"].weights == {"helpfulness": 0.65, "verbosity": -0.2}


@pytest.mark.parametrize("limit", [MAX_ITEMS, MAX_RESPONSES, MAX_GROUP, MAX_PARTS])
def test_the_limits_on_the_page_are_those_of_the_code(limit):
    assert f"{limit:,}" in PAGE
