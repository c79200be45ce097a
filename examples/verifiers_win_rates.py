"""An environment for verifiers and prime-rl whose attempts at a task are compared with each other.

Put this folder on PYTHONPATH, and run ``--env.id verifiers_win_rates --env.n 8`` over any taskset with prompts.

Tried with verifiers 0.4.0.
"""

import os

import verifiers.v1 as vf
from verifiers.v1.envs.best_of_n import BestOfNEnv

from paragone import AsyncClient
from paragone.adapters import verifiers

__all__ = ["WinRateEnv"]

oracle = AsyncClient(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"))


class WinRateEnv(BestOfNEnv):
    """n attempts, each with its win rate among them as a reward beside the task's own."""

    async def finalize(self, task: vf.Task, episode: vf.Episode) -> None:
        """Record the win rates, then what the host records of the best."""
        await verifiers.record_win_rates(oracle, task, episode.traces)
        await super().finalize(task, episode)
