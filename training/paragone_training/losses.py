"""The losses of policy optimisation under the name that users import: ``paragone_training.losses``."""

from paragone_training.policy.methods.dpo import dpo_loss
from paragone_training.policy.methods.egpo import egpo_setting, nash_mp_setting
from paragone_training.policy.methods.gpo import gpo_loss, gpo_scale
from paragone_training.policy.methods.inpo import inpo_loss, inpo_setting
from paragone_training.policy.methods.ipo import ipo_loss, ipo_setting
from paragone_training.policy.methods.omwu import omwu_setting
from paragone_training.policy.methods.pairwise import (
    FrozenColumn,
    PairwiseSetting,
    pairwise_loss,
    regression_residual,
)
from paragone_training.policy.methods.sft import sft_loss
from paragone_training.policy.methods.sppo import sppo_loss, sppo_scale

__all__ = [
    "FrozenColumn",
    "PairwiseSetting",
    "dpo_loss",
    "egpo_setting",
    "gpo_loss",
    "gpo_scale",
    "inpo_loss",
    "inpo_setting",
    "ipo_loss",
    "ipo_setting",
    "nash_mp_setting",
    "omwu_setting",
    "pairwise_loss",
    "regression_residual",
    "sft_loss",
    "sppo_loss",
    "sppo_scale",
]
