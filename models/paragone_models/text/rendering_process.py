"""The process in which one model's chat templates are rendered: run as a script, by ``rendering.TemplateProcess``.

A template is data of a checkpoint, and a program: it can loop, recurse, or multiply a text until memory is gone, and
much of that happens in C, where no thread of Python can stop it. So it runs here, where the kernel does: a timer on
this process's processor time ends it, and a limit on its address space turns greed into a MemoryError.

The environment is the one that transformers renders chat templates in; tests hold the two to one text. Nothing of the
package is imported, so that the process starts in a tenth of a second.

Lines of JSON: first the settings; then, again and again, a count and so many conversations. Each is answered by the
processor time that it took and its text, or an object that says why there is none.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LONGEST_REASON = 200
# Names that a message's thoughts go by in templates.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class _Generation(jinja2.ext.Extension):
    """Take ``{% generation %}`` blocks for what is in them: they mark what a trainer learns from."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        return str(caller())


class _Dict:
    """``dict`` for templates, without the attributes of the type."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` for templates; names with an underscore in front lead into Python, and are refused."""

    def __init__(*positional: Any, **named: Any) -> None:
        self, *values = positional
        attributes = dict(*values, **named)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace of a chat template holds no names with an underscore first")


def _raise_exception(message: object) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    # Dates were written into the template before it came here; a call that is left only says that there is a clock.
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    thoughts = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


class _Templates:
    """The compiled templates of one model, and the limits on what they may take."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._sources: list[str] = settings["sources"]
        self._variables: dict[str, Any] = settings["variables"]
        self._most_characters: int = settings["most_characters"]
        self._processor_s: float = settings["processor_s"]
        self._environment = _environment()
        self._compiled: dict[int, jinja2.Template] = {}

    def answer(
        self, number: int, messages: list[dict[str, Any]], tools: Any, answers: bool = False
    ) -> str | dict[str, str]:
        """Return the text of a conversation, or why there is none."""
        with self._timed():
            try:
                if number not in self._compiled:
                    self._compiled[number] = self._environment.from_string(self._sources[number])
                return self._rendered(self._compiled[number], messages, tools, answers)
            except (MemoryError, RecursionError) as error:
                return {"stopped": "it needs too much " + ("memory" if isinstance(error, MemoryError) else "depth")}
            except Exception as error:  # noqa: BLE001 (a template raises whatever it likes)
                return {"refused": (str(error) or type(error).__name__)[:_LONGEST_REASON]}

    def _rendered(
        self, template: jinja2.Template, messages: list[dict[str, Any]], tools: Any, answers: bool
    ) -> str | dict[str, str]:
        pieces, length = [], 0
        values = {**self._variables, "messages": [*map(_aliased, messages)], "tools": tools, "documents": None}
        for piece in template.generate(add_generation_prompt=answers, **values):
            pieces.append(piece)
            length += len(piece)
            if length > self._most_characters:  # before the rest is written, which may have no end
                return {"stopped": f"it writes more than {self._most_characters} characters"}
        return "".join(pieces)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        # Processor time, so that a busy machine is no reason; SIGPROF has no handler, so nothing can delay the end.
        signal.setitimer(signal.ITIMER_PROF, self._processor_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _main() -> None:
    """Answer until the other side closes."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers may come between answers
    settings = json.loads(requests.readline())
    limit = settings["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    templates = _Templates(settings)
    while count := requests.readline():
        # All are read before the first is answered: the other side writes them all before it reads.
        for line in [requests.readline() for _ in range(int(count))]:
            started = time.process_time()
            answer = templates.answer(*json.loads(line))
            answers.write(json.dumps([time.process_time() - started, answer]).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    _main()
