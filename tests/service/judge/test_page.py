"""docs/judges.md says what the code does."""

import re
import tomllib
from pathlib import Path

from paragone.codes import ErrorCode
from paragone_service.http.errors import HTTP_STATUS
from paragone_service.judge.settings import JudgeSettings
from paragone_service.judge.verdicts import BUILT_IN, load_format
from paragone_service.settings_sources import load_settings

PAGE = (Path(__file__).parents[3] / "docs" / "judges.md").read_text(encoding="utf-8")


def rows(header):
    table = PAGE.split(header, 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_setting_of_a_judge_is_on_the_page_with_its_default():
    documented = {
        name.strip("` "): default.strip("`")
        for names, default, _ in rows("| key | default")
        for name in names.split(",")
    }
    fields = JudgeSettings.model_fields
    assert documented.keys() | {"source", "kind", "temperature"} == fields.keys()
    for name, default in documented.items():
        if isinstance(fields[name].default, str | int | float):
            assert default == str(fields[name].default), name


def test_every_format_and_every_code_is_on_the_page():
    assert [name.strip("`") for name, *_ in rows("| format | how")] == list(BUILT_IN)
    codes = {code.strip("`"): int(status) for code, status, _ in rows("| code | status")}
    assert {code for code in ErrorCode if code.startswith("judge_")} <= codes.keys()
    assert all(HTTP_STATUS[ErrorCode(code)] == status for code, status in codes.items())


def test_the_files_on_the_page_can_be_used(tmp_path):
    settings, ensembles, form = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "format.toml").write_text(form)
    assert load_format(str(tmp_path / "format.toml")).verdict.direct
    (tmp_path / "settings.toml").write_text(settings)
    loaded = load_settings({}, tmp_path / "settings.toml")
    (tmp_path / "ensembles.toml").write_text(ensembles)
    assert load_settings({}, tmp_path / "ensembles.toml").ensembles["routed"].members == ["rm", "judge"]
    assert set(tomllib.loads(settings)["models"]["judge"]) == loaded.judges["judge"].model_fields_set
