"""What can go wrong in this package.

TrainingError
├── RecipeError (ValueError)         a recipe that cannot be run: the value, the limit and the remedy are in the message
└── RunError (RuntimeError)          a run that cannot go on now; its files stay, and it can be resumed
    ├── DivergedError                a loss, a gradient or a weight is no finite number
    ├── OracleGoneError              no answer for longer than the recipe's patience
    ├── OracleReplacedError          another model answers than before
    ├── SamplerGoneError             no sampler server answers for longer than the recipe's patience
    ├── SamplerMismatchError         a sampler server is not the policy
    ├── DiskFullError                there is no room for what comes next
    └── FolderTakenError             another process runs in the folder

Data files are read by ``paragone_evaluation``; what is wrong with one is its ``DataError``.
"""

from paragone_evaluation.errors import DataError

__all__ = [
    "DataError",
    "DiskFullError",
    "DivergedError",
    "FolderTakenError",
    "OracleGoneError",
    "OracleReplacedError",
    "RecipeError",
    "RunError",
    "SamplerGoneError",
    "SamplerMismatchError",
    "TrainingError",
]


class TrainingError(Exception):
    """Be the root of this package's errors."""


class RecipeError(TrainingError, ValueError):
    """Refuse a recipe before anything is computed."""


class RunError(TrainingError, RuntimeError):
    """Stop a run; it can be resumed."""


class DivergedError(RunError):
    """A loss, a gradient or a weight is NaN or infinite."""


class OracleGoneError(RunError):
    """The oracle gave no answer for longer than the recipe's patience."""


class OracleReplacedError(RunError):
    """The oracle is not the model that answered before."""


class DiskFullError(RunError):
    """There is no room on the disk."""


class FolderTakenError(RunError):
    """Another process runs in the folder."""


class SamplerGoneError(RunError):
    """No sampler server gave an answer for longer than the recipe's patience."""


class SamplerMismatchError(RunError):
    """A sampler server is not the policy: another model, tokenizer or protocol, or other weights."""
