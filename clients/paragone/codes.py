"""The error codes on the wire: one stable enum, owned by the client.

Two total tables hang on it: code → HTTP status (in the service) and code → exception (``paragone.exceptions``).
A code is never renamed or reused; a client must accept codes that it does not know yet.
"""

from enum import StrEnum

__all__ = ["ErrorCode"]


class ErrorCode(StrEnum):
    """What went wrong, in one word that programs may depend on."""

    # What came is no HTTP, or its body could not be read.
    INVALID_HTTP = "invalid_http"
    INVALID_JSON = "invalid_json"
    INVALID_ENCODING = "invalid_encoding"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INCOMPATIBLE_VERSION = "incompatible_version"

    # The request was read, and is refused.
    INVALID_REQUEST = "invalid_request"
    EMPTY_PROMPT = "empty_prompt"
    UNSUPPORTED_CONTENT = "unsupported_content"
    RESPONSE_TOO_LONG = "response_too_long"
    CONVERSATION_TRUNCATED = "conversation_truncated"
    PREFERENCES_UNAVAILABLE = "preferences_unavailable"
    TEXT_UNAVAILABLE = "text_unavailable"
    RETURN_UNAVAILABLE = "return_unavailable"
    REFERENCE_REQUIRED = "reference_required"
    TOO_MANY_ITEMS = "too_many_items"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    REQUEST_TIMEOUT = "request_timeout"

    # The address is wrong, or what it named is gone.
    UNKNOWN_ID = "unknown_id"
    UNKNOWN_MODEL = "unknown_model"
    NOT_FOUND = "not_found"
    DIALECT_OFF = "dialect_off"
    UNKNOWN_HOST = "unknown_host"
    METHOD_NOT_ALLOWED = "method_not_allowed"

    # A cohort: what was sent does not fit its group, or its group did not become whole.
    COHORT_CONFLICT = "cohort_conflict"
    COHORT_SUPERSEDED = "cohort_superseded"
    COHORT_INCOMPLETE = "cohort_incomplete"
    COHORT_LOST = "cohort_lost"

    # A reference set is not there, has nothing for a prompt, or is another model's.
    REFERENCE_UNKNOWN = "reference_unknown"
    REFERENCE_MISSING = "reference_missing"
    REFERENCE_STALE = "reference_stale"

    # A judge elsewhere gave no verdict.
    JUDGE_UNPARSED = "judge_unparsed"
    JUDGE_UNFINISHED = "judge_unfinished"
    JUDGE_REFUSED = "judge_refused"
    JUDGE_FAILED = "judge_failed"
    JUDGE_UNAVAILABLE = "judge_unavailable"

    # A model was not loaded, or is not let go.
    MODEL_REFUSED = "model_refused"

    # The key is missing, wrong or spent.
    MISSING_KEY = "missing_key"
    WRONG_KEY = "wrong_key"
    NOT_ALLOWED = "not_allowed"
    QUOTA_EXCEEDED = "quota_exceeded"

    # Try again later.
    OVERLOADED = "overloaded"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    NOT_READY = "not_ready"
    SHUTTING_DOWN = "shutting_down"
    DEADLINE_EXCEEDED = "deadline_exceeded"

    # The server's own fault.
    ENGINE_FAILED = "engine_failed"
    NON_FINITE_SCORE = "non_finite_score"
    INTERNAL_ERROR = "internal_error"
