"""The table of errors, and what they look like on the wire."""

import json

import pytest
from pydantic import ValidationError

from paragone.codes import ErrorCode
from paragone.wire import ErrorBody, PreferencesRequest
from paragone_service.http.errors import HTTP_STATUS, ServiceError, error_response, from_validation, printable


def test_every_code_has_a_status():
    assert set(HTTP_STATUS) == set(ErrorCode)
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


def test_overload_is_503_and_a_spent_quota_429_because_trainers_retry_only_one_of_them():
    assert HTTP_STATUS[ErrorCode.OVERLOADED] == 503
    assert HTTP_STATUS[ErrorCode.QUOTA_EXCEEDED] == 429


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_is_answered_with_its_status_and_the_wire_body(code):
    response = error_response(ServiceError(code, "what, and what to do", item=3, retry_after_s=2))
    assert response.status_code == HTTP_STATUS[code]
    assert response.headers["retry-after"] == "2"
    body = ErrorBody.model_validate_json(bytes(response.body))
    assert (body.error.code, body.error.message, body.error.item) == (code, "what, and what to do", 3)


def test_an_error_of_the_whole_request_names_no_item():
    response = error_response(ServiceError(ErrorCode.OVERLOADED, "later"))
    assert json.loads(bytes(response.body)) == {"error": {"code": "overloaded", "message": "later"}}
    assert "retry-after" not in response.headers


def test_a_refused_field_is_named_with_its_item_and_without_what_was_sent():
    bad = {"pairs": [{"prompt": "p", "first": "a", "second": "b"}, {"prompt": 5, "first": "secret", "secnd": "b"}]}
    with pytest.raises(ValidationError) as caught:
        PreferencesRequest.model_validate(bad)
    error = from_validation(caught.value)
    assert (error.code, error.item) == (ErrorCode.INVALID_REQUEST, 1)
    assert error.message.startswith("pairs[1].")
    assert "(and 2 more)" in error.message
    assert "secret" not in error.message


def test_a_name_that_was_sent_is_shown_short_and_in_ascii():
    assert printable("näme\n") == r"'n\xe4me\n'"
    assert printable("\ud800") == r"'\ud800'"
    assert len(printable("x" * 1000)) < 80
