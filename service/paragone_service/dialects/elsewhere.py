"""Paths that clients of other servers ask and that nobody answers here: what to ask instead."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["ELSEWHERE"]

_DECISIONS = (
    "for how probable it is that one answer is preferred to another, ask /v1/preferences; for a reward, /v1/rewards"
)
_NO_TEXT = (
    "this server scores texts and writes none; for rewards ask /v1/rewards, or /v1/chat/completions with the answer"
)
_COHORTS = "send each member of a group to /v1/cohorts, or the whole group to /v1/tournaments"
_REWARDS = "ask /v1/rewards, or what your trainer knows: /get_reward (OpenRLHF), /classify (verl, vLLM), /rm (slime)"
_VECTORS = "this server has rewards and no embeddings of meaning; /v1/embeddings gives the reward as a vector of one"

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "/v1/systemone": _DECISIONS,
        "/v1/decisions": _DECISIONS,
        "/generative_scoring": _DECISIONS,
        "/v1/completions": _NO_TEXT,
        "/v1/responses": _NO_TEXT,
        "/generate": _NO_TEXT,
        "/chat": _NO_TEXT,
        "/verify": _COHORTS,
        "/compare": _COHORTS,
        "/reward": _REWARDS,
        "/rewards": _REWARDS,
        "/v1/reward": _REWARDS,
        "/embed": _VECTORS,
        "/embeddings": _VECTORS,
        "/similarity": _VECTORS,
        "/ping": "ask /livez, /readyz or /health",
        "/healthz": "ask /livez, /readyz or /health",
        "/detokenize": "/v1/tokens shows what a model sees of a conversation, and /tokenize the tokens of a text",
    }
)
