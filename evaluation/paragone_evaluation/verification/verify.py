"""One verification: a server's numbers, plain transformers' and ours about the same texts, and a verdict on each."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paragone import Client, ParagoneError
from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.local_model import LocalScorer, load_scorer
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.options import ReadOptions
from paragone_evaluation.scorers import PairAnswer, PairQuestion, RatingAnswer, ResponseQuestion
from paragone_evaluation.verification.causes import Verdict, batch_dependence, judged
from paragone_evaluation.verification.golden import GOLDEN, Text
from paragone_evaluation.verification.reference import PlainModel, Reading, Readings
from paragone_evaluation.verification.servers import (
    DIALECTS,
    PREFERENCES,
    Asked,
    RefusalError,
    Server,
    hosted_source,
)

__all__ = ["Column", "Verification", "VerifySettings", "texts_of", "verified"]

_RETRY_S = 5.0  # a check says that a server is away; it does not wait for it


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """What is verified.

    Attributes:
        model: a folder or Hub id of the model; with the dialect ``paragone``, the id of the hosted model.
        source: where the hosted model's files are; what the server says if None.
        remote_model: what the server calls the model; ``model`` if None.
        send: what servers that take rendered texts are sent: ``template``, ``without-bos``, or ``joined``.
        tolerance: largest difference that is none; what float32 and bfloat16 make if None. [logits]
    """

    model: str
    url: str
    dialect: str = "paragone"
    source: str | None = None
    remote_model: str | None = None
    api_key: str | None = None
    send: str = "template"
    device: str = "auto"
    tolerance: float | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Column:
    """The numbers of one way to ask, and what is to be said about them. [N]."""

    name: str
    values: tuple[float, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Verification:
    """What came of it.

    Attributes:
        reference: what gave the reference, in words.
        left_out: texts that are not compared, and why.
        tokens: of each text; 0 where nobody counted. [N]
        expected: the reference. [N]
        dependence: largest difference between a text asked alone and beside others, None where it is none. [logits]
    """

    reference: str
    texts: tuple[Text, ...]
    left_out: tuple[str, ...]
    tokens: tuple[int, ...]
    expected: tuple[float, ...]
    columns: tuple[Column, ...]
    dependence: float | None

    @property
    def agrees(self) -> bool:
        """Whether every column is right, and no answer depends on its neighbours."""
        return self.dependence is None and all(column.verdict.agrees for column in self.columns)


def texts_of(files: Sequence[str], rows: int, options: ReadOptions) -> list[Text]:
    """Return the responses of the first rows of files.

    Raises:
        DataError: if the files cannot be read.
        EvaluationError: if they have no response.
    """
    if not files:
        return []
    reading = FilePass(*files, options=options, unjudged=True)
    texts = [
        Text(f"{Path(reading.part.name).name}:{row.line}/{at}", row.prompt, response, tuple(row.tools or ()) or None)
        for row in itertools.islice(reading, rows)
        for at, response in enumerate(row.responses)
    ]
    if not texts:
        raise EvaluationError(f"{', '.join(files)}: {'; '.join(reading.account.describe()) or 'there is no response'}")
    return texts


def verified(
    settings: VerifySettings, texts: Sequence[Text] = (), *, progress: Callable[[str], object] = lambda _: None
) -> Verification:
    """Compare a server with its model, about the built-in texts and those given.

    Raises:
        EvaluationError: if the server is away, does not answer in this dialect or hosts no such model, or the model
            neither rewards nor compares, or only compares and the dialect is another's.
        ModelError: if the model cannot be loaded.
    """
    ours = settings.dialect == "paragone"
    source = settings.source or (_hosted(settings) if ours else _source(settings))
    progress(f"reading with plain transformers: {source}")
    reference = _reference(source, settings)
    readings, left_out = reference.read([*GOLDEN, *texts])
    if not readings:
        raise EvaluationError(f"none of the texts can be compared: {left_out[0]}")
    asked = [Asked(one.text, reference.sent(one.text, settings.send), reference.other(one.text)) for one in readings]
    name = settings.remote_model or settings.model
    dialect = PREFERENCES if reference.compares else DIALECTS[settings.dialect]
    server = Server(settings.url, dialect, model=name, api_key=settings.api_key)
    progress(f"asking {server.url}")
    numbers, refused = _answers(server, asked)
    readings = [one for at, one in enumerate(readings) if at not in refused]
    left_out += refused.values()
    columns = {f"{settings.dialect}, {way}": values for way, values in numbers.items()}
    dependence = batch_dependence(*columns.values()) if server.dialect.batches else None
    if not ours and reference.plain:
        progress("reading with this package")
        columns["paragone here"] = _ours(source, settings, readings)
    return Verification(
        reference.name,
        tuple(one.text for one in readings),
        tuple(left_out),
        tuple(one.tokens for one in readings),
        tuple(one.ways[0].last for one in readings),
        tuple(
            Column(title, tuple(values), judged(readings, values, tolerance=settings.tolerance))
            for title, values in columns.items()
        ),
        dependence,
    )


def _answers(server: Server, asked: Sequence[Asked]) -> tuple[dict[str, list[float]], dict[int, str]]:
    """Return the numbers of each way to ask about the texts that the server takes, and why it refuses the others."""
    numbers, refused = dict[str, list[float]](), dict[int, str]()
    # Together first: a server with a cache answers the second question from it.
    if server.dialect.batches:
        with contextlib.suppress(RefusalError):  # whose fault it is, the single requests say
            numbers["together"] = server.ask(asked, together=True)
    alone = numbers["one by one"] = []
    for at, one in enumerate(asked):
        try:
            alone += server.ask([one], together=False)
        except RefusalError as error:
            refused[at] = str(error)
    if len(refused) == len(asked):
        raise EvaluationError(refused[0])
    if server.dialect.batches and (refused or "together" not in numbers):
        taken = [one for at, one in enumerate(asked) if at not in refused]
        numbers = {"together": server.ask(taken, together=True), "one by one": alone}
    return numbers, refused


def _hosted(settings: VerifySettings) -> str:
    """Return where a hosted model was loaded from."""
    try:
        with Client(settings.url, api_key=settings.api_key, retry_s=_RETRY_S) as client:
            return client.model(settings.model).source
    except ParagoneError as error:
        raise EvaluationError(str(error)) from error  # not compared, which is not the same as different


def _source(settings: VerifySettings) -> str:
    """Return where a model is that another dialect's server has: its name is a folder or a Hub id, or one of ours."""
    if settings.model.startswith("builtin:") or Path(settings.model).expanduser().exists():
        return settings.model
    return hosted_source(settings.url, settings.model, api_key=settings.api_key) or settings.model


class _Transformers:
    plain, compares, name = True, False, "plain transformers, float32"

    def __init__(self, source: str, settings: VerifySettings) -> None:
        self._model = PlainModel(source, device=settings.device, trust_remote_code=settings.trust_remote_code)

    def read(self, texts: Sequence[Text]) -> tuple[list[Readings], list[str]]:
        read, left_out = list[Readings](), list[str]()
        for text in texts:
            try:
                read.append(self._model.readings(text))
            except EvaluationError as error:
                left_out.append(str(error))
        return read, left_out

    def sent(self, text: Text, send: str) -> str:
        rendered = self._model.render(text)
        if send == "joined":
            return "\n".join(str(message.get("content") or "") for message in text.messages)
        return self._model.without_bos(rendered) if send == "without-bos" else rendered

    def other(self, text: Text) -> ResponseText:  # noqa: ARG002 (as of _Here)
        return ""


class _Here:
    """Models that plain transformers cannot load: ours alone says what is right, one text at a time in float32.

    A model that only compares is asked for the log-odds of each response against that of the text before it.
    """

    plain = False

    def __init__(self, source: str, settings: VerifySettings) -> None:
        self._scorer = _scorer(source, settings)
        self._half = _scorer(source, settings, dtype="bfloat16")
        self._others: dict[int, ResponseText] = {}  # by the identity of a text: names may be alike
        card = self._scorer.card
        self.compares = not card.scalar
        if self.compares and settings.dialect != "paragone":
            raise EvaluationError(
                f"{source} is of kind {card.kind} and only compares: verify it with --dialect paragone"
            )
        asked = "log-odds against the response before" if self.compares else "one text at a time"
        self.name = f"this package, float32, {asked} (plain transformers cannot load this layout)"

    def read(self, texts: Sequence[Text]) -> tuple[list[Readings], list[str]]:
        read, left_out = list[Readings](), list[str]()
        self._others = {id(one): before.response for before, one in zip([texts[-1], *texts[:-1]], texts, strict=True)}
        for text in texts:
            right, half = self._number(self._scorer, text), self._number(self._half, text)
            if isinstance(right, float) and isinstance(half, float):
                read.append(Readings(text, (Reading("", right),), half, 0))
            else:
                left_out.append(f"{text.name}: {right}")
        return read, left_out

    def _number(self, scorer: LocalScorer, text: Text) -> float | str:
        """Return a text's reward or log-odds, or why it has none."""
        if self.compares:
            (pair,) = scorer.compare([PairQuestion(text.prompt, text.tools, text.response, self.other(text))])
            return pair.logit if isinstance(pair, PairAnswer) else pair.message
        (answer,) = scorer.rate([_question(text)])
        if isinstance(answer, RatingAnswer):
            return "it has no reward" if answer.reward is None else answer.reward
        return answer.message

    def other(self, text: Text) -> ResponseText:
        """Return what a text's response is compared with."""
        return self._others[id(text)]

    def sent(self, text: Text, send: str) -> str:  # noqa: ARG002 (as of _Transformers)
        template = getattr(self._scorer.reader.tokenizer, "apply_chat_template", None)
        return str(template(text.messages, tokenize=False)) if template else ""


def _reference(source: str, settings: VerifySettings) -> _Transformers | _Here:
    own = source.startswith("builtin:") or (Path(source).expanduser() / "paragone.json").is_file()
    return _Here(source, settings) if own else _Transformers(source, settings)


def _scorer(source: str, settings: VerifySettings, *, dtype: str = "float32") -> LocalScorer:
    scorer = load_scorer(source, device=settings.device, dtype=dtype, trust_remote_code=settings.trust_remote_code)
    if not scorer.card.compares:
        raise EvaluationError(
            f"{source} is of kind {scorer.card.kind}, without weights: it rates attributes, and verify compares "
            "rewards or preferences"
        )
    return scorer


def _ours(source: str, settings: VerifySettings, readings: Sequence[Readings]) -> list[float]:
    answers = _scorer(source, settings).rate([_question(one.text) for one in readings])
    # A refusal is no number: NaN differs from everything, and the verdict says so.
    return [
        answer.reward if isinstance(answer, RatingAnswer) and answer.reward is not None else float("nan")
        for answer in answers
    ]


def _question(text: Text) -> ResponseQuestion:
    return ResponseQuestion(text.prompt, text.tools, text.response)
