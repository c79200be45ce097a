"""What can go wrong in this package.

TrainingError
└── RecipeError (ValueError)   a recipe that cannot be run: the value, the limit and the remedy are in the message

Data files are read by ``paragone_evaluation``; what is wrong with one is its ``DataError``.
"""

from paragone_evaluation.errors import DataError

__all__ = ["DataError", "RecipeError", "TrainingError"]


class TrainingError(Exception):
    """Be the root of this package's errors."""


class RecipeError(TrainingError, ValueError):
    """Refuse a recipe before anything is computed."""
