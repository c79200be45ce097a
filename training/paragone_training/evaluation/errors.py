"""What can go wrong in an evaluation; files that cannot be read raise ``paragone_training.errors.DataError``.

TrainingError
├── EvaluationError (ValueError)     a question that has no answer: the value, the limit and the remedy are told
└── CalibrationError (ValueError)    no temperature makes these probabilities right
"""

from paragone_training.errors import TrainingError

__all__ = ["CalibrationError", "EvaluationError"]


class EvaluationError(TrainingError, ValueError):
    """Refuse an evaluation: an option that does not fit, a folder with another run's answers, a model that changed."""


class CalibrationError(TrainingError, ValueError):
    """Refuse to fit a temperature where none is best: a model that is wrong more than right, or never wrong."""
