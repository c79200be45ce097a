"""All dialects, in the order in which they are asked whether a body is theirs."""

from paragone_service.dialects.chat_rewards import CHAT_REWARDS
from paragone_service.dialects.dialect import Dialect
from paragone_service.dialects.huggingface import HUGGINGFACE
from paragone_service.dialects.infinity import INFINITY
from paragone_service.dialects.kserve import KSERVE
from paragone_service.dialects.nvidia_ranking import NVIDIA_RANKING
from paragone_service.dialects.openrlhf import OPENRLHF
from paragone_service.dialects.rerank import RERANK
from paragone_service.dialects.settings import DIALECT_NAMES
from paragone_service.dialects.sglang import SGLANG
from paragone_service.dialects.slime import SLIME
from paragone_service.dialects.vllm_pooling import VLLM

__all__ = ["DIALECTS"]

# Those that know their bodies by a field come before those that take every body.
DIALECTS: tuple[Dialect, ...] = (
    OPENRLHF,
    SLIME,
    HUGGINGFACE,
    INFINITY,
    SGLANG,
    RERANK,
    VLLM,
    CHAT_REWARDS,
    NVIDIA_RANKING,
    KSERVE,
)

assert sorted(dialect.name for dialect in DIALECTS) == sorted(DIALECT_NAMES)
