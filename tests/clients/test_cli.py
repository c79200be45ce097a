import signal
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint, entry_points

import httpx2
import pytest
import typer

from paragone import cli
from paragone.exceptions import DeadlineError, RequestError
from tests.clients.oracle import listening

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


def refuse() -> None:
    raise RequestError("the prompt is empty", code="empty_prompt")


def give_up() -> None:
    raise DeadlineError("no answer in time")


def leave() -> None:
    raise typer.Exit(7)


def interrupt() -> None:
    raise KeyboardInterrupt


def bug() -> None:
    raise TypeError("a bug")


def command(name, value=None):
    return EntryPoint(name=name, value=value or f"{HERE}:{name}", group=GROUP)


COMMANDS = [command(name) for name in ("greet", "crew", "refuse", "give_up", "leave", "interrupt", "bug")]


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


def test_wrong_usage_is_exit_code_2(capsys):
    assert run("greet") == 2
    assert run("crew", "hire") == 2
    assert run("crew", "fire") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_exceptions_are_one_line_and_no_traceback(capsys):
    assert run("refuse") == 2
    assert run("give_up") == 1
    assert capsys.readouterr().err == (
        "paragone refuse: the prompt is empty (empty_prompt)\nparagone give_up: no answer in time\n"
    )


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
    assert "there are: bug, crew" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(capsys):
    assert run() == 2
    assert "Usage: paragone" in capsys.readouterr().err


def test_the_help_lists_the_commands_that_are_there(capsys):
    assert run("--help") == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {command.name} " in listed for command in COMMANDS)


def test_every_installed_command_has_a_line_of_help():
    installed = {command.name for command in entry_points(group=GROUP)}
    assert {"ask", "serve", "train"} <= installed <= set(cli._HELP)


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
    assert done.stderr.splitlines()[-1].endswith("pip install 'paragone[service]'")
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
    assert f"pip install 'paragone[{extra}]'" in capsys.readouterr().err


def test_a_module_that_is_missing_though_the_extra_is_there_is_a_bug():
    with pytest.raises(ModuleNotFoundError):
        cli.main(["x"], commands=[command("x", "paragone_service.no_such_module:x")])


def test_the_help_tells_which_commands_lack_their_extra():
    listed = paragone("--help", before="sys.modules['fastapi'] = None").stdout
    assert "pip install 'paragone[service]'" in listed
    assert "pip install 'paragone[training]'" not in listed


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
