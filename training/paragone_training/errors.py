"""What can go wrong in this package.

TrainingError
├── RecipeError (ValueError)   a recipe that cannot be run: the value, the limit and the remedy are in the message
└── DataError (ValueError)     a data file that cannot be read or must not be trained on: file and line are named
"""

__all__ = ["DataError", "RecipeError", "TrainingError"]


class TrainingError(Exception):
    """Be the root of this package's errors."""


class RecipeError(TrainingError, ValueError):
    """Refuse a recipe before anything is computed."""


class DataError(TrainingError, ValueError):
    """Refuse a data file, with the file and the line."""
