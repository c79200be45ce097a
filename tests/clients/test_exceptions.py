import builtins
import copy
import pickle

import pytest

from paragone import exceptions
from paragone.codes import ErrorCode
from paragone.exceptions import EXCEPTIONS, ParagoneError, checked, exception_class, exception_for
from paragone.wire import ErrorDetail, ItemError, Reward

CLASSES = [getattr(exceptions, name) for name in exceptions.__all__ if name.endswith("Error")]


def test_every_code_has_an_exception():
    assert set(EXCEPTIONS) == set(ErrorCode)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_exception_is_drawn_in_the_tree_and_is_one_of_ours(kind):
    assert issubclass(kind, ParagoneError)
    assert f" {kind.__name__} (" in exceptions.__doc__ or kind.__name__ in exceptions.__doc__.split()


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not ParagoneError])
def test_every_exception_is_also_a_standard_one(kind):
    assert any(
        base.__module__ == "builtins"
        and base not in (Exception, BaseException, object)
        and hasattr(builtins, base.__name__)
        for base in kind.__mro__
    )


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
@pytest.mark.parametrize("kind", CLASSES)
def test_exceptions_survive_pickling_and_copying(kind, again):
    error = kind("m", code="c", item=3, status=422, request_id="r", retry_after_s=1.5)
    other = again(error)
    assert type(other) is kind
    assert str(other) == str(error) == "m (c, HTTP 422, request r)"
    assert vars(other) == vars(error)


@pytest.mark.parametrize(
    ("code", "standard"),
    [
        (ErrorCode.EMPTY_PROMPT, ValueError),
        (ErrorCode.TOO_MANY_ITEMS, ValueError),
        (ErrorCode.UNKNOWN_MODEL, LookupError),
        (ErrorCode.WRONG_KEY, PermissionError),
        (ErrorCode.OVERLOADED, ConnectionError),
        (ErrorCode.DEADLINE_EXCEEDED, TimeoutError),
        (ErrorCode.NON_FINITE_SCORE, ArithmeticError),
        (ErrorCode.INTERNAL_ERROR, RuntimeError),
    ],
)
def test_a_code_refines_the_standard_exception_that_one_would_catch(code, standard):
    assert issubclass(exception_class(code), standard)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, exceptions.AnswerError),
        (400, exceptions.RequestError),
        (401, exceptions.KeyRefusedError),
        (413, exceptions.TooLargeError),
        (418, exceptions.RequestError),
        (429, exceptions.QuotaExceededError),
        (500, exceptions.ServerError),
        (503, exceptions.UnavailableError),
        (504, exceptions.DeadlineError),
        (None, ParagoneError),
    ],
)
def test_an_unknown_code_goes_by_the_status(status, kind):
    assert exception_class("a_code_of_tomorrow", status) is kind
    assert exception_class(None, status) is kind


def test_the_exception_of_an_error_carries_all_that_is_known():
    detail = ErrorDetail(code=ErrorCode.EMPTY_PROMPT, message="pairs[3]: the prompt is empty", item=3)
    error = exception_for(detail, status=422, request_id="r")
    assert type(error) is exceptions.TextError
    assert (error.code, error.item, error.status, error.request_id) == ("empty_prompt", 3, 422, "r")


def test_checked_rows_are_the_rows_or_the_first_error():
    rows = [Reward(reward=1.0), Reward(reward=2.0)]
    assert checked(rows) == rows
    refused = ItemError(error=ErrorDetail(code=ErrorCode.RESPONSE_TOO_LONG, message="m", item=1))
    with pytest.raises(exceptions.TextError) as caught:
        checked([rows[0], refused])
    assert caught.value.item == 1
