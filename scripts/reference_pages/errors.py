"""The page of errors: every code with its status, the exception that the client raises, and what to do."""

import inspect
import re

from paragone.codes import ErrorCode
from paragone.exceptions import EXCEPTIONS, ParagoneError
from paragone_service.http.errors import HTTP_STATUS

from .markdown import paragraph, table

__all__ = ["errors_page"]

# What a caller can do about each class of failure; by class, because a program decides by what it catches.
_REMEDIES = {
    "RequestError": "Change the request; to send it again as it is gives the same answer.",
    "TextError": "Leave the text out, shorten it, or host the model with a larger `max_length`; "
    '`"on_error": "report"` answers for the other items of the batch.',
    "TooLargeError": "Send less at a time. The client splits batches by itself.",
    "UnsupportedError": "Ask another route or another model: `GET /v1/models` says what each one answers.",
    "UnknownModelError": "Use an id that `GET /v1/models` has.",
    "UnknownIdError": "Send the responses in full; `ids` of the exception names them.",
    "UnknownReferencesError": "Store the reference set again (`POST /v1/references`): it may have expired.",
    "UnknownRouteError": "Correct the address or the method; routes of other servers: [dialects](../dialects.md).",
    "KeyRefusedError": "Give a key that the server knows and that may do this ([keys](../serving.md#keys)).",
    "QuotaExceededError": "Wait `retry_after_s`; the client does it by itself, within `retry_s`.",
    "VersionError": "Install the version of the client that the message names.",
    "UnavailableError": "Wait `retry_after_s` and ask again; the client does it by itself, within `retry_s`, "
    "and goes to another replica if it has its address.",
    "DeadlineError": "Ask with a longer `deadline_s`, or send less at a time.",
    "ServerError": "Look into the server's log under the request id, which the exception carries.",
    "NonFiniteScoreError": "Host the model with `dtype=float32`, or look at its weights: it gave NaN or infinity.",
}


def errors_page(serving: str) -> str:
    """Return the page.

    Args:
        serving: the text of docs/serving.md, whose table says when each code is answered.

    Raises:
        KeyError: if a code has no row there, or an exception no remedy here.
    """
    when = dict(re.findall(r"^\| `(\w+)` \| \d+ \| (.*?) \|$", serving, re.MULTILINE))
    rows = [
        (
            f"`{code.value}`",
            str(HTTP_STATUS[code]),
            f"[`{EXCEPTIONS[code].__name__}`](#{EXCEPTIONS[code].__name__.lower()})",
            _moved(when[code.value]),
        )
        for code in ErrorCode
    ]
    classes = []
    for kind in dict.fromkeys(EXCEPTIONS[code] for code in ErrorCode):
        refined = next(base for base in kind.__mro__ if not issubclass(base, ParagoneError))
        classes.append(
            f"### {kind.__name__} {{ #{kind.__name__.lower()} }}\n\n"
            f"{paragraph(inspect.getdoc(kind) or '')} Also a `{refined.__name__}`.\n\n"
            f"**What to do**: {_REMEDIES[kind.__name__]}\n"
        )
    return "\n".join(
        [
            "# Errors\n",
            'An answer that is no success is `{"error": {"code", "message", …}}`; the client raises the exception '
            "of its code. A code is never renamed or used again, and no failure becomes a number.\n",
            table(("code", "status", "exception", "when"), rows),
            "## What to do\n",
            *classes,
        ]
    )


def _moved(text: str) -> str:
    """Return Markdown of docs/serving.md with its links as they are from the folder below."""
    return re.sub(r"\]\((#?)([^)]*)\)", lambda found: f"](../{'serving.md#' if found[1] else ''}{found[2]})", text)
