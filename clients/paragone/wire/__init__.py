"""The wire types: what a request may say and what an answer says, shared by the client and the service.

Requests refuse unknown fields; answers ignore them. No error text repeats the input. Left out on purpose: the limit on
items per request (the server's own, reported in ``ModelInfo.limits``), and token ids as input.
"""

from paragone.wire.answers import (
    ErrorBody,
    ErrorDetail,
    ItemError,
    ModelInfo,
    ModelLimits,
    ModelsAnswer,
    Preference,
    PreferencesAnswer,
    Reward,
    RewardsAnswer,
    TokensAnswer,
    TokensItem,
    Tournament,
    TournamentsAnswer,
    Usage,
)
from paragone.wire.conversations import ContentPart, Group, HandlePair, Item, Message, Pair, Prompt, Response
from paragone.wire.refusals import error_detail
from paragone.wire.requests import (
    OnError,
    PreferencesRequest,
    RewardReturn,
    RewardsRequest,
    TokensRequest,
    TournamentReturn,
    TournamentsRequest,
    Truncation,
)

__all__ = [
    "ContentPart",
    "ErrorBody",
    "ErrorDetail",
    "Group",
    "HandlePair",
    "Item",
    "ItemError",
    "Message",
    "ModelInfo",
    "ModelLimits",
    "ModelsAnswer",
    "OnError",
    "Pair",
    "Preference",
    "PreferencesAnswer",
    "PreferencesRequest",
    "Prompt",
    "Response",
    "Reward",
    "RewardReturn",
    "RewardsAnswer",
    "RewardsRequest",
    "TokensAnswer",
    "TokensItem",
    "TokensRequest",
    "Tournament",
    "TournamentReturn",
    "TournamentsAnswer",
    "TournamentsRequest",
    "Truncation",
    "Usage",
    "error_detail",
]
