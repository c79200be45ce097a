"""Kernels of our own for decoders in bfloat16 on a CPU: compiled once for the machine, and how a pass uses them.

What stands between a decoder's matrix products is most of its time where a CPU multiplies fast, because torch's
operations go over memory once each. ``kernels.cpp`` does a norm, a rotation, an activation and the attention of a whole
pass in one go each. It needs a C++ compiler, takes about ten seconds, and is kept in the user's cache folder.

Shapes: T rows, W output rows, Hq and Hk heads, D head size.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paragone_models.machine import bfloat16_refusal
from paragone_models.packing.attention import Rule, Run
from paragone_models.packing.cpu import Buffers, Norm, Operations, TorchOperations
from paragone_models.packing.tree import Above, Layout

__all__ = ["NO_COMPILER", "NativeOperations", "cache_folder", "kernels", "kernels_refusal", "speedup"]

logger = logging.getLogger(__name__)

# Set to 0, this environment variable keeps the kernels from being compiled and used.
_VARIABLE = "PARAGONE_NATIVE"

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp"),
    *("-fPIC", "-DAT_PARALLEL_OPENMP=1"),
)
NO_COMPILER = "there is no C++ compiler"
_LIMIT_S = 300.0
# Rows of a block of attention, the query heads of one key head one below the other; 32 to 192 differ by a tenth.
_ROWS = 64
_FEWEST = 16
_TRIES = 7


@functools.cache
def kernels() -> Any:
    """Return the compiled kernels as ``torch.ops.paragone``, or why there are none, as a string.

    The library's name tells everything that it depends on: the source, torch's version, the flags, and what the
    compiler says of itself and of this CPU. Without ``-fopenmp`` for the linker it finds the threads that torch has
    loaded; a second runtime's threads would get into their way.
    """
    reason = kernels_refusal()
    compiler = _compiler()
    if reason is not None or compiler is None:
        return reason
    try:
        torch.ops.load_library(_compiled(compiler))
    except subprocess.CalledProcessError as error:
        return f"{compiler} failed: {' '.join(error.stderr.split())[:300]}"
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return torch.ops.paragone


def kernels_refusal() -> str | None:
    """Return why there can be no kernels here, or None; nothing is compiled to find out."""
    # From the cheapest question to the dearest.
    if os.environ.get(_VARIABLE) == "0":
        return f"{_VARIABLE} is 0"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"kernels are written for x86-64 Linux, and this is {platform.machine()} {sys.platform}"
    # Attention calls oneDNN's small products, which fail in the middle of a pass where the processor has none.
    reason = bfloat16_refusal()
    if reason is None and _compiler() is None:
        reason = NO_COMPILER
    return reason


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def _compiled(compiler: str) -> Path:
    """Return the library, compiled now if nobody did before."""
    facts = _output_of(compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    parts = (_SOURCE.read_text(), torch.__version__, compiler, *_FLAGS, facts)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = _folder()
    library = folder / f"kernels-{name}.so"
    if library.is_file():
        return library
    logger.info("compiling kernels for this CPU with %s, once; %s=0 does without", compiler, _VARIABLE)
    home = Path(torch.__file__).parent
    # Beside its place, so that the move at the end is one step of the file system.
    with tempfile.TemporaryDirectory(dir=folder) as workplace:
        object_file, linked = Path(workplace, "kernels.o"), Path(workplace, library.name)
        _output_of(compiler, *_FLAGS, f"-I{home / 'include'}", "-c", str(_SOURCE), "-o", str(object_file))
        _output_of(
            compiler, "-shared", str(object_file), f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(linked)
        )
        linked.replace(library)  # whole or not at all, whoever else compiles it just now
    return library


def cache_folder() -> Path:
    """Return where compiled kernels are kept; it need not exist.

    Raises:
        RuntimeError: if the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paragone"


def _folder() -> Path:
    """Return the user's cache folder, or a new one where that cannot be written."""
    try:
        # A home that cannot be written, as in a container, must not keep a server from starting.
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="paragone-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="paragone-"))


def _output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S).stdout  # noqa: S603


@dataclass(frozen=True, slots=True)
class _Plan:
    """Who reads what in a pass, as ``attend`` in kernels.cpp wants it.

    Attributes:
        runs: of tokens: source (0 for the pass, then ``earlier``), first token, tokens, position of the first. [n, 4]
        blocks: of queries: first, how many, position of the first, their stretch (first, one behind) of paths. [b, 5]
        paths: runs that are read one after another. [p]
        earlier: nodes whose keys were computed before the pass.
        queries: how many there are, Q.
    """

    runs: Tensor
    blocks: Tensor
    paths: Tensor
    earlier: tuple[int, ...]
    queries: int


class NativeOperations:
    """A decoder's operations, by our kernels: see ``TorchOperations``, which computes the same.

    Args:
        library: from ``kernels``.
    """

    def __init__(self, library: Any) -> None:
        self.buffers = Buffers()
        self._library = library

    def normed(self, name: str, rows: Tensor, norm: Norm) -> Tensor:
        """Return rows divided by their root mean square, times a weight, in the memory of that name."""
        out = self.buffers.take(name, tuple(rows.shape), rows)
        self._library.rms_norm(rows, *norm, out)
        return out

    def rotated(self, name: str, heads: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Return heads [T, heads, D], normed, at their positions, as [heads, T, D], in the memory of that name."""
        rows, count, size = heads.shape
        out = self.buffers.take(name, (count, rows, size), heads)
        self._library.rotate(heads, *(norm or (None, 0.0)), cos, sin, out)
        return out

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) times up, in the memory of the gate."""
        self._library.silu_multiply(gate, up)
        return gate

    def attend(
        self, run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, outputs_only: bool = False
    ) -> Tensor:
        """Return what every row reads, or the output rows alone, as [T or W, Hq, D]."""
        heads, rows, size = query.shape
        # One plan for all layers, and one more for the last layer's output rows.
        plan: _Plan = run.memo.get(("plan", outputs_only)) or _plan(run, heads // len(key), outputs_only=outputs_only)
        run.memo["plan", outputs_only] = plan
        keys = [key, *(run.earlier[node].keys[layer] for node in plan.earlier)]
        values = [value, *(run.earlier[node].values[layer] for node in plan.earlier)]
        out = self.buffers.take("read", (rows, heads, size), query)
        self._library.attend(query, keys, values, plan.runs, plan.blocks, plan.paths, rule.scale, rule.window or 0, out)
        out[plan.queries :] = 0  # rows of no node
        return out


@torch.inference_mode()
def speedup(library: Any, *, heads: int, key_heads: int, head_size: int) -> float:
    """Return how many times as fast as torch's operations ours attend here, to a prompt and four responses.

    Args:
        library: from ``kernels``.
    """
    nodes, length = 5, 128
    rows = {node: (node * length, (node + 1) * length) for node in range(nodes)}
    positions = np.concatenate([np.arange(length), *(np.arange(length, 2 * length) for _ in range(1, nodes))])
    # Token ids do not matter: attention sees none.
    layout = Layout(np.zeros(nodes * length, dtype=np.int64), positions, rows, (Above(0, 0, nodes * length),))
    run = Run(layout, {}, {}, np.arange(nodes * length))
    query, key = (torch.ones(count, nodes * length, head_size, dtype=torch.bfloat16) for count in (heads, key_heads))
    rule = Rule(head_size**-0.5, None, None)
    ways: list[Operations] = [NativeOperations(library), TorchOperations()]
    seconds: list[list[float]] = [[], []]
    for turn in range(2 * _TRIES):
        started = time.perf_counter()
        ways[turn % 2].attend(run, 0, query, key, key, rule)
        seconds[turn % 2].append(time.perf_counter() - started)
    # The shortest of many, in turns: what else the machine does can only add.
    ours, torchs = map(min, seconds)
    return torchs / ours


def _plan(run: Run, group: int, *, outputs_only: bool) -> _Plan:
    """Return the plan of a pass.

    Args:
        group: query heads to a key head.
        outputs_only: for the output rows alone.
    """
    layout = run.layout
    earlier = layout.earlier
    runs = [(source, 0, len(run.earlier[node]), run.earlier[node].start) for source, node in enumerate(earlier, 1)]
    # Runs of earlier nodes come first, those of the pass behind them, both in preorder.
    number = {node: index for index, node in enumerate((*earlier, *layout.rows))}
    blocks: list[tuple[int, ...]] = []
    paths: list[int] = []
    for node, (first, last) in layout.rows.items():
        start = int(layout.positions[first])
        runs.append((0, first, last - first, start))
        path = [number[part] for part in (*layout.path(first), node)]
        stretch = len(paths), len(paths) + len(path)
        paths += path
        for query, row, count in _queries(run, first, last, group, outputs_only=outputs_only):
            blocks.append((query, count, start + row - first, *stretch))
    rows = torch.tensor(blocks, dtype=torch.long).view(-1, 5)  # a pass inside a long prompt may have none
    return _Plan(torch.tensor(runs), rows, torch.tensor(paths), earlier, int(rows[:, 1].sum()))


def _queries(run: Run, first: int, last: int, group: int, *, outputs_only: bool) -> Iterator[tuple[int, int, int]]:
    """Yield blocks of a node's queries: the first one's index, its row, and how many they are."""
    if outputs_only:
        begin, end = run.output_rows.searchsorted((first, last)).tolist()
        yield from ((query, int(run.output_rows[query]), 1) for query in range(begin, end))
        return
    # Heads that share a key head multiply a block's rows. So blocks are of about one size, whatever the model.
    most = max(_FEWEST, _ROWS // group)
    yield from ((row, row, min(most, last - row)) for row in range(first, last, most))
