"""``paragone eval`` and ``paragone calibrate``. Torch is imported only where a model is to be loaded here."""

import functools
import inspect
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console

from paragone import Client
from paragone.installing import pip_install
from paragone.waiting import in_few_words
from paragone_evaluation.asking import AnswerStore, ask_model
from paragone_evaluation.errors import DataError, EvaluationError
from paragone_evaluation.evaluation import default_folder, evaluate_models
from paragone_evaluation.readers import LAYOUTS, BadRowsPolicy, Rankings, ReadOptions, parse_map, read_evaluation_set
from paragone_evaluation.results import MeasureSettings, plain
from paragone_evaluation.results_report import print_results, print_temperature
from paragone_evaluation.scorers import Scorer, ServiceScorer
from paragone_evaluation.temperature import check_preferences, fitted_temperature
from paragone_models.files.options import load_options, named_source
from paragone_models.files.sources import completed
from paragone_models.progress import shown_work
from paragone_models.spec import Bos, Head

if TYPE_CHECKING:
    from paragone_evaluation.local_model import LocalScorer

__all__ = [
    "Attribute",
    "BadRows",
    "Files",
    "Json",
    "Layout",
    "Map",
    "RankingsOption",
    "calibrate",
    "command_line",
    "console_of",
    "evaluate",
    "print_json",
    "read_options",
]

_FILES = "Files, globs, folders, or data sets of the Hub (hf:OWNER/NAME), see docs/data-files.md."
_MAP = "Columns of a layout of your own: prompt=question,first=a,second=b,label=winner, say."
_LAYOUT = f"auto goes by the first 64 rows; or one of {', '.join(LAYOUTS)}."
_BAD_ROWS = "What rows that cannot be read do: refuse the file, or leave-out (they are counted in the report)."
_CLUSTER = "What is resampled together for intervals: question or prompt."

Files = Annotated[list[str], typer.Argument(metavar="FILE…", help=_FILES, show_default=False)]
Layout = Annotated[str, typer.Option(help=_LAYOUT, autocompletion=lambda: ["auto", *LAYOUTS])]
Cluster = Annotated[str, typer.Option(metavar="question|prompt", help=_CLUSTER)]
Bins = Annotated[int, typer.Option(help="Bins of the reliability table, of equal width over [.5, 1].")]
Seed = Annotated[int, typer.Option(help="Seed of resampling.")]
Resamples = Annotated[int, typer.Option(help="Resamples of the bootstrap.")]
Attribute = Annotated[
    str | None,
    typer.Option(
        help="Of ratings: what people's scores are; helpfulness or the first one if omitted. Of PKU-SafeRLHF: "
        "better or safer."
    ),
]
Gap = Annotated[float, typer.Option(help="Of ratings: those no further apart than this are a tie.")]
RankingsOption = Annotated[
    str,
    typer.Option(
        "--rankings", metavar="|".join(get_args(Rankings)), help="Of rankings: compare all responses, or neighbours."
    ),
]
BadRows = Annotated[str, typer.Option(metavar="|".join(get_args(BadRowsPolicy)), help=_BAD_ROWS)]
Map = Annotated[list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN,…", help=_MAP)]
ApiKey = Annotated[str | None, typer.Option(help="Key of the service.", envvar="PARAGONE_API_KEY", show_envvar=True)]
WaitS = Annotated[float, typer.Option(help="Wait so many seconds for a service that is still starting.")]
Device = Annotated[str, typer.Option(help="Of local models: auto takes the GPU where there is one.")]
Dtype = Annotated[
    str, typer.Option(metavar="auto|float32|bfloat16|float16", help="Of local models: what they compute in.")
]
BosOption = Annotated[
    Bos | None,
    typer.Option(
        "--bos",
        help="Of --model, loaded here: once, or as-published for a doubled one, as published numbers of general "
        "preference models were made; the model's own rule if omitted.",
    ),
]
HeadOption = Annotated[
    Head,
    typer.Option(
        "--head", help="Of --model, loaded here: lm-head-row-0 for Nemotron reward models in Hugging Face form."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of tables.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python files that come with a checkpoint.")]


@dataclass(frozen=True)
class _Common:
    """The options that both commands have: how files are read, measured, and asked about."""

    layout: Layout = "auto"
    cluster: Cluster = "question"
    bins: Bins = 10
    seed: Seed = 0
    resamples: Resamples = 1000
    attribute: Attribute = None
    gap: Gap = 0.0
    rankings: RankingsOption = "all"
    bad_rows: BadRows = "refuse"
    columns: Map = None
    api_key: ApiKey = None
    wait_s: WaitS = 0.0
    device: Device = "auto"
    dtype: Dtype = "auto"
    bos: BosOption = None
    head: HeadOption = "auto"
    trust_remote_code: RemoteCode = False
    as_json: Json = False

    def read_options(self) -> ReadOptions:
        """Return how files are read."""
        return read_options(self.layout, self.columns, self.bad_rows, self.attribute, self.gap, self.rankings)

    def measures(self) -> MeasureSettings:
        """Return how answers are measured."""
        return MeasureSettings(cluster=self.cluster, bins=self.bins, seed=self.seed, resamples=self.resamples)

    def loading(self) -> dict[str, Any]:
        """Return how any model is loaded here; ``bos`` and ``head`` are of --model alone."""
        return {"device": self.device, "dtype": self.dtype, "trust_remote_code": self.trust_remote_code}

    def scorer(self, url: str | None, model: str | None, opened: ExitStack) -> Scorer:
        """Return what is asked: a service, or a model that is loaded here."""
        if url is None:
            return _load(model or "", {**self.loading(), "bos": self.bos, "head": self.head})
        return _service(url, model, self.api_key, self.wait_s, opened)


def _with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of ``_Common`` as options of its own, for typer to read."""
    own = inspect.signature(command)
    names = [field.name for field in fields(_Common)]
    added = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(_Common)
    ]

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        common = _Common(**{name: options.pop(name) for name in names if name in options})
        command(*arguments, common=common, **options)

    kept = [parameter for name, parameter in own.parameters.items() if name != "common"]
    run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined] # typer reads it
    return run


@_with_common_options
def evaluate(
    files: Files,
    *,
    url: Annotated[str | None, typer.Option(help="Address of a service to ask.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME=]SOURCE[,KEY=VALUE…]",
            autocompletion=completed,
            help="Local model to load: builtin:NAME, folder or Hugging Face id, and settings as those of `paragone "
            "serve --model`; with --url, its id there.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            autocompletion=completed,
            help="Another model for a paired comparison: a source, or URL or URL#ID of a service.",
        ),
    ] = None,
    routing: Annotated[
        bool,
        typer.Option(
            "--routing",
            help="Of an ensemble of a service: ask each member about every pair, and show accuracy against cost at "
            "several margins.",
        ),
    ] = False,
    split: Annotated[str | None, typer.Option(help="Rows of this split only, as test.")] = None,
    holdout: Annotated[
        float,
        typer.Option(
            help="Of a file without splits: the share of its prompts that a recipe with the same data.holdout holds "
            "out, 0.1 say; 0 reads all rows."
        ),
    ] = 0.0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of answers and results; evaluations/… if omitted.")
    ] = None,
    common: _Common,
) -> None:
    """Measure how well a model agrees with people, and how far its probabilities can be believed.

    Answers are kept in the output folder as they come: the same command continues after an interruption. Ends with a
    table, results.json and report.html.
    """
    _check_model(url, model, common.bos, common.head)
    if routing and url is None:
        raise typer.BadParameter("--routing is about an ensemble that a service hosts: give its --url")
    # Everything that can be wrong with options and file is found before a model is loaded or a service asked.
    settings = common.measures()
    if holdout and split is not None:
        raise typer.BadParameter("--holdout is for files without splits: leave out --split, or --holdout")
    with shown_work(f"reading {', '.join(files)}"):
        data = read_evaluation_set(*files, options=replace(common.read_options(), holdout=holdout), split=split)
    with ExitStack() as opened:
        scorer = common.scorer(url, model, opened)
        other = None if against is None else _other(against, common, opened)
        members = scorer.members() if routing and isinstance(scorer, ServiceScorer) else []
        folder = output or default_folder(data, scorer.card.name)
        written = evaluate_models(
            data,
            scorer,
            folder,
            settings,
            against=other,
            members=members,
            command=command_line("eval"),
            console=Console(stderr=True),
        )
    if common.as_json:
        print_json({**written.results, "files": list(map(str, written.files))})
        return
    console = console_of()
    print_results(written.results, console)
    for path in written.files:
        console.print(f"wrote {path}", style="dim", soft_wrap=True, markup=False, highlight=False)


@_with_common_options
def calibrate(
    files: Files,
    *,
    url: Annotated[str | None, typer.Option(help="Address of a service to ask.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME=]SOURCE[,KEY=VALUE…]",
            autocompletion=completed,
            help="Model to calibrate: builtin:NAME, a folder, or a Hugging Face id, and settings as those of `paragone "
            "serve --model`; with --url, its id there.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the calibrated model; an own folder is changed in place if omitted.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Rows of this split only; all but test if omitted.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Allow --split test.")] = False,
    common: _Common,
) -> None:
    """Fit the temperature of a model on a file's pairs and store it with the model.

    Fit it on pairs that the model was not trained on: on its training pairs a model is too sure of itself. Rows of the
    test split are never used, unless forced. The temperature of a service's model (--url) is fitted and shown; storing
    it is up to whoever runs the service.
    """
    if split == "test" and not force:
        raise DataError("a temperature fitted on test rows spoils the test: use another split, or --force")
    _check_model(url, model, common.bos, common.head)
    if url is not None and output is not None:
        raise typer.BadParameter("--output is for a model loaded here: what a service hosts is not ours to copy")
    settings = common.measures()
    # Said before a model is loaded and asked for minutes.
    named = named_source(model or "")
    if url is None and output is None and not (Path(named.source).expanduser() / "paragone.json").is_file():
        raise EvaluationError(
            f"{named.source} is no folder of this machine that could be changed: give --output FOLDER"
        )
    if url is None and "chat_template" in named.settings:
        raise EvaluationError(
            "chat_template would not be stored with the temperature: put it into the model's folder, as "
            "chat_template.jinja, and calibrate that"
        )
    with shown_work(f"reading {', '.join(files)}"):
        data = read_evaluation_set(
            *files, options=common.read_options(), split=split, exclude_split=None if force else "test"
        )
    with ExitStack() as opened:
        scorer = common.scorer(url, model, opened)
        check_preferences(data, scorer.card)
        # Nothing is kept: a temperature is fitted once, and its answers are of no other use.
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        store = opened.enter_context(AnswerStore(scratch / "answers.jsonl", scorer.card))
        with shown_work(f"asking {scorer.card.name}") as work:
            answers = ask_model(data, scorer, store, progress=work.at)
    fitted = fitted_temperature(data, answers, settings)
    record: dict[str, Any] = plain({"command": command_line("calibrate"), **fitted})
    temperature = fitted["temperature"].value
    if url is not None:
        remedy = f"to use it: temperature = {temperature:.6g} in the service's table of {scorer.card.name}"
    else:
        from paragone_evaluation.local_model import store_temperature

        local: Any = scorer  # a model that was loaded here can be given the temperature
        folder = store_temperature(local.model, temperature, record, output=output)
        # A head that was copied still names the place where its backbone was.
        place = f",backbone={named.settings['backbone']}" if "backbone" in named.settings else ""
        remedy = f"stored in {folder}: paragone serve --model {folder.name}={folder}{place}"
    if common.as_json:
        print_json({**record, "stored": None if url is not None else str(folder)})
        return
    console = console_of()
    print_temperature(record, console)
    console.print(remedy, soft_wrap=True, markup=False, highlight=False)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on the standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def console_of() -> Console:
    """Return a console that leaves tables whole where the output is no terminal."""
    # rich takes 80 columns for a pipe, and would fold the intervals.
    return Console() if sys.stdout.isatty() else Console(width=140)


def read_options(
    layout: str, columns: list[str] | None, bad_rows: str, attribute: str | None, gap: float, rankings: str
) -> ReadOptions:
    """Return how files are read, as the command line says."""
    if bad_rows not in get_args(BadRowsPolicy):
        raise typer.BadParameter(f"--bad-rows is {bad_rows!r}; it must be {' or '.join(get_args(BadRowsPolicy))}")
    if rankings not in get_args(Rankings):
        raise typer.BadParameter(f"--rankings is {rankings!r}; it must be {' or '.join(get_args(Rankings))}")
    return ReadOptions(
        layout, parse_map(columns or ()), cast("BadRowsPolicy", bad_rows), attribute, gap, cast("Rankings", rankings)
    )


def _check_model(url: str | None, model: str | None, bos: Bos | None, head: Head) -> None:
    if url is None and model is None:
        raise typer.BadParameter("give --url of a service, or --model to load one here")
    if url is not None and (bos is not None or head != "auto"):
        raise typer.BadParameter(
            "--bos and --head are of a model loaded here: a service loads its own, see its settings"
        )


def _load(text: str, options: dict[str, Any]) -> "LocalScorer":
    """Return the scorer of ``NAME=SOURCE,KEY=VALUE,…``, whose settings win over the command's options."""
    name, source, settings = named_source(text)
    options = {**options, "name": name or None, **load_options(settings)}
    try:
        from paragone_evaluation.local_model import load_scorer
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"a model that is loaded here needs torch: {pip_install('models')}, or ask a service with --url ({error})"
        ) from error
    with shown_work(f"loading {source}"):
        return load_scorer(source, **options)


def _service(url: str, model: str | None, api_key: str | None, wait_s: float, opened: ExitStack) -> Scorer:
    opened.enter_context(in_few_words())
    try:
        client = opened.enter_context(Client(url, api_key=api_key, wait_s=wait_s))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return ServiceScorer(client, url=url, model=model)


def _other(against: str, common: _Common, opened: ExitStack) -> Scorer:
    if not against.startswith(("http://", "https://")):
        return _load(against, common.loading())
    url, _, name = against.partition("#")  # a fragment is never sent, so no URL of a service has one
    return _service(url, name or None, common.api_key, common.wait_s, opened)


def command_line(name: str) -> str:
    """Return what was typed, without a key."""
    # The command goes into the report, which people pass on.
    words, hidden = [], False
    for word in sys.argv[1:]:
        words.append("…" if hidden else "--api-key=…" if word.startswith("--api-key=") else word)
        hidden = word == "--api-key"
    return shlex.join(["paragone", *words]) if words[:1] == [name] else f"paragone {name}"
