"""What can stop a policy run.

TrainingError
└── RunError (RuntimeError)          a run that cannot go on now; what is on disk stays, and the run can be resumed
    ├── OracleGoneError              no answer for longer than the recipe's patience
    ├── OracleReplacedError          another model answers than before
    ├── SamplerGoneError             no sampler server answers for longer than the recipe's patience
    ├── SamplerMismatchError         a sampler server is not the policy
    ├── DiskFullError                there is no room for what comes next
    └── FolderTakenError             another process runs in the folder
"""

from paragone_training.errors import TrainingError

__all__ = [
    "DiskFullError",
    "FolderTakenError",
    "OracleGoneError",
    "OracleReplacedError",
    "RunError",
    "SamplerGoneError",
    "SamplerMismatchError",
]


class RunError(TrainingError, RuntimeError):
    """Stop a run; it can be resumed."""


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
