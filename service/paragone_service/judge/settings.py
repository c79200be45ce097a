"""How a judge is asked: what ``--model NAME=judge:https://host/v1,model=…`` and ``[models.NAME]`` say of one.

The settings that determine what a judge is asked make its identity. Those that only change what is made of its answers
make its fingerprint, with the former.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import from_json

from paragone.addresses import without_userinfo
from paragone_service.judge.verdicts import FormatError, VerdictFormat, load_format

__all__ = ["SCHEME", "JudgeSettings", "Reading", "Symmetrise"]

SCHEME = "judge:"
"""How the source of a judge begins."""

Reading = Literal["votes", "logprobs"]
Symmetrise = Literal["mean-logit", "mean-probability", "none"]

_SOURCE = re.compile(rf"{SCHEME}(https?://[^\s?#@]+)")
_OURS = frozenset({"model", "messages", "temperature", "top_p", "seed", "logprobs", "top_logprobs", "n", "stream"})


class JudgeSettings(BaseModel):
    """How one judge is asked, and what is made of its answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """``judge:`` and the address of an OpenAI-compatible server, up to and with ``/v1``."""
    kind: Literal["auto", "judge"] = "auto"
    """What it is: a judge."""
    model: str = Field(min_length=1)
    """The model's name at that server."""
    format: str = "letters"
    """How it is asked and read: letters, reasoned, arena, scores, genrm, grade, or a TOML file."""
    votes: int = Field(default=1, ge=1, le=100)
    """How often each order is asked."""
    read: Literal["auto", "votes", "logprobs"] = "auto"
    """Whether a verdict is its token's probability, or a vote; auto: the former, if format and server give it."""
    symmetrise: Symmetrise = "mean-logit"
    """How the two orders become one answer: mean-logit, mean-probability, or none, which asks the first order alone."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What log-odds are divided by."""
    sampling_temperature: float | None = Field(default=None, ge=0, le=2)
    """What the judge samples at; without it the format's."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Its nucleus; without it the format's."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer, thoughts included; without it the format's."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls that limit."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of the first vote, the next ones count on; without it none is sent."""
    extra: dict[str, Any] = {}
    """Further fields of each request to the server, as {"reasoning_effort": "low"}."""
    principle: str | None = Field(default=None, min_length=1)
    """What is judged by where a request does not say."""
    reasoning: Literal["strip", "keep"] = "strip"
    """Whether the judge is shown the thoughts of responses."""
    identity: str | None = None
    """What the judge is called in cache keys and identities instead of its address, the same at several addresses."""
    key_env: str | None = None
    """Environment variable with the server's key."""
    key_file: Path | None = None
    """File with the server's key."""
    timeout_s: float = Field(default=300, gt=0, allow_inf_nan=False)
    """Seconds that one answer may take."""
    patience_s: float = Field(default=60, ge=0, allow_inf_nan=False)
    """Seconds that a call waits for a server that is busy or away."""
    concurrency: int = Field(default=32, ge=1, le=4096)
    """Most calls under way."""
    tries: int = Field(default=3, ge=1, le=20)
    """How often a vote is asked for until it has a verdict."""
    calls_per_request: int | None = Field(default=None, ge=1)
    """Most calls of one request; without it no limit."""
    tokens_per_request: int | None = Field(default=None, ge=1)
    """Most tokens of one request, read and written, after which no call begins; without it no limit."""
    price_prompt: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a million tokens read, in whatever currency; without it no cost is told."""
    price_completion: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a million tokens written."""

    @property
    def url(self) -> str:
        """The server's address."""
        return self.source.removeprefix(SCHEME).rstrip("/")

    @field_validator("extra", mode="before")
    @classmethod
    def _extra_may_be_json(cls, value: Any) -> Any:
        return from_json(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "JudgeSettings":
        if not _SOURCE.fullmatch(self.source):
            shown = without_userinfo(self.source)
            raise ValueError(f"source {shown!r}: write judge:https://HOST/v1, without a key, query or fragment")
        try:
            form = load_format(self.format)
        except FormatError as error:
            raise ValueError(str(error)) from None
        if taken := _OURS & self.extra.keys():
            raise ValueError(f"extra may not have {', '.join(sorted(taken))}: these have settings of their own")
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("key_env and key_file are both set: keep one")
        if (self.price_prompt is None) != (self.price_completion is None):
            raise ValueError("price_prompt and price_completion belong together")
        if self.read == "logprobs" and not form.verdict.logprobs:
            raise ValueError(f"format {form.name} has no verdicts of one token: leave read at auto, or set votes")
        if self.principle is not None and not form.takes_principle:
            raise ValueError(f"format {form.name} has no place for a principle")
        if form.shows_one and self.symmetrise == "none":
            raise ValueError(f"format {form.name} shows one response at a time, and knows no order: leave symmetrise")
        if self.votes > 1 and not (self.sampling_temperature or form.sampling.temperature):
            raise ValueError(
                f"votes = {self.votes} at a sampling temperature of 0 would be one vote {self.votes} times: set "
                "sampling_temperature"
            )
        return self

    def read_key(self) -> str | None:
        """Return the server's key, or None if it has none.

        Raises:
            ValueError: if it is nowhere to be found, or no header can carry it; no message repeats it.
        """
        if self.key_env is not None:
            key = os.environ.get(self.key_env, "").strip()
            if not key:
                raise ValueError(f"key_env: the environment has no {self.key_env}")
        elif self.key_file is not None:
            try:
                key = self.key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"key_file {self.key_file} cannot be read: {error}") from error
        else:
            return None
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ValueError("the judge's key is empty or has characters that a header cannot carry")
        return key

    def judge_identity(self, form: VerdictFormat) -> str:
        """Return a hash of all that determines what the judge is asked, in 64 hexadecimal digits."""
        asked = {
            "judge": self.identity or self.url,
            "model": self.model,
            "format": form.digest,
            "votes": self.votes,
            "read": self.read,
            "sampling": self.sampling(form),
            "seed": self.seed,
            "extra": self.extra,
            "principle": self.principle,
            "reasoning": self.reasoning,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def sampling(self, form: VerdictFormat) -> dict[str, float | int]:
        """Return how answers are sampled, the format's word where the settings have none."""
        own = form.sampling
        temperature = own.temperature if self.sampling_temperature is None else self.sampling_temperature
        limit = own.max_tokens if self.max_tokens is None else self.max_tokens
        sampled: dict[str, float | int] = {"temperature": temperature, self.limit_field: limit}
        top_p = own.top_p if self.top_p is None else self.top_p
        return sampled if top_p is None else {**sampled, "top_p": top_p}
