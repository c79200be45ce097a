"""A sampling round: responses sampled chunk by chunk; the oracles are asked for a chunk while the next one is sampled.

    FOLDER/samples.parquet            one row per response
    FOLDER/NAME.parquet               one row per prompt: the K×K table of one oracle, both orders
    FOLDER/parts/…                    chunks of an unfinished round

K is the number of responses to a prompt; a chunk is the prompts that are sampled, asked for and kept together. After a
kill, chunks on disk are neither sampled nor asked for again.
"""

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from paragone_evaluation.readers import Prompt
from paragone_training.errors import RunError
from paragone_training.policy.model.logprobs import Item, policy_logprobs
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.oracle import Oracle
from paragone_training.policy.processes import Processes
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.rows import Answer, Response, read_answers, read_rows, write_answers, write_rows
from paragone_training.policy.sampling.drawing import Chunk, Decoding, InProcessSampler, Missing, Sampled
from paragone_training.policy.sampling.stopping import Stops

if TYPE_CHECKING:
    from paragone_training.policy.sampling.servers import SamplerServers

__all__ = ["Plan", "Round", "Samplers", "play_round"]

logger = logging.getLogger(__name__)


class _Sampler(Protocol):
    """Samples the responses of a round, chunk by chunk."""

    def draw_chunks(
        self, chunks: Iterable[Chunk], *, responses: int, names: tuple[object, ...]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yield the number and the groups of each chunk as soon as it is complete, in any order.

        Args:
            chunks: numbers, and prompts with token ids.
            names: what the random numbers are made of, beside prompt and number.
        """


@dataclass(frozen=True)
class Plan:
    """What a round samples; alike in all processes of a run.

    Attributes:
        responses: K.
        batch: responses of a chunk, about.
        names: what the random numbers are made of.
        text_of: a response's text, as oracles are to read it.
    """

    folder: Path
    prompts: Sequence[Prompt]
    responses: int
    batch: int
    names: tuple[object, ...]
    text_of: Callable[[Sequence[int]], str]

    def chunks(self) -> dict[int, Sequence[Prompt]]:
        """Return the prompts of each chunk, numbered from the start of the round: a restart finds the same on disk."""
        # Whole groups only: an oracle compares the K responses to one prompt with each other.
        size = max(self.batch // self.responses, 1)
        starts = range(0, len(self.prompts), size)
        return {number: self.prompts[start : start + size] for number, start in enumerate(starts)}

    def part(self, name: str, number: int) -> Path:
        """Return where a chunk's samples, or its tables of one oracle, are kept while the round is unfinished."""
        return self.folder / "parts" / f"{name}-{number:05d}.parquet"

    def drawn(self, sampler: _Sampler, chunks: Mapping[int, Sequence[Prompt]], numbers: Iterable[int]) -> Iterator[int]:
        """Yield the number of each chunk when its samples are on disk; ``numbers`` are those that are to be drawn."""
        wanted = ((number, chunks[number]) for number in numbers)
        for number, groups in sampler.draw_chunks(wanted, responses=self.responses, names=self.names):
            rows = _whole_groups(chunks[number], groups, self.text_of)
            write_rows(self.part("samples", number), rows, Response)
            yield number


class Samplers:
    """The samplers of a run; in a run of several processes without servers, all of them draw."""

    def __init__(
        self,
        recipe: PolicyRecipe,
        folder: Path,
        policy: Policy,
        prompts: Sequence[Prompt],
        processes: Processes,
        *,
        longest: int,
    ) -> None:
        self._recipe, self._folder, self._policy, self._prompts = recipe, folder, policy, prompts
        self._processes, self._longest = processes, longest
        self._servers: SamplerServers | None = None
        self._probes: list[Item] = []

    @property
    def noise(self) -> float | None:
        """Nats a token that servers were from the trainer after their last load; None where there are none."""
        return self._servers.noise if self._servers is not None else None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the servers, if the recipe has any. For the main process alone.

        Raises:
            RunError: if the stored responses cannot be read or written.
        """
        section, recipe = self._recipe.servers, self._recipe
        if section is None:
            yield
            return
        # Here, and not above: that module needs this one, and a run without servers needs no HTTP.
        from paragone_training.policy.sampling.completions import stored_probes
        from paragone_training.policy.sampling.servers import SamplerServers

        self._probes = stored_probes(
            self._folder / "probes.parquet",
            self._policy,
            self._prompts,
            source=recipe.policy.source,
            seed=recipe.training.seed,
            max_new_tokens=recipe.sampling.max_new_tokens,
        )
        # Texts of the stored responses show whether a server reads words as the same tokens.
        tokenizer = self._policy.tokenizer
        texts = [tokenizer.decode(list(prompt_ids)) for prompt_ids, _ in self._probes]
        servers = SamplerServers(
            section,
            self._folder,
            self._probes,
            tolerance=recipe.sampling.tolerance,
            longest=self._longest + recipe.sampling.max_new_tokens,
            texts={text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts},
        )
        with servers as self._servers:
            yield
        self._servers = None

    def sampler(self, source: str) -> _Sampler:
        """Return the sampler of the policy with the weights of ``source``; servers have them, checked, by then.

        Raises:
            RunError: if servers do not come up, do not take the weights, or are not the policy.
        """
        sampling = self._recipe.sampling
        decoding = Decoding(
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.max_new_tokens,
            Stops(self._policy.tokenizer, sampling.stop) if sampling.stop else None,
        )
        if self._servers is None:
            self._policy.become(source)
            return InProcessSampler(self._policy, decoding)
        from paragone_training.policy.sampling.servers import FleetSampler

        # Servers keep their weights between rounds of one iterate, and over its evaluation.
        if not self._servers.holds(source):
            self.end()
            self._policy.become(source)
            expected = policy_logprobs(self._policy, self._probes, self._recipe.training)
            if self._colocated:
                self._policy.park()
            # Another program reads the folder: it needs an absolute path.
            model = self._policy.servable(source)
            self._servers.take(source, model, expected)
        # Made anew each time: taking weights gives a new fleet, in which no server counts as lost.
        return FleetSampler(self._servers.fleet, self._servers.background, decoding, self._policy.end_ids)

    def play(
        self,
        plan: Plan,
        source: str,
        oracles: Mapping[str, Oracle],
        *,
        against: Mapping[str, Sequence[str]] | None = None,
    ) -> "Round | None":
        """Play a round with the weights of ``source``, and return it; for all processes, None in all but the main one.

        Raises:
            RunError: if an oracle is gone, replaced, or answered nothing at all, or a process stopped.
        """
        shared = self._processes if self._recipe.servers is None else None
        if self._processes.main:
            return play_round(plan, lambda: self.sampler(source), oracles, against=against, processes=shared)
        if shared is not None:
            _draw_share(plan, lambda: self.sampler(source), shared)
        return None

    def end(self) -> None:
        """Give the device back to this process, where servers share it.

        Raises:
            RunError: if a server cannot be put to sleep.
        """
        if self._servers is not None:
            self._servers.rest()
        self._policy.unpark()

    @contextlib.contextmanager
    def phase(self) -> Iterator[None]:
        """Be in the sampling phase. For all processes of the run; of those with servers, the main one samples."""
        if self._colocated:
            # The weights of the other processes leave the device too, before a server wants its memory.
            if not self._processes.main:
                self._policy.park()
            self._processes.wait()
        yield
        if self._processes.main:
            self.end()
        if self._colocated:
            self._processes.wait()
            self._policy.unpark()

    @property
    def _colocated(self) -> bool:
        # The only case in which the device is shared.
        return self._recipe.servers is not None and self._recipe.servers.phases == "colocated"


@dataclass
class Round:
    """A round that is on disk.

    Attributes:
        answers: of the first oracle; empty without one.
        loading_s: seconds until the sampler had the policy's weights, a server's start included; 0 if nothing was left.
        waiting_s: seconds of waiting for oracles after the last sample.
    """

    responses: list[Response]
    answers: list[Answer]
    loading_s: float = 0.0
    sampling_s: float = 0.0
    waiting_s: float = 0.0


def play_round(
    plan: Plan,
    sampler: Callable[[], _Sampler],
    oracles: Mapping[str, Oracle],
    *,
    against: Mapping[str, Sequence[str]] | None = None,
    processes: Processes | None = None,
) -> Round:
    """Sample responses, ask the oracles, leave both on disk, and return them.

    Args:
        sampler: makes the sampler; called only where something is left to sample.
        oracles: by the names of their files.
        against: other responses that join the group of a prompt, behind its own, by prompt id.
        processes: that draw their shares of the chunks meanwhile; this one is the main one.

    Raises:
        RunError: if an oracle is gone, replaced, or answered nothing at all, or a process stopped.
    """
    share = processes.shared if processes else iter
    # A file of the whole round is there only when every chunk is in it.
    samples = plan.folder / "samples.parquet"
    files = {name: plan.folder / f"{name}.parquet" for name in oracles}
    if samples.exists() and all(path.exists() for path in files.values()):
        share([])
        shutil.rmtree(plan.folder / "parts", ignore_errors=True)
        answers = read_answers(next(iter(files.values()))) if files else []
        return Round(read_rows(samples, Response), answers)
    parts = _Parts(plan, oracles, against or {})
    chunks = plan.chunks()
    left = [number for number in chunks if not parts.restore(number)]
    mine = share(left)
    loading_s = sampling_s = 0.0
    if left:
        began = time.monotonic()
        # Only now, because taking the weights may start servers; a round that is on disk needs none.
        ready = sampler()
        loading_s, began = time.monotonic() - began, time.monotonic()

        def lacking(numbers: Sequence[int]) -> int:
            missing = parts.restore_all(numbers)
            # An oracle that is gone stops the run here, not after hours of sampling.
            parts.collect(wait=False)
            return missing

        for number in plan.drawn(ready, chunks, mine):
            # What others have drawn meanwhile is asked for too.
            lacking(left if processes else [number])
        if processes:
            processes.until(lambda: lacking(left), "chunks that other processes sample")
        sampling_s = time.monotonic() - began
    began = time.monotonic()
    parts.collect(wait=True)
    waiting_s = time.monotonic() - began
    rows = parts.finish(samples, files)
    return Round(rows, parts.answers_of(next(iter(files))) if files else [], loading_s, sampling_s, waiting_s)


def _draw_share(plan: Plan, sampler: Callable[[], _Sampler], processes: Processes) -> None:
    """Draw this process's share of the chunks of a round that the main process plays."""
    numbers = processes.shared()
    # Nothing left of the round, or others were quicker: no weights are read.
    if (first := next(numbers, None)) is not None:
        for _ in plan.drawn(sampler(), plan.chunks(), itertools.chain([first], numbers)):
            pass


def _whole_groups(
    chunk: Sequence[Prompt], groups: Sequence[Sampled], text_of: Callable[[Sequence[int]], str]
) -> list[Response]:
    """Return the rows of the groups that were sampled completely, with their texts."""
    rows = []
    for prompt, group in zip(chunk, groups, strict=True):
        if isinstance(group, Missing):
            logger.warning("prompt %s is left out of this round: %s", prompt.id, group.reason)
            continue
        # Decoded once for the whole run.
        rows += [replace(row, text=text_of(row.token_ids)) for row in group]
    return rows


class _Parts:
    """The chunks of a round in memory and on disk, and the tables that oracles are asked for.

    A chunk's samples are written before its tables are asked for, and its tables as soon as they come: whatever moment
    a run is killed at, it asks again at most for what was in flight.
    """

    def __init__(self, plan: Plan, oracles: Mapping[str, Oracle], against: Mapping[str, Sequence[str]]) -> None:
        self._plan, self._oracles, self._against = plan, oracles, against
        self._prompts = {prompt.id: prompt for prompt in plan.prompts}
        self._rows: dict[int, list[Response]] = {}
        self._answers: dict[str, dict[int, list[Answer]]] = {name: {} for name in oracles}
        self._pending: dict[tuple[str, int], Future[list[Answer]]] = {}

    def restore(self, number: int) -> bool:
        """Return whether a chunk is on disk; the first time that it is, its tables are read, or asked for."""
        if number in self._rows:
            return True
        path = self._plan.part("samples", number)
        if not path.exists():
            return False
        self._rows[number] = read_rows(path, Response)
        self._ask(number)
        return True

    def restore_all(self, numbers: Sequence[int]) -> int:
        """Restore those chunks that are on disk by now, and return how many are not."""
        # One listing: a file system that hosts share is slow to say of each file that it is not there.
        folder = self._plan.folder / "parts"
        present = set(folder.iterdir()) if folder.exists() else set()
        unknown = [number for number in numbers if number not in self._rows]
        return sum(self._plan.part("samples", number) not in present or not self.restore(number) for number in unknown)

    def collect(self, *, wait: bool) -> None:
        """Write the tables that have come; with ``wait``, all of them. An oracle's error is raised here."""
        for name, number in list(self._pending):
            # In the order of asking; answers that are behind a slow one are written when it has come.
            if wait or self._pending[name, number].done():
                answers = self._pending.pop((name, number)).result()
                self._answers[name][number] = answers
                self._write(self._plan.part(name, number), name, {number: answers})

    def finish(self, samples: Path, files: Mapping[str, Path]) -> list[Response]:
        """Write the files of the whole round, remove the chunks, and return the responses."""
        rows = [row for number in sorted(self._rows) for row in self._rows[number]]
        if not rows:
            shutil.rmtree(self._plan.folder / "parts")
            raise RunError(
                "no group of the round was sampled completely: see the log for each, raise the limits and resume"
            )
        for name, path in files.items():
            if not path.exists():
                self._write(path, name, self._answers[name])
            # One broken prompt is left out; a round without any table means that the oracle cannot do its work.
            if all(answer.failure is not None for answer in self.answers_of(name)):
                raise RunError(f"the oracle gave no whole table: {path} says why of each prompt")
        # Last, since a round whose samples are whole does not look for chunks any more.
        if not samples.exists():
            write_rows(samples, rows, Response)
        shutil.rmtree(self._plan.folder / "parts")
        return rows

    def answers_of(self, name: str) -> list[Answer]:
        """Return the tables of an oracle, in the order of the prompts."""
        return [answer for number in sorted(self._answers[name]) for answer in self._answers[name][number]]

    def _ask(self, number: int) -> None:
        # Each oracle by itself: the judge may lack what the oracle has already.
        for name, oracle in self._oracles.items():
            path = self._plan.part(name, number)
            if path.exists():
                self._answers[name][number] = read_answers(path)
            elif groups := list(self._groups(self._rows[number])):
                self._pending[name, number] = oracle.submit(groups)
            else:
                self._answers[name][number] = []
                self._write(path, name, {})

    def _groups(self, rows: Sequence[Response]) -> Iterator[tuple[Prompt, Sequence[str]]]:
        # Rows of a chunk are in the order of its prompts, and a group that could not be sampled has none.
        texts: dict[str, list[str]] = {}
        for row in rows:
            texts.setdefault(row.prompt_id, []).append(row.text)
        for prompt_id, own in texts.items():
            yield self._prompts[prompt_id], [*own, *self._against.get(prompt_id, ())]

    def _write(self, path: Path, name: str, answers: Mapping[int, Sequence[Answer]]) -> None:
        # In every row, so that a file says by itself which model it is from.
        identity = self._oracles[name].identity
        model, fingerprint = (identity.model, identity.fingerprint) if identity else ("", "")
        rows = [(number, model, fingerprint, answer) for number in sorted(answers) for answer in answers[number]]
        write_answers(path, rows)
