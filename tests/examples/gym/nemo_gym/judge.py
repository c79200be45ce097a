"""A judge that failed: a row with a reward of 0.0 that is masked, and says why."""

import functools

from fastapi.responses import JSONResponse


class JudgeError(Exception):
    """The judge gave no answer."""


def judge_failsafe(verify):
    @functools.wraps(verify)
    async def wrapper(*arguments, **named):
        try:
            return await verify(*arguments, **named)
        except JudgeError as error:
            row = (named.get("body") or arguments[0]).model_dump(mode="json")
            masked = {"reward": 0.0, "mask_sample": True, "failure_kind": "judge_failed", "failure_reason": str(error)}
            return JSONResponse(row | masked)

    return wrapper
