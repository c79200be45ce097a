"""An environment of one turn for SkyRL whose reward is the oracle's.

Register it where the trainer starts,

    skyrl_gym.register(id="preferences", entry_point="skyrl_env:PreferenceEnv")

and set ``environment.env_class=preferences``. Tried with skyrl-gym 0.4.0.
"""

import os

from skyrl_gym.envs.base_text_env import BaseTextEnv

from paragone import Client
from paragone.adapters import skyrl


class PreferenceEnv(skyrl.OneTurn, BaseTextEnv):
    """The reward: how probable it is that the answer is preferred to the row's ``reward_spec["ground_truth"]``."""

    client = Client(os.environ.get("PARAGONE_URL", "http://127.0.0.1:8000"))
    signal = "against_reference"
