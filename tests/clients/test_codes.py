import pytest

from paragone.codes import ErrorCode


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_is_written_as_its_name_in_small_letters(code):
    assert code.value == code.name.lower()
    assert f"{code}" == code.value
