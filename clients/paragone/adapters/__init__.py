"""Plugs for other people's training loops, each in the shape that its host reads, none importing its host.

    paragone.adapters.trl       reward_function, async_reward_function, WinRateCallback, PairwiseJudge, RankJudge
    paragone.adapters.verl      RewardManager, compute_score
    paragone.adapters.slime     custom_rm, eval_rm
    paragone.adapters.openrlhf  reward_func
    paragone.adapters.nemo_gym  Scorer
    paragone.adapters.tinker    PreferenceModel, TournamentRewards
    paragone.adapters.verifiers score, record_win_rates
    paragone.adapters.areal     reward_fn
    paragone.adapters.skyrl     OneTurn
    paragone.adapters.nemo_rl   rewards

They take a ``Client`` or an ``AsyncClient``, so that address, key, model and retries are set in one place. A failure is
None, -1 or an exception, whatever the host can take, and never a number that looks like a reward.
"""
