"""The old place of ``eval_command``, for environments that were installed before it moved."""

from paragone_evaluation.eval_command import calibrate, evaluate

__all__ = ["calibrate", "evaluate"]
