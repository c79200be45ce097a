"""What one request spends at a judge: its calls and tokens, and the budgets that end them."""

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError
from paragone_service.judge.chat import ChatAnswer
from paragone_service.judge.settings import JudgeSettings
from paragone_service.quotas import Spending

__all__ = ["Bill"]

_MILLION = 1e6


class Bill:
    """Count a request's calls and tokens.

    Args:
        spending: what is left of its key's quota; None for no end.

    Attributes:
        calls: begun.
        tokens: read and written.
    """

    def __init__(self, settings: JudgeSettings, spending: Spending | None) -> None:
        self._settings = settings
        self._spending = spending
        self.calls = 0
        self.tokens = 0
        self._prompt_tokens = 0

    async def begin(self) -> None:
        """Take one call.

        Raises:
            ServiceError: ``quota_exceeded``, if the request or its key has no more calls or tokens.
        """
        settings = self._settings
        if settings.calls_per_request is not None and self.calls >= settings.calls_per_request:
            raise _spent(f"{settings.calls_per_request} calls", "calls_per_request")
        if settings.tokens_per_request is not None and self.tokens >= settings.tokens_per_request:
            raise _spent(f"{settings.tokens_per_request} tokens", "tokens_per_request")
        self.calls += 1
        try:
            if self._spending is not None:
                await self._spending.judge_call()
        except ServiceError:
            self.calls -= 1
            raise

    async def end(self, answer: ChatAnswer) -> None:
        """Count what a call took.

        Raises:
            ServiceError: ``judge_failed``, if somebody counts tokens and the server does not say how many they were.
        """
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            settings = self._settings
            if settings.tokens_per_request is None and settings.price_prompt is None and self._spending is None:
                return
            raise ServiceError(
                ErrorCode.JUDGE_FAILED,
                "the judge's server does not say how many tokens it read and wrote, and a quota, a budget or a price "
                "needs to know: have it report usage, or leave these out",
            )
        took = answer.prompt_tokens + answer.completion_tokens
        self.tokens += took
        self._prompt_tokens += answer.prompt_tokens
        if self._spending is not None:
            await self._spending.owe(took - 1)  # one was taken when the call began

    @property
    def cost(self) -> float | None:
        """What the tokens cost, in the currency of the prices; None without prices."""
        settings = self._settings
        if settings.price_prompt is None or settings.price_completion is None:
            return None
        written = self.tokens - self._prompt_tokens
        return (self._prompt_tokens * settings.price_prompt + written * settings.price_completion) / _MILLION


def _spent(budget: str, setting: str) -> ServiceError:
    return ServiceError(
        ErrorCode.QUOTA_EXCEEDED,
        f"the request has spent its {budget} to the judge: send fewer comparisons, ask again (what is answered costs "
        f"nothing then), or have its {setting} raised",
        retry_after_s=1,
    )
