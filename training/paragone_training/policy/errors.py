"""What can stop a policy run.

TrainingError
└── RunError (RuntimeError)          a run that cannot go on now; what is on disk stays, and the run can be resumed
    ├── OracleGoneError              no answer for longer than the recipe's patience
    ├── OracleReplacedError          another model answers than before
    ├── DiskFullError                there is no room for what comes next
    └── FolderTakenError             another process runs in the folder
"""

from paragone_training.errors import TrainingError

__all__ = ["DiskFullError", "FolderTakenError", "OracleGoneError", "OracleReplacedError", "RunError"]


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
