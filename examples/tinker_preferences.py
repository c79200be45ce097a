"""A data set for tinker-cookbook's preference training (``recipes/preference/rlhf``) that asks one tournament a group.

Put ``PreferenceDataset`` in the place of ``PairwisePreferenceDataset``. Tried with tinker-cookbook 0.6.1.
"""

import os
from typing import Any

from tinker_cookbook.rl.preference_envs import PairwisePreferenceDataset, PairwisePreferenceGroupBuilder

from paragone import AsyncClient
from paragone.adapters import tinker

judge = tinker.PreferenceModel(AsyncClient(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000")))


class GroupBuilder(tinker.TournamentRewards, PairwisePreferenceGroupBuilder):
    """Compares the answers of a group in one request."""


class PreferenceDataset(PairwisePreferenceDataset):
    """Makes such groups; its ``preference_model`` is the judge above."""

    def _labeled_comparison_to_env_group(self, comparison: Any) -> GroupBuilder:
        host = super()._labeled_comparison_to_env_group(comparison)
        return GroupBuilder(**vars(host))
