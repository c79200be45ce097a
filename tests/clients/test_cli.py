import contextlib
import errno
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import httpx2
import pytest
import typer

from paragone import cli
from paragone.command_help import EXAMPLES, EXIT_CODES, SUMMARIES
from paragone.exceptions import DeadlineError, RequestError
from paragone.help_page import help_page
from paragone.installing import pip_install
from tests.clients.oracle import Oracle, listening

GROUP = "paragone.commands"
HERE = "tests.clients.test_cli"


def greet(name: str, loud: bool = False) -> None:
    typer.echo(f"Hello, {name.upper() if loud else name}.")


crew = typer.Typer()


@crew.command("hire")
def hire(name: str) -> None:
    """Hire somebody.

    The contract begins at
    once.
    It has no end.

    See the files.
    """
    typer.echo(f"{name} is hired.")


party = typer.Typer(no_args_is_help=True)
party.command("hire")(hire)
party.command("leave")(hire)


def refuse() -> None:
    raise RequestError("the prompt is empty", code="empty_prompt")


def give_up() -> None:
    raise DeadlineError("no answer in time")


def leave() -> None:
    raise typer.Exit(7)


def balk() -> None:
    raise typer.BadParameter("--how is\nwrong.")


def doubt() -> None:
    typer.prompt("Who")


def interrupt() -> None:
    raise KeyboardInterrupt


def bug() -> None:
    raise TypeError("a bug")


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "out.json")


def command(name, value=None):
    return EntryPoint(name=name, value=value or f"{HERE}:{name}", group=GROUP)


NAMES = (*["greet", "crew", "refuse", "give_up", "leave", "interrupt", "bug", "full", "balk", "doubt", "party"],)
COMMANDS = [command(name) for name in NAMES]


def run(*arguments):
    """Return the exit code of a command."""
    try:
        return cli.main(arguments, commands=COMMANDS)
    except SystemExit as end:
        return end.code or 0


def paragone(*arguments, before=""):
    """Run the command in a fresh interpreter."""
    script = f"import sys\n{before}\nfrom paragone.cli import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def test_a_function_is_a_command(capsys):
    assert run("greet", "Ada", "--loud") == 0
    assert capsys.readouterr().out == "Hello, ADA.\n"


def test_an_app_is_a_command_with_subcommands_even_if_it_has_only_one(capsys):
    assert run("crew", "hire", "Ada") == 0
    assert capsys.readouterr().out == "Ada is hired.\n"


@pytest.mark.parametrize("arguments", [("greet", "--help"), ("crew", "--help"), ("crew", "hire", "--help")])
def test_every_command_explains_itself_under_its_own_name(capsys, arguments):
    assert run(*arguments) == 0
    assert f"paragone {arguments[0]}" in capsys.readouterr().out


def test_help_is_wrapped_where_the_terminal_ends_and_not_where_the_docstring_does(capsys):
    run("crew", "hire", "--help")
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "The contract begins at once. It has no end." in shown
    assert "See the files." in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["greet"], "paragone greet: Missing argument 'NAME'; see paragone greet --help"),
        (["greet", "a", "b"], "paragone greet: Got unexpected extra argument(s) (b); see paragone greet --help"),
        (["greet", "--lout"], "paragone greet: No such option: --lout (Possible options: --loud, --no-loud); see"),
        (["crew", "hire"], "paragone crew hire: Missing argument 'NAME'; see paragone crew hire --help"),
        (["crew", "xyz"], "paragone crew: No such command 'xyz', there are hire; see paragone crew --help"),
        (["balk"], "paragone balk: --how is wrong; see paragone balk --help"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_help_is_and_exit_code_2(capsys, words, line):
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1
    assert said.endswith(" --help\n")


def test_a_group_without_its_command_shows_its_help_and_is_exit_code_2(capsys):
    assert run("party") == 2
    assert "hire   Hire somebody." in capsys.readouterr().err


def test_a_question_that_nobody_can_answer_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("doubt") == 1
    said = "paragone doubt: stopped at a question, to which no answer could be read\n"
    assert capsys.readouterr().err == said


def test_ctrl_c_at_a_question_is_exit_code_130(capsys, monkeypatch):
    class Interrupted(io.StringIO):
        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert run("doubt") == 130
    assert "stopped" not in capsys.readouterr().err


def test_our_own_exceptions_are_one_line_and_no_traceback(capsys):
    assert run("refuse") == 2
    assert run("give_up") == 1
    assert capsys.readouterr().err == (
        "paragone refuse: the prompt is empty (empty_prompt)\nparagone give_up: no answer in time\n"
    )


def test_a_failure_of_a_subcommand_has_its_whole_name(capsys, tmp_path):
    words = ["train", "model", str(tmp_path / "recipe.toml")]
    assert cli.main(words, commands=OURS) == 2
    assert capsys.readouterr().err.startswith("paragone train model: cannot read the recipe ")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(TypeError, match="a bug"):
        run("bug")


def test_an_exit_code_of_a_command_is_kept():
    assert run("leave") == 7


def test_an_interrupt_is_exit_code_130():
    assert run("interrupt") == 130


def test_an_unknown_command_is_exit_code_2_and_the_nearest_is_named(capsys):
    assert run("great") == 2
    assert capsys.readouterr().err == "paragone: no command 'great'; did you mean 'greet'?\n"
    assert run("xyz") == 2
    assert "there are: balk, bug, crew" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(capsys):
    assert run() == 2
    assert "Usage: paragone" in capsys.readouterr().err


def test_the_help_lists_the_commands_that_are_there(capsys):
    assert run("--help") == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {command.name} " in listed for command in COMMANDS)


def test_every_installed_command_has_a_line_of_help():
    installed = {command.name for command in entry_points(group=GROUP)}
    assert {"ask", "serve", "train"} <= installed <= set(SUMMARIES)


def test_the_version_is_shown():
    done = paragone("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "paragone")


def test_neither_help_nor_ask_imports_torch():
    check = "import atexit; atexit.register(lambda: sys.stdout.write(f'torch={\"torch\" in sys.modules}'))"
    assert paragone("--help", before=check).stdout.endswith("torch=False")
    assert paragone("ask", "--help", before=check).stdout.endswith("torch=False")


def test_serve_without_its_extra_names_the_pip_install():
    done = paragone("serve", before="sys.modules['fastapi'] = None")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(pip_install("service"))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "missing", "extra"),
    [
        ("paragone_models", "torch", "models"),
        ("paragone_service", "fastapi", "service"),
        ("paragone_training", "accelerate", "training"),
    ],
)
def test_a_command_of_any_package_without_its_extra_names_the_pip_install(package, missing, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(["x"], commands=[command("x", f"{package}.no_such_module:x")]) == 1
    assert pip_install(extra) in capsys.readouterr().err


def test_a_module_that_is_missing_though_the_extra_is_there_is_a_bug():
    with pytest.raises(ModuleNotFoundError):
        cli.main(["x"], commands=[command("x", "paragone_service.no_such_module:x")])


def test_the_help_tells_which_commands_lack_their_extra():
    listed = paragone("--help", before="sys.modules['fastapi'] = None").stdout
    assert pip_install("service") in listed
    assert pip_install("training") not in listed


def test_ctrl_c_ends_a_command_with_exit_code_130():
    asked, ended = threading.Event(), threading.Event()

    def never_before_the_end(_):
        asked.set()
        ended.wait()
        return httpx2.Response(503)

    # A shell that starts a job in the background leaves it deaf to Ctrl-C: hear it again.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from paragone.cli import main\nsys.exit(main())"
    with listening(never_before_the_end) as url:
        arguments = ["ask", "--url", url, "p", "a", "b"]
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)
        try:
            asked.wait(timeout=60)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            ended.set()
    assert process.returncode == 130
    assert said == ""


def test_a_file_that_cannot_be_written_is_one_line(capsys):
    assert run("full") == 1
    assert capsys.readouterr().err == "paragone full: out.json: No space left on device\n"


def complete(line, shell="bash", **environment):
    """Return what a shell is answered whose line ends where the cursor is."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_PARAGONE_COMPLETE": f"complete_{shell}"}
    before = f"import os; os.environ.update({asked | environment!r})"
    return paragone(before=before).stdout.split()


def test_a_shell_completes_commands_subcommands_and_options():
    assert complete("paragone tr") == ["train"]
    assert complete("paragone ask --t") == ["--timeout-s"]
    assert complete("paragone key new --te") == ["--tenant"]
    assert {"model", "policy"} <= set(complete("paragone train "))


def test_completion_imports_only_the_command_of_the_line_and_none_that_lacks_its_extra():
    broken = "import sys; sys.modules['paragone_training'] = sys.modules['accelerate'] = None; "
    asked = {"COMP_WORDS": "paragone tr", "COMP_CWORD": "1", "_PARAGONE_COMPLETE": "complete_bash"}
    done = paragone(before=f"{broken}import os; os.environ.update({asked!r})")
    assert (done.stdout.split(), done.returncode) == (["train"], 0)
    asked["COMP_WORDS"], asked["COMP_CWORD"] = "paragone train ", "2"
    assert paragone(before=f"{broken}import os; os.environ.update({asked!r})").returncode == 0


def test_bash_itself_completes_with_what_is_shown(tmp_path):
    shown = paragone("--show-completion", "bash").stdout
    program = tmp_path / "paragone"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m paragone.cli "$@"\n')
    program.chmod(0o755)
    script = f"""{shown}
COMP_WORDS=({program} ve) COMP_CWORD=1
_paragone_completion {program}
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["verify"], done.stderr


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("bench buil", {"builtin:mini-bradley-terry", "builtin:everyday-head"}),
        ("bench builtin:", {"mini-bradley-terry", "everyday-head"}),
        ("bench builtin:mini-b", {"mini-bradley-terry"}),
        ("serve --model judge=builtin:mini-b", {"mini-bradley-terry"}),
        ("eval x.jsonl --model judge=buil", {"builtin:mini-bradley-terry"}),
        ("serve --log-format j", {"json"}),
        ("serve --max-c", {"--max-connections"}),
        ("verify m --dialect open", {"openrlhf"}),
    ],
)
def test_bash_completes_models_and_choices_though_it_takes_words_apart_at_colons(line, answer):
    # As bash hands them over: a colon and an equals sign are words of their own.
    words = ["paragone", *(part for word in line.split(" ") for part in re.findall(r"[:=]|[^:=]+", word) or [""])]
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": f"{len(words) - 1}", "_PARAGONE_COMPLETE": "complete_bash"}
    shown = paragone(before=f"import os; os.environ.update({asked!r})").stdout.split()
    assert answer <= set(shown)
    assert len(answer) > 1 or "buil" in line or set(shown) == answer


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef paragone"), ("fish", "complete --command paragone")])
def test_completion_is_for_the_shell_that_is_named_whichever_runs(tmp_path, shell, words):
    before = f"import os; os.environ['HOME'] = {str(tmp_path)!r}"
    assert words in paragone("--show-completion", shell).stdout
    done = paragone("--install-completion", shell, before=before)
    path = Path(done.stdout.partition(" is installed in ")[2].partition(", for new")[0])
    assert words in path.read_text()
    assert tmp_path in path.parents


def test_a_shell_that_there_is_not_is_one_line():
    done = paragone("--install-completion", "csh")
    assert (done.returncode, done.stderr) == (
        2,
        "paragone: no completion for the shell 'csh'; --install-completion takes bash, zsh, fish, powershell, pwsh\n",
    )  # fmt: skip


def test_completion_is_installed_into_the_files_of_the_shell(tmp_path):
    before = f"import os; os.environ['HOME'] = {str(tmp_path)!r}"
    done = paragone("--install-completion", "bash", before=before)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bash_completions" / "paragone.sh").is_file()
    assert "paragone.sh" in (tmp_path / ".bashrc").read_text()


PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = [EntryPoint(name, value, GROUP) for name, value in PROJECT["entry-points"][GROUP].items()]


def installed_paths():
    """Every command that can be typed, with its subcommand, and what parses it."""
    for one in OURS:
        runner = cli.runner_of(one.name, one.load())
        subcommands = getattr(runner, "commands", {})
        yield from ((f"{one.name} {name}", sub) for name, sub in subcommands.items())
        if not subcommands:
            yield one.name, runner


PATHS = dict(installed_paths())
NO_RESULT = {"serve"}  # it ends with its signal


def test_every_command_has_an_example_in_its_help_that_it_takes(capsys):
    assert set(EXAMPLES) == set(PATHS)
    for path, example in EXAMPLES.items():
        program, *words = shlex.split(example)
        own = path.split()
        assert (program, words[: len(own)]) == ("paragone", own)
        PATHS[path].make_context(f"paragone {path}", words[len(own) :])  # raises for a word that it does not take
        with pytest.raises(SystemExit):
            cli.main([*own, "--help"], commands=OURS)
        shown = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
        assert f"Example: {example}" in shown


ASKS = {"ask", "annotate", "eval"}
QUICK = [*sorted(ASKS), "data", "doctor", "init recipe", "init server", "key new"]
USUAL = "http://127.0.0.1:8000"


@pytest.mark.parametrize("path", QUICK)
def test_examples_that_take_no_model_run_as_they_are_written(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": f"Question {number}?",
            "first": "x" * (number + 2),
            "second": "x",
            "strength": 1 - 2 * (number % 3 == 0),
        }
        for number in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program, *words = shlex.split(EXAMPLES[path])
    with listening(Oracle()) if path in ASKS else contextlib.nullcontext(USUAL) as url:
        monkeypatch.setenv("PARAGONE_URL", url) if path == "ask" else monkeypatch.delenv("PARAGONE_URL", raising=False)
        try:
            code = cli.main([word.replace(USUAL, url) for word in words], commands=OURS)
        except SystemExit as end:
            code = end.code or 0
    assert (program, code) == ("paragone", 0), capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(set(PATHS) - NO_RESULT))
def test_every_command_that_prints_a_result_prints_it_as_json_too(path):
    options = [option for parameter in PATHS[path].params for option in parameter.opts]
    assert "--json" in options


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("path", sorted(PATHS))
def test_every_help_fits_the_terminal_and_has_no_word_of_python(path, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = help_page(f"paragone {path}", PATHS[path], typer.Context(PATHS[path]), [EXAMPLES[path]])
    text, _, example = re.sub(r"\x1b\[\d*m", "", shown).partition("Example:\n")
    assert example == f"  {EXAMPLES[path]}"  # whole, to be pasted
    assert max(map(len, text.splitlines())) <= columns
    assert not re.search(r"<\w+>|list\[|\(default: \(?\)|None|True|False|\\b", text)
    assert text.startswith(f"Usage: paragone {path}")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_every_option_and_every_argument_says_what_it_is(path):
    unexplained = [parameter.name for parameter in PATHS[path].params if not getattr(parameter, "help", None)]
    assert unexplained == []


PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_exit_codes_and_every_command_with_its_example():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES
    assert [path for path, example in EXAMPLES.items() if example not in PAGE] == []
    listed = paragone("--help").stdout
    assert all(f"{code}" in listed for code in EXIT_CODES)
