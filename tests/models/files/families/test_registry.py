"""The registry of families, and the table of the documentation that it is held against."""

import re
from pathlib import Path

from paragone_models.files.families.registry import FAMILIES

PAGE = Path(__file__).parents[4] / "docs" / "models.md"


def test_the_table_has_a_row_for_each_family_in_their_order_and_no_other():
    page = PAGE.read_text(encoding="utf-8")
    table = re.search(
        r"\| family \| found by \| becomes \| run on its published weights \|\n\|[-|]+\|\n((?:\|.*\n)+)", page
    )
    assert table is not None
    assert table[1].splitlines() == [family.row for family in FAMILIES]


def test_no_two_families_have_one_name():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) > 5
