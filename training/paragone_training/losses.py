"""The losses of policy optimisation under the name that users import: ``paragone_training.losses``."""

from paragone_training.policy.methods.losses import (
    FrozenColumn,
    PairwiseSetting,
    dpo_loss,
    egpo_setting,
    gpo_loss,
    gpo_scale,
    inpo_loss,
    inpo_setting,
    ipo_loss,
    ipo_setting,
    nash_mp_setting,
    omwu_setting,
    pairwise_loss,
    regression_residual,
    sppo_loss,
    sppo_scale,
)

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
    "sppo_loss",
    "sppo_scale",
]
