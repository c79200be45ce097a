"""What can go wrong in this package.

EvaluationError (ValueError)    a question that has no answer: the value, the limit and the remedy are in the message
├── DataError                   a data file that cannot be read or must not be used: file and line are named
└── CalibrationError            no temperature makes these probabilities right
"""

import math

__all__ = ["CalibrationError", "DataError", "EvaluationError"]


class EvaluationError(ValueError):
    """Refuse an evaluation: an option that does not fit, a folder with another run's answers, a model that changed."""


class DataError(EvaluationError):
    """Refuse a data file, with the file and the line."""


class CalibrationError(EvaluationError):
    """Refuse to fit a temperature where none is best: a model that is wrong more than right, or never wrong.

    Attributes:
        limit: where the temperature goes: 0 for a model that is never wrong, else infinity.
    """

    def __init__(self, message: str, *, limit: float = math.inf) -> None:
        super().__init__(message)
        self.limit = limit
