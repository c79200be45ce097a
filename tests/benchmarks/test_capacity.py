"""The capacity plan: its arithmetic by hand, and the page that shows it."""

from pathlib import Path

import pytest
from capacity import MEASURED, Workload, table

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_page_has_the_table_of_the_script():
    assert table(Workload()) in PAGE.read_text(encoding="utf-8")


def test_by_hand():
    one = Workload(
        parameters=1e9, hidden=1000, prompt=400, response=100, siblings=4, hits=0.75, peak=1e15, utilisation=0.5
    )
    assert one.tokens == 200  # 400 / 4 + 100
    assert one.computed(2) == 2 * 0.5 * 1e15 / (2e9 * 200)  # 2,500
    assert one.answered(2) == 10_000
    assert one.cores(2) == pytest.approx(2_500 / 800 + 7_500 / 83_328)
    assert one.engine_bytes(2) == 2_500 * (4 * 500 + 24 + 4_000)
    assert one.redis_bytes() == pytest.approx(0.25e9 * 209)
    assert one.redis_load(2) == pytest.approx(12_500 / MEASURED.redis_keys)
