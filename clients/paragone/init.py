"""``paragone init``: a server's file or a recipe for training by a few questions, with a comment at every setting.

Questions have options of the same name, so that scripts are asked nothing: what an option says is no question, and
``--yes`` takes the defaults of the rest. A file of preferences is read as ``paragone data`` reads it, where that is
installed: a recipe for a file that cannot be read would fail later, and with less to say. What a server is told is
checked as ``paragone doctor`` checks its file.
"""

import contextlib
import importlib.util
import io
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from paragone.toml_values import toml_value

__all__ = ["init"]

_KINDS: dict[str, tuple[str, ...]] = {
    "bradley-terry": (),
    "general-preference": ("# Length of the vector: an even number; 8 has four 2-blocks.", "dimension = 8"),
}
"""The kinds that a recipe may be begun with, and what their [model] says beside the kind."""
_WAYS = ("lora", "full", "head")
_READERS = ("me", "others")
_SCRATCH = "none"
_NO_REDIS = "none"
_PRETRAINED = "Qwen/Qwen3-0.6B"
_NEEDS_TRAINED = ("lora", "head")
_HUB = "hf:"
# Prompts of a file → the share that is held out unless asked otherwise: of a few, a tenth is too few to measure with.
_SHARES = ((200, 0.1), (100, 0.2), (30, 0.3))

_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take the default of what no option says.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines; needs --yes.")]

init = typer.Typer(no_args_is_help=True, add_completion=False, help="Write a server's file or a recipe.")


@init.callback()
def _init() -> None:
    """Write a server's file or a recipe by a few questions."""


@init.command("server")
def server(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("paragone.toml"),
    *,
    source: Annotated[
        str | None, typer.Option(help="The model: builtin:NAME, a Hugging Face id or a folder.", show_default=False)
    ] = None,
    who: Annotated[
        str | None, typer.Option(metavar="|".join(_READERS), help="Who may ask: me, on this machine, or others.")
    ] = None,
    redis: Annotated[str | None, typer.Option(help="Redis behind the cache, redis://HOST:PORT; none for none.")] = None,
    device: Annotated[str | None, typer.Option(help="Where it runs: auto, cpu, cuda, or all for every GPU.")] = None,
    yes: _Yes = False,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Write the file of a server for `paragone serve --config FILE`."""
    _check_file(file, force=force, yes=yes, as_json=as_json)
    ask = _Questions(yes=yes)
    source = ask(
        source,
        "Which model (builtin:NAME, a Hugging Face id, a folder)",
        "builtin:mini-general-preference",
        check=lambda name: _refused_by_serve(_model(name)),
    )
    who = ask(who, "Who may ask", "me", _READERS)
    redis = ask(
        redis,
        "Redis behind the cache (redis://HOST:PORT, or none)",
        _NO_REDIS,
        check=lambda url: "" if url == _NO_REDIS else _refused_by_serve([_redis(url)]),
    )
    device = ask(device, "Where does it run (auto, cpu, cuda, all)", "auto")
    following = [f"paragone doctor --config {_word(file)}", f"paragone serve --config {_word(file)}"]
    if who == "others":
        following.insert(0, "paragone key new first --file keys.txt")
    _write(file, _server_lines(file, source, who, redis, device), following, as_json=as_json)


@init.command("recipe")
def recipe(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.toml"),
    *,
    data: Annotated[
        str | None, typer.Option(help="Preferences, in any layout that `paragone data` reads.", show_default=False)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="What is trained: a Hugging Face id or a folder; none for a small one from random weights."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="|".join(_KINDS), help="Kind of model; the latter knows cycles too.")
    ] = None,
    way: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(_WAYS), help="lora: adapters; full: every weight; head: the head alone, in seconds."
        ),
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(
            help="Of data without a test split: share of the prompts to hold out, 0 for none; 0.1 unless given, more "
            "where prompts are few."
        ),
    ] = None,
    yes: _Yes = False,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Write a recipe for `paragone train model FILE`, or for `train head` where the head alone is fitted."""
    _check_file(file, force=force, yes=yes, as_json=as_json)
    ask = _Questions(yes=yes)
    looked = _Looked()
    data = ask(data, "Your preferences (a file, as `paragone data` reads it)", "pairs.jsonl", check=looked.complaint)
    if not as_json and (described := looked.describe()):
        typer.echo(f"{data}: {described}", err=True)
    trained = way in _NEEDS_TRAINED
    backbone = ask(
        backbone,
        "Which backbone (a Hugging Face id, a folder, builtin:NAME, or none)",
        _PRETRAINED if trained else _SCRATCH,
        check=lambda name: _no_weights(str(way)) if trained and name == _SCRATCH else "",
    )
    kind = ask(kind, "Which kind of model", "bradley-terry", tuple(_KINDS))
    # Random weights have nothing that adapters could adapt, or a head could read.
    ways = ("full",) if backbone == _SCRATCH else _WAYS
    way = ask(way, "What is trained", ways[0], ways)
    split, share = looked.held_out_split, ""
    if split is None:
        question = "Share of the prompts to hold out, to measure the model on (0 for none)"
        share = ask(holdout, question, looked.share, check=looked.refuses_share)
    elif holdout is not None:
        raise typer.BadParameter(f"{data} has rows of split {split}, which are held out: leave out --holdout")
    command, made = ("head" if way == "head" else "model"), f"runs/{file.stem}"
    following = [f"paragone data {_word(data)}", f"paragone train {command} {_word(file)} --dry-run"]
    following += [f"paragone train {command} {_word(file)}"]
    if split or float(share):
        rows = f"--split {split}" if split else f"--holdout {share}"
        following.append(f"paragone eval {_word(data)} {rows} --model {_word(made)}")
    following.append(f"paragone serve --model {_word(f'judge={made}')}")
    beside = data if data.startswith(_HUB) or Path(data).is_absolute() else os.path.relpath(data, file.parent)
    held_out = _held_out_lines(split, share)
    _write(file, _recipe_lines(file, beside, backbone, kind, way, held_out), following, as_json=as_json)


class _Questions:
    """Ask what no option said."""

    def __init__(self, *, yes: bool) -> None:
        self._yes = yes

    def __call__(
        self,
        given: str | None,
        question: str,
        default: str,
        choices: Sequence[str] = (),
        *,
        check: Callable[[str], str] = lambda _: "",
    ) -> str:
        """Return the answer.

        Args:
            check: returns what is wrong with an answer, or an empty text.
        """
        while True:
            if given is None and len(choices) == 1:
                answer = default  # a question with one answer is none
            elif given is None:
                shown = f"{question} ({', '.join(choices)})" if choices else question
                answer = default if self._yes else str(typer.prompt(shown, default=default)).strip()
            else:
                answer = given
            complaint = check(answer)
            if choices and answer not in choices:
                complaint = f"{answer!r} is none of {', '.join(choices)}"
            if not complaint:
                return answer
            if given is not None or self._yes:
                raise typer.BadParameter(complaint)
            typer.echo(complaint, err=True)


class _Looked:
    """What a file of preferences holds, as ``paragone data`` says it; nothing where that is not installed."""

    def __init__(self) -> None:
        self._data = ""
        self._found: Mapping[str, Any] = {}

    def complaint(self, data: str) -> str:
        """Read a file and return why it holds no preferences, an empty text where it does."""
        if data.startswith(_HUB):
            return ""  # to look into it would be to download it
        if importlib.util.find_spec("pyarrow") is None:
            return "" if Path(data).exists() or any(Path().glob(data)) else f"there is no {data}: name a file by --data"
        printed, refusal = _said_by_data(data)
        if refusal:
            return f"{refusal} (--data names the file)"
        self._data, self._found = data, json.loads(printed)
        if not (self._found["pairs"] or self._found["ratings"]):
            return f"{data} has no preferences, only prompts: nothing can be learned from it"
        return ""

    def describe(self) -> str:
        """Return what the file holds, an empty text where nobody looked."""
        if not self._found:
            return ""
        splits = ", ".join(name for name in self._found["splits"] if name != "none")
        counts = f"{self._found['pairs']:,} pairs" if self._found["pairs"] else f"{self._found['read']:,} rated rows"
        return f"{counts}, {self._found['prompts']:,} prompts, {f'splits {splits}' if splits else 'no splits'}"

    @property
    def held_out_split(self) -> str | None:
        """The split that is held out, None where rows name none."""
        return next((name for name in ("test", "validation") if name in self._found.get("splits", ())), None)

    @property
    def share(self) -> str:
        """The share of the prompts that is held out unless asked otherwise."""
        prompts = self._found.get("prompts", _SHARES[0][0])
        usual = next((share for most, share in _SHARES if prompts >= most), 0.0)
        # Chance decides how many of few prompts a share takes.
        shares = (f"{usual + more:g}" for more in (0.0, 0.1, 0.2) if usual)
        return next((share for share in shares if not self.refuses_share(share)), "0")

    def refuses_share(self, text: str) -> str:
        """Return why a share cannot be held out, an empty text where it can or nobody looked."""
        if (complaint := _not_a_share(text)) or not self._found or not float(text):
            return complaint
        return _said_by_data(self._data, "--holdout", text)[1]


def _said_by_data(data: str, *options: str) -> tuple[str, str]:
    """Return what ``paragone data`` prints of a file, and why it refuses it, or an empty text."""
    from paragone.cli import main

    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            code: Any = main(["data", data, "--json", *options])
        except SystemExit as end:
            code = end.code
    return printed.getvalue(), errors.getvalue().strip().removeprefix("paragone data: ") if code else ""


def _no_weights(way: str) -> str:
    return f"--way {way} needs a trained backbone, and none is one from random weights: name it by --backbone"


def _not_a_share(text: str) -> str:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return ""
    return f"the share to hold out is {text!r}; it must be a number from 0 up to below 1, 0.1 say"


def _server_lines(file: Path, source: str, who: str, redis: str, device: str) -> list[str]:
    lines = [
        _comment(f"A Paragone server: paragone serve --config {_word(file)}"),
        "# Every setting and its default: docs/serving.md. Flags and PARAGONE_… in the environment win over this file.",
        "",
    ]
    if who == "others":
        lines += [
            "# All of this machine's addresses; whoever asks needs a key.",
            'host = "0.0.0.0"',
            "# A line a key, with its hash: paragone key new NAME --file keys.txt",
            'api_key_file = "keys.txt"',
        ]
    else:
        lines += ["# Only programs on this machine may ask, and need no key.", 'host = "127.0.0.1"']
    lines += ["port = 8000", ""]
    if redis != _NO_REDIS:
        lines += ["# Representations outlive restarts here, and replicas share them.", _redis(redis)]
    else:
        lines += ["# Representations are kept in this process alone; with Redis they outlive a restart.",
                  '# redis_url = "redis://localhost:6379"']  # fmt: skip
    lines += ["# In MB.", "memory_cache_mb = 512", ""]
    if device == "all":
        lines += ["# A replica of every model on each GPU, behind one queue.", 'devices = "all"']
    else:
        lines += ["# auto is the GPU where there is one.", f"device = {toml_value(device)}"]
    return [
        *lines,
        "# auto is bfloat16 where this machine multiplies it fast.",
        'dtype = "auto"',
        "",
        "# The first table is the model that answers when a request names none.",
        *_model(source),
        "# Longest conversation in tokens; without it the model's own.",
        "# max_length = 4096",
    ]


def _redis(url: str) -> str:
    return f"redis_url = {toml_value(url)}"


def _model(source: str) -> list[str]:
    return ["[models.judge]", f"source = {toml_value(source)}"]


def _refused_by_serve(lines: Sequence[str]) -> str:
    """Return why a server's file of these lines would be refused, an empty text where it is taken or none can tell."""
    (check,) = entry_points(group="paragone.checks", name="service")
    try:
        checks = check.load()
    except ModuleNotFoundError:
        return ""  # the extra of servers is not installed
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "paragone.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        # The first check is that of the settings; the others look at what they name, which may come later.
        _, state, text, _ = next(iter(checks({"config": file})))
    return text if state == "fail" else ""


def _recipe_lines(file: Path, data: str, backbone: str, kind: str, way: str, held_out: Sequence[str]) -> list[str]:
    command = "head" if way == "head" else "model"
    lines = [
        _comment(f"A {kind} model: paragone train {command} {_word(file)}"),
        "# Every setting: docs/training.md. First look: the same command with --dry-run.",
        "",
        "[model]",
        "# bradley-terry: one reward a response; general-preference: a vector, and so preferences with cycles.",
        f"kind = {toml_value(kind)}",
    ]
    lines += _KINDS[kind]
    lines += ["# Longest conversation in tokens; unless set, what the backbone has room for, 2048 at most."]
    lines += ["# max_length = 1024", "", *_backbone(backbone)]
    lines += [
        "[data]",
        "# Paths are relative to this file.",
        f"train = [{toml_value(data)}]",
        *held_out,
        "# What rows do that cannot be read: refuse the run, or leave-out.",
        'bad_rows = "refuse"',
        "",
    ]
    lines += [] if way == "head" else _training(way, scratch=backbone == _SCRATCH)
    return [*lines, "[output]", f"folder = {toml_value(f'runs/{file.stem}')}"]


def _held_out_lines(split: str | None, share: str) -> list[str]:
    """Return what a recipe says of the rows that the model is measured on."""
    if split:
        return ["# Rows of this split are held out.", f"evaluate_split = {toml_value(split)}"]
    lines = ["# Share of the prompts that is held out; paragone eval --holdout reads the same rows."]
    return [*lines, f"holdout = {float(share):g}" if float(share) else "# holdout = 0.1"]


def _backbone(source: str) -> list[str]:
    if source != _SCRATCH:
        return [
            "[backbone]",
            "# Its chat template is how conversations are read.",
            f"source = {toml_value(source)}",
            "",
        ]
    return [
        "[backbone]",
        "# A small Llama from random weights, which learns from your rows alone.",
        "hidden_size = 128",
        "layers = 4",
        "heads = 4",
        "intermediate_size = 384",
        "",
        "[tokenizer]",
        "# Learned from the texts of your rows.",
        "vocabulary_size = 4096",
        "",
    ]


def _training(way: str, *, scratch: bool) -> list[str]:
    lines = [
        "[training]",
        "epochs = 1",
        "# The peak, after the warm-up.",
        f"learning_rate = {'1e-3' if scratch else '1e-4' if way == 'lora' else '1e-5'}",
        "# Responses in a pass: less where memory is short.",
        "batch_responses = 16",
        "# Passes to an optimiser step.",
        "accumulation = 1",
        "",
    ]
    if way == "lora":
        lines += ["[lora]", "# Adapters on every linear layer, merged when the model is saved.", "rank = 16", ""]
    return lines


def _check_file(file: Path, *, force: bool, yes: bool, as_json: bool) -> None:
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} is there already: give another name, or --force")
    if as_json and not yes:
        raise typer.BadParameter("--json is for programs, which answer no questions: give --yes with it")


def _write(file: Path, lines: Sequence[str], following: Sequence[str], *, as_json: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"file": str(file), "next": list(following)}))
    else:
        typer.echo("\n".join([f"{file} is written. Next:", *(f"  {command}" for command in following)]))


def _comment(text: str) -> str:
    # TOML's comments have no control characters, which names of files may have.
    return "# " + "".join(one if one.isprintable() else "�" for one in text)


def _word(value: str | Path) -> str:
    """Return one word of a shell."""
    return shlex.quote(str(value))
