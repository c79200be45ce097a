"""What can go wrong in this package.

ModelError
├── ModelLoadError (ValueError)                a source that cannot be hosted, and why
├── TextError (ValueError)                     a conversation that this model cannot read; ``code`` says which way
├── PreferencesUnavailableError (ValueError)   a kind that needs attribute weights before it can compare
└── NonFiniteError (ArithmeticError)           a representation with NaN or infinity in it
"""

from typing import Literal

__all__ = [
    "ModelError",
    "ModelLoadError",
    "NonFiniteError",
    "PreferencesUnavailableError",
    "TextError",
    "TextErrorCode",
    "reason_of",
]

TextErrorCode = Literal[
    "empty_prompt", "unsupported_content", "response_too_long", "conversation_truncated", "text_unavailable"
]


class ModelError(Exception):
    """Be the root of this package's errors."""


class ModelLoadError(ModelError, ValueError):
    """Refuse a source: missing or random head, unsafe files, NaN weights, a wrong option."""


class TextError(ModelError, ValueError):
    """Refuse one conversation; never raised for a whole batch, see ``TextReader.read``."""

    def __init__(self, code: TextErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class PreferencesUnavailableError(ModelError, ValueError):
    """Refuse a comparison by a model that rates attributes but was given no weights to merge them."""


class NonFiniteError(ModelError, ArithmeticError):
    """Refuse to pass NaN or infinity on as a score."""


def reason_of(error: BaseException) -> str:
    """Return an error of any library as one line: its kind, and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name
