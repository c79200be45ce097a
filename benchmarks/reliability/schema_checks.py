"""What schemathesis checks beside its own checks; it imports this file by ``SCHEMATHESIS_HOOKS``."""

from typing import Any

import schemathesis

# No server keeps a deadline below: 504 is the documented answer there, and a fault anywhere else.
_KEPT_S = 1.0


@schemathesis.check
def no_server_error(
    ctx: schemathesis.CheckContext,  # noqa: ARG001 (its signature)
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """Fail at a status of 500 or above, unless it is 504 and the case named a deadline of less than a second."""
    if response.status_code < 500 or (response.status_code == 504 and _hurries(case)):
        return
    raise AssertionError(f"{case.operation.label} was answered with {response.status_code}")


@schemathesis.hook
def before_call(ctx: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001 (its signature)
    """Have members of cohorts wait for half a second: the others of their groups never come."""
    if case.operation.path == "/v1/cohorts" and isinstance(case.body, dict):
        case.body.setdefault("deadline_s", _KEPT_S / 2)


def _hurries(case: schemathesis.Case[Any]) -> bool:
    named = [dict(case.headers or {}).get("x-deadline-s")]
    if isinstance(case.body, dict):
        named.append(case.body.get("deadline_s"))
    return any(_seconds(value) < _KEPT_S for value in named if value is not None)


def _seconds(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return _KEPT_S
