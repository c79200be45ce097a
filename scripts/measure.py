"""Measure the house: sizes, comments, docstrings, complexity, public names, and the trips through the code.

    python scripts/measure.py sizes                         # every package, one column each, and all of them
    python scripts/measure.py sizes path/to/other/package   # another code base, for comparison
    python scripts/measure.py trips                         # files entered by a request, a training run, an iteration

Trips run the real thing in this process under a profiler: every call into a file of this repository counts, and a move
is a call in another file than the thread's call before it.
"""

import argparse
import ast
import asyncio
import importlib.util
import io
import statistics
import sys
import tempfile
import threading
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from radon.complexity import cc_visit

ROOT = Path(__file__).resolve().parents[1]
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
PACKAGES = ("clients", "models", "service", "evaluation", "training")


@dataclass
class Sizes:
    """What was counted in some files."""

    files: list[int] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    complexities: list[int] = field(default_factory=list)
    public: Counter[str] = field(default_factory=Counter)
    comments: int = 0
    docstrings: int = 0
    documentable: int = 0
    documented: int = 0
    parameters: int = 0
    annotated: int = 0

    def __iadd__(self, other: "Sizes") -> "Sizes":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what is printed: a label and its value."""
        lines = sum(self.files) or 1
        yield "files", f"{len(self.files)}"
        yield "lines", f"{sum(self.files):,}"
        yield "lines of a file: median, 95 %, most", _quantiles(self.files)
        yield "lines of a function: median, 95 %, most", _quantiles(self.functions)
        yield "complexity: mean, 95 %, most", _quantiles(self.complexities, mean=True)
        yield "functions above complexity 15", f"{sum(value > 15 for value in self.complexities)}"
        yield "comments, % of lines", f"{100 * self.comments / lines:.1f}"
        yield "docstrings, % of lines", f"{100 * self.docstrings / lines:.1f}"
        yield "public things with a docstring, %", f"{100 * self.documented / max(self.documentable, 1):.0f}"
        yield "annotated parameters, %", f"{100 * self.annotated / max(self.parameters, 1):.0f}"
        yield "public names", f"{self.public.total()}"
        yield "public names that exist twice", f"{sum(count > 1 for count in self.public.values())}"


def measured(path: Path) -> Sizes:
    """Return what one file holds."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    blocks = [inner for block in cc_visit(text) for inner in getattr(block, "methods", [block])]
    sizes = Sizes(
        files=[len(text.splitlines())],
        complexities=[block.complexity for block in blocks],
        comments=len({token.start[0] for token in tokens if token.type == tokenize.COMMENT}),
        docstrings=sum(map(_docstring_lines, ast.walk(tree))),
    )
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTION):
            sizes.functions.append((node.end_lineno or 0) - node.lineno + 1)
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotated = [
                argument.annotation is not None for argument in arguments if argument.arg not in ("self", "cls")
            ]
            sizes.parameters += len(annotated)
            sizes.annotated += sum(annotated)
    for node in _public(tree):
        sizes.public[node.name] += 1
        for thing in (node, *(_public(node) if isinstance(node, ast.ClassDef) else ())):
            sizes.documentable += 1
            sizes.documented += ast.get_docstring(thing) is not None
    return sizes


def _docstring_lines(node: ast.AST) -> int:
    if not isinstance(node, ast.Module | ast.ClassDef | _FUNCTION) or ast.get_docstring(node, clean=False) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def _public(node: ast.AST) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.ClassDef | _FUNCTION)]
    return [child for child in children if not child.name.startswith("_")]


def _quantiles(values: Sequence[int], *, mean: bool = False) -> str:
    ordered = sorted(values) or [0]
    middle = f"{statistics.mean(ordered):.1f}" if mean else f"{statistics.median(ordered):.0f}"
    return f"{middle}, {ordered[round(0.95 * (len(ordered) - 1))]}, {ordered[-1]}"


def print_sizes(folders: Sequence[Path]) -> None:
    """Print a column for each folder, and one for all of them."""
    columns: dict[str, Sizes] = {}
    total = Sizes()
    for folder in folders:
        sizes = Sizes()
        for path in sorted(folder.rglob("*.py")):
            sizes += measured(path)
        columns[folder.name] = sizes
        total += sizes
    columns["all"] = total
    rows = {name: dict(sizes.rows()) for name, sizes in columns.items()}
    labels = list(rows["all"])
    widths = {name: max(len(name), *(len(value) for value in values.values())) for name, values in rows.items()}
    print(" " * 42 + "  ".join(name.rjust(widths[name]) for name in rows))
    for label in labels:
        print(label.ljust(42) + "  ".join(rows[name][label].rjust(widths[name]) for name in rows))


class Trip:
    """The files and moves of everything that this process does while the trip is on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, int] = defaultdict(int)
        self.functions: set[tuple[str, str]] = set()
        self.moves = 0
        self._last: dict[int, str] = {}
        self._own = tuple(f"{ROOT / folder}/" for folder in PACKAGES)

    def seen(self, frame: FrameType, event: str, _: object) -> None:
        """Count one event of the profiler."""
        path = frame.f_code.co_filename
        # Compiled page templates have frames too, and are no code of ours.
        if event != "call" or not path.startswith(self._own) or not path.endswith(".py"):
            return
        thread = threading.get_ident()
        self.moves += self._last.get(thread) != path
        self._last[thread] = path
        self.files[str(Path(path).relative_to(ROOT)).partition("/")[2]] += 1
        self.functions.add((path, frame.f_code.co_qualname))

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.files)} files, {len(self.functions)} functions, {self.moves} moves"
        return "\n  ".join([head, *self.files])


@contextmanager
def travelling(name: str) -> Iterator[None]:
    """Print the trip that the block makes, other threads included where the interpreter allows it."""
    trip = Trip(name)
    everywhere: Callable[..., None] = getattr(threading, "setprofile_all_threads", threading.setprofile)
    threading.setprofile(trip.seen)
    everywhere(trip.seen)
    sys.setprofile(trip.seen)
    try:
        yield
    finally:
        sys.setprofile(None)
        everywhere(None)
        threading.setprofile(None)
    print(trip)


async def serve_trips() -> None:
    """Ask the application for one pair, cold and then warm."""
    import httpx2

    from paragone_service.app import create_app
    from paragone_service.config import Settings
    from paragone_service.hosting import load_models

    settings = Settings(models={"mini-bradley-terry": {"source": "builtin:mini-bradley-terry"}})
    app = create_app(settings, load_models(settings))
    pair = {"prompt": "Tea or coffee?", "first": "Tea: it keeps you calm.", "second": "no idea"}
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for name in ("a cold pair", "a warm pair"):
                with travelling(name):
                    answer = await client.post("/v1/preferences", json={"pairs": [pair]})
                answer.raise_for_status()


def train_trip(folder: Path) -> None:
    """Train a small preference model on the set that ships with the repository."""
    from paragone_training.preference.recipe import load_recipe
    from paragone_training.preference.train_model import train_model

    recipe = load_recipe(ROOT / "training/recipes/everyday-reward.toml", ["training.epochs=1"])
    with travelling("from a file of pairs to a saved model"):
        train_model(recipe, folder / "model")


def policy_trip(folder: Path) -> None:
    """Run one SPPO iteration on a few prompts."""
    from paragone_training.policy.recipe import load_policy_recipe
    from paragone_training.policy.train_policy import train_policy

    recipe = load_policy_recipe(
        ROOT / "training/recipes/policy/everyday-sppo.toml",
        ["training.iterations=1", "data.per_iteration=8", "sampling.max_new_tokens=12", "sampling.responses=3"],
    )
    with travelling("one SPPO iteration"):
        train_policy(recipe, folder / "policy")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sizes", "trips"])
    parser.add_argument("folders", nargs="*", type=Path, help="packages to measure; ours unless given")
    arguments = parser.parse_args()
    if arguments.what == "sizes":
        print_sizes(arguments.folders or [ROOT / folder for folder in PACKAGES])
        return
    if importlib.util.find_spec("paragone_service") is None:
        parser.error("trips need the packages installed: pip install -c constraints.txt -e '.[dev]'")
    asyncio.run(serve_trips())
    with tempfile.TemporaryDirectory() as folder:
        train_trip(Path(folder))
        policy_trip(Path(folder))


if __name__ == "__main__":
    main()
