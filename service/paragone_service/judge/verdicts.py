"""Verdict formats as data: how a judge is asked, and what counts as its verdict. Each is a TOML file in ``formats/``.

A format has the messages that are sent, with places for the texts, and one way to read the answer's end:

    line   a pattern that the whole last line must match, with the groups ``verdict`` (one of ``values``), ``first`` and
           ``second`` (two scores), or ``grade`` (one response is shown at a time)
    json   the fields of two scores in the JSON object that ends the answer

Nothing but the end is read: whatever a judge quotes on its way there is no verdict. What does not end in a verdict has
none, and the reason is told.
"""

import hashlib
import importlib.resources
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paragone.codes import ErrorCode
from paragone_models.text.messages import split_reasoning
from paragone_service.judge.chat import ChatAnswer, Token

__all__ = ["BUILT_IN", "FormatError", "Shown", "VerdictError", "VerdictFormat", "load_format"]

_FOLDER = importlib.resources.files("paragone_service.judge") / "formats"
BUILT_IN = ("letters", "reasoned", "arena", "scores", "genrm", "grade")
"""The formats that come with the service."""

_PLACE = re.compile(r"\{([a-z_]+)\}")
_TEXTS = ("prompt", "first", "second", "response")
_PLACES = (*_TEXTS, "principle", "mark")
# What changes the meaning of an answer without changing a format's file is counted here, for the cache.
_PARSER_VERSION = 1
_MARK_LETTERS = 10
_DECORATION = " \t*_`"
# A judge's object holds some scores: what is longer is no verdict, and would cost seconds to look through.
_LONGEST_OBJECT = 16_384
_MOST_BRACES = 256


class FormatError(ValueError):
    """Say why a format cannot be used."""


class VerdictError(Exception):
    """Say why an answer has no verdict.

    Attributes:
        code: ``judge_unparsed``, ``judge_unfinished`` or ``judge_refused``.
    """

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Shown:
    """The texts that a judge is shown.

    Attributes:
        conversation: the prompt as messages.
        prompt: the prompt as one text.
        responses: the responses in the order in which they are shown; one, or two.
    """

    conversation: Sequence[Mapping[str, Any]]
    prompt: str
    responses: tuple[str, ...]

    @property
    def mark(self) -> str:
        """Ten hexadecimal digits that neither response can contain: they are a hash of both."""
        whole = hashlib.blake2b(digest_size=_MARK_LETTERS // 2)
        for text in (self.prompt, *self.responses):
            whole.update(len(text).to_bytes(8, "little") + text.encode("utf-8", "surrogatepass"))
        return whole.hexdigest()


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Message(_Table):
    role: str | None = None
    content: str | None = None
    conversation: bool = False

    @model_validator(mode="after")
    def _is_one_of_two(self) -> "_Message":
        if self.conversation == (self.role is not None) or self.conversation == (self.content is not None):
            raise ValueError("a message has a role and a content, or is conversation = true")
        return self


class _Json(_Table):
    first: str
    second: str
    ranking: str | None = None
    inside: str | None = None


class _Reader(_Table):
    line: str | None = None
    json_: _Json | None = Field(default=None, alias="json")
    values: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    range: tuple[float, float] | None = None
    ranks: int | None = Field(default=None, ge=2, multiple_of=2)
    logprobs: bool = False
    direct: bool = False
    least_mass: float = Field(default=0.1, gt=0, le=1)

    @cached_property
    def groups(self) -> frozenset[str]:
        return frozenset() if self.line is None else frozenset(re.compile(self._sample()).groupindex)

    def _sample(self) -> str:
        assert self.line is not None
        return self.line.replace("{mark}", "0" * _MARK_LETTERS)

    @model_validator(mode="after")
    def _reads_one_thing(self) -> "_Reader":
        if (self.line is None) == (self.json_ is None):
            raise ValueError("give either line or json")
        try:
            groups = self.groups
        except re.error as error:
            raise ValueError(f"line is no regular expression: {error}") from error
        if self.json_ is None and groups not in ({"verdict"}, {"first", "second"}, {"grade"}):
            raise ValueError("line needs the groups verdict, or first and second, or grade, and no others")
        if (groups == {"verdict"}) != bool(self.values):
            raise ValueError("values belong to the group verdict, and to it alone")
        if (groups == {"verdict"}) != (self.range is None):
            raise ValueError("range belongs to scores and grades, and these need it")
        if self.logprobs and not (self.values and all(len(choice) == 1 for choice in self.values)):
            raise ValueError("logprobs can be read of verdicts of one character alone")
        if self.direct and not self.logprobs:
            raise ValueError("direct says where logprobs are read, and logprobs is false")
        return self


class _Sampling(_Table):
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int = Field(default=1024, ge=1)


class VerdictFormat(_Table):
    """One verdict format: what is sent to a judge, and how its answers are read."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    messages: list[_Message] = Field(min_length=1)
    verdict: _Reader
    sampling: _Sampling = _Sampling()
    principle: str | None = None
    without_principle: str = ""

    @property
    def shows_one(self) -> bool:
        """Whether it shows one response at a time, and grades it."""
        return self.verdict.groups == {"grade"}

    @property
    def takes_principle(self) -> bool:
        """Whether a request may name a principle."""
        return self.principle is not None

    @cached_property
    def digest(self) -> str:
        """Hash of all that it says, its comments left out, in hexadecimal digits."""
        text = json.dumps([_PARSER_VERSION, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @model_validator(mode="after")
    def _shows_each_text_once(self) -> "VerdictFormat":
        contents = [message.content for message in self.messages if message.content is not None]
        places = [place for content in contents for place in _PLACE.findall(content)]
        for place in places:
            if place not in _PLACES:
                raise ValueError(f"{{{place}}} is no place for a text; there are {', '.join(_PLACES)}")
        counts = {place: places.count(place) for place in _PLACES}
        counts["prompt"] += sum(message.conversation for message in self.messages)
        shown = {"prompt", "response"} if self.shows_one else {"prompt", "first", "second"}
        for text in _TEXTS:
            # Printed twice, a response would be judged against itself, or with twice the weight.
            if counts[text] != (text in shown):
                wanted = "once" if text in shown else "not at all, by what its verdict reads"
                raise ValueError(f"{{{text}}} stands {counts[text]} times in the messages, and must stand {wanted}")
        if counts["principle"] > 1 or (counts["principle"] == 1) != self.takes_principle:
            raise ValueError("{principle} stands once in the messages if principle is set, and not at all if it is not")
        if self.takes_principle and _PLACE.findall(self.principle or "") not in ([], ["text"]):
            raise ValueError("principle has one place: {text}")
        return self

    def asked(self, shown: Shown, principle: str | None) -> list[dict[str, Any]]:
        """Return the messages for a judge. A text of a request that looks like a place stays as it is."""
        said = self.without_principle
        if principle is not None:
            said = (self.principle or "").replace("{text}", principle)
        names = ("response",) if self.shows_one else ("first", "second")
        texts = {"prompt": shown.prompt, "principle": said, "mark": shown.mark}
        texts.update(zip(names, shown.responses, strict=True))
        sent: list[dict[str, Any]] = []
        for message in self.messages:
            if message.conversation:
                sent += [dict(turn) for turn in shown.conversation]
            elif message.content != "{principle}" or said:
                content = _PLACE.sub(lambda place: texts[place[1]], (message.content or "").strip())
                sent.append({"role": message.role, "content": content})
        return sent

    def votes(self, answer: ChatAnswer, shown: Shown) -> tuple[float, float]:
        """Return what an answer's verdict gives the first response and the second; they add up to 1.

        Of a format that grades one response: its grade, and 0.

        Raises:
            VerdictError: if the answer does not end in a verdict.
        """
        text = _finished(answer)
        reader = self.verdict
        if reader.json_ is not None:
            return _share(*self._scores(_last_object(text), reader.json_))
        match = self._last_line(text, shown)
        if self.shows_one:
            return self._in_range(match["grade"]), 0.0
        if reader.values:
            value = self._value(match["verdict"])
            return value, 1.0 - value
        return _share(self._in_range(match["first"]), self._in_range(match["second"]))

    def log_shares(self, answer: ChatAnswer, shown: Shown) -> tuple[float, float]:
        """Return the logarithms of the probabilities that a judge's next token is a verdict for either response.

        A verdict beyond the tokens that the server lists counts as likely as the least likely of these, which it
        cannot exceed.

        Raises:
            VerdictError: if the answer has no verdict, or its tokens do not show how likely the others were.
        """
        if self.verdict.direct:
            _finished(answer, cut=True)
            if not answer.tokens:
                raise _unparsed("it came without token log-probabilities")
            return self._weighed(answer.tokens[0], "")
        match = self._last_line(_finished(answer), shown)
        token, before = _token_of(answer.tokens, match)
        return self._weighed(token, before)

    def _weighed(self, token: Token, before: str) -> tuple[float, float]:
        """Return the log-shares at a token, of which some letters stand before the verdict."""
        if not token.alternatives:
            raise _unparsed("it came without the alternatives of its verdict's token")
        logs: dict[str, list[float]] = {choice: [] for choice in self.verdict.values}
        for text, logprob in token.alternatives:
            after = text.removeprefix(before) if text.startswith(before) else ""
            stripped = after.strip(_DECORATION + "\n")
            # "A]]" is the letter with what follows it; "Answer" is another word.
            if stripped[:1] in logs and not stripped[1:2].isalnum():
                logs[stripped[:1]].append(logprob)
        mass = sum(math.exp(logprob) for found in logs.values() for logprob in found)
        if mass < self.verdict.least_mass:
            raise _unparsed(
                f"its verdicts together have a probability of {mass:.3g}, and {self.verdict.least_mass:g} is the least"
            )
        bound = min(logprob for _, logprob in token.alternatives)
        known = {choice: _log_sum(found) if found else bound for choice, found in logs.items()}
        first = _log_sum([known[one] + math.log(value) for one, value in self.verdict.values.items() if value > 0])
        second = _log_sum([known[one] + math.log1p(-value) for one, value in self.verdict.values.items() if value < 1])
        whole = _log_sum([first, second])
        return first - whole, second - whole

    def _last_line(self, text: str, shown: Shown) -> "re.Match[str]":
        line = text.rstrip().rpartition("\n")[2].strip().strip(_DECORATION)
        assert self.verdict.line is not None
        match = re.fullmatch(self.verdict.line.replace("{mark}", shown.mark), line)
        if match is None:
            raise _unparsed("its last line is no verdict")
        return match

    def _value(self, verdict: str) -> float:
        if verdict not in self.verdict.values:
            raise _unparsed("its verdict is none of the format's values")
        return self.verdict.values[verdict]

    def _in_range(self, score: object) -> float:
        low, high = self.verdict.range or (-math.inf, math.inf)
        try:
            number = math.nan if isinstance(score, bool) else float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):  # the last of a whole number with hundreds of digits
            number = math.nan
        if not low <= number <= high:
            raise _unparsed(f"a score is no number from {low:g} to {high:g}")
        return number

    def _scores(self, found: Mapping[str, Any], fields: _Json) -> tuple[float, float, float]:
        inner = found.get(fields.inside) if fields.inside is not None else None
        source = inner if isinstance(inner, Mapping) else found
        tie = 0.5
        if fields.ranking is not None and fields.ranking in source:
            ranks, ranking = self.verdict.ranks or 2, source[fields.ranking]
            if isinstance(ranking, bool) or not isinstance(ranking, int) or not 1 <= ranking <= ranks:
                raise _unparsed(f"its ranking is no whole number from 1 to {ranks}")
            tie = float(ranking <= ranks // 2)
        return self._in_range(source.get(fields.first)), self._in_range(source.get(fields.second)), tie


def load_format(source: str) -> VerdictFormat:
    """Return a format by the name of a built-in one, or from a TOML file.

    Raises:
        FormatError: if there is none, or it cannot be used; the message says why.
    """
    built_in = source in BUILT_IN
    try:
        file = _FOLDER / f"{source}.toml" if built_in else Path(source)
        return VerdictFormat(**tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        known = ", ".join(BUILT_IN)
        raise FormatError(f"format {source!r} is none of {known}, and no file: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"format {source} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise FormatError(f"format {source}: {place + ': ' if place else ''}{reason}") from None


def _finished(answer: ChatAnswer, *, cut: bool = False) -> str:
    """Return what an answer says behind its thoughts.

    Args:
        cut: whether an answer may have reached its limit of tokens.
    """
    if answer.refused:
        raise VerdictError(ErrorCode.JUDGE_REFUSED, "it refused to answer")
    if answer.finish_reason == "length" and not cut:
        raise VerdictError(ErrorCode.JUDGE_UNFINISHED, "it reached its limit of tokens before its verdict")
    if answer.finish_reason not in ("stop", "length"):
        raise _unparsed("it did not end as an answer does")
    thoughts, text = split_reasoning(answer.text)
    if thoughts and "</think>" not in thoughts:
        raise VerdictError(ErrorCode.JUDGE_UNFINISHED, "it never stopped thinking")
    return text


def _share(first: float, second: float, tie: float = 0.5) -> tuple[float, float]:
    share = tie if first == second else float(first > second)
    return share, 1.0 - share


def _last_object(text: str) -> Mapping[str, Any]:
    """Return the JSON object that ends a text, the outermost one, perhaps within a fence."""
    end = text.rstrip().removesuffix("```").rstrip()[-_LONGEST_OBJECT:]
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    if end.endswith("}"):
        for start in _braces(end):
            try:
                found, stop = decoder.raw_decode(end, start)
            except (ValueError, RecursionError):
                continue
            if stop == len(end) and isinstance(found, dict):
                return found
    raise _unparsed("it does not end in a JSON object")


def _braces(text: str) -> Iterator[int]:
    places = [match.start() for match in re.finditer(r"\{", text)]
    yield from places[-_MOST_BRACES:]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found


def _token_of(tokens: Sequence[Token], match: "re.Match[str]") -> tuple[Token, str]:
    """Return the token that holds a line's verdict, and its letters before that."""
    joined = "".join(token.text for token in tokens)
    start = joined.rfind(match.string)
    place = start + match.start("verdict")
    for token in tokens if start >= 0 else ():
        if place < len(token.text):
            return token, token.text[:place]
        place -= len(token.text)
    raise _unparsed("its tokens do not hold its last line")


def _log_sum(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + math.log(math.fsum(math.exp(one - largest) for one in logs))


def _unparsed(reason: str) -> VerdictError:
    return VerdictError(ErrorCode.JUDGE_UNPARSED, reason)
