"""What people name when they name data: a file, a glob, a folder of shards, or a data set of the Hugging Face Hub.

    pairs.jsonl    shards/train-*.parquet    folder    hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]

Each becomes parts, files or splits of a Hub data set, whose names may say which split their rows are of.
"""

import contextlib
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.containers import NumberedRow, container_of, rows_of_batch, rows_of_file
from paragone_evaluation.readers.layouts import split_name

__all__ = ["HUB", "Part", "describe_hub_parts", "file_order", "parts_of"]

logger = logging.getLogger(__name__)

HUB = "hf:"
"""How the name of a Hub data set begins."""

_HUB_NAME = re.compile(
    r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^:/\s]+))?(:(?P<config>[^/\s]+))?(/(?P<split>[\w.-]+))?"
)
_PATTERN = "*?["
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
_SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
_LIBRARY_FILES = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # what `datasets` writes
_BATCH = 4096


@dataclass(frozen=True)
class Part:
    """One file, or one split of a Hub data set.

    Attributes:
        name: as messages call it.
        split: of the rows that have none: the source has several splits, and tells them apart by names.
        named: the split that the name says, whatever the rest of the source is called.
        table: of a Hub data set, with what pins it; a file has none.
    """

    name: str
    split: str | None = None
    named: str | None = None
    table: Any = None

    def rows(self) -> Iterator[NumberedRow]:
        """Yield the number of each row and its fields."""
        if self.table is None:
            yield from rows_of_file(Path(self.name))
            return
        at = 0
        for batch in self.table.with_format("arrow").iter(batch_size=_BATCH):
            for row in rows_of_batch(batch):
                at += 1
                yield at, row

    def count(self) -> int | None:
        """Return about how many rows there are, None where that takes as long as reading them."""
        if self.table is not None:
            return len(self.table)
        path = Path(self.name)
        kind, packing = container_of(path) or ("", "")
        if kind == ".parquet":
            import pyarrow.parquet

            with contextlib.suppress(OSError, pyarrow.ArrowException):  # whoever reads it says what is wrong
                return int(pyarrow.parquet.read_metadata(path).num_rows)
        if kind not in (".jsonl", ".ndjson") or packing:
            return None
        with contextlib.suppress(OSError), path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        return None

    def sha256(self) -> str:
        """Return the SHA-256 of a file's bytes; of a Hub data set, of the name that pins it."""
        if self.table is not None:
            return hashlib.sha256(self.name.encode()).hexdigest()
        try:
            with Path(self.name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {self.name}: {error.strerror or error}") from error


def parts_of(sources: Sequence[str | Path]) -> list[Part]:
    """Return the parts of all sources, in their order and those of a source by name, numbers in it as numbers.

    Raises:
        DataError: if a source has no part: nothing matches, a folder holds no file that is read, or the Hub's data set
            cannot be loaded.
    """
    parts: list[Part] = []
    for source in map(str, sources):
        path = Path(source)
        if source.startswith(HUB):
            found = _of_hub(source)
        elif path.is_dir():
            found = _of_files(_files_below(path), path)
        # A name that exists is no pattern, whatever characters it has.
        elif not path.exists() and any(mark in source for mark in _PATTERN):
            root = _before_pattern(path)
            found = _of_files(root.glob(str(path.relative_to(root))), root)
        else:
            found = [Part(source, named=_split_of_file(path, None))]
        if not found:
            what = "a folder without a file that is read" if path.is_dir() else "no file matches it"
            raise DataError(f"cannot read {source}: {what}; see docs/data-files.md for the names that are read")
        parts += _told_apart(found)
    return parts


def file_order(path: Path) -> tuple[tuple[tuple[str | int, ...], ...], str]:
    """Return what files are sorted by: their names, in which numbers count as numbers, so that 100 follows 99."""
    # Every other piece is a number, so that pieces are only compared with their like.
    pieces = tuple(
        tuple(int(piece) if piece.isdecimal() else piece for piece in re.split(r"([0-9]+)", part))
        for part in path.parts
    )
    return pieces, str(path)


def describe_hub_parts(names: Iterable[str]) -> list[str]:
    """Return a line for each Hub data set among the names of parts: its commit, and the splits that were read."""
    sets: dict[tuple[str, str], list[str]] = {}
    for match in filter(None, map(_HUB_NAME.fullmatch, names)):
        config = f" ({match['config']})" if match["config"] else ""
        sets.setdefault((f"{HUB}{match['name']}{config}", match["revision"] or "unknown"), []).append(match["split"])
    return [
        f"{name} at commit {commit}, {'splits' if len(splits) > 1 else 'split'} {', '.join(splits)}"
        for (name, commit), splits in sets.items()
    ]


def _before_pattern(pattern: Path) -> Path:
    """Return the folder that all files of a pattern are below."""
    return Path(*itertools.takewhile(lambda part: not any(mark in part for mark in _PATTERN), pattern.parts))


def _told_apart(parts: Sequence[Part]) -> list[Part]:
    """Return the parts of one source; their names are splits where they say different ones."""
    # One split in all names is what was asked for by naming it: its rows are not left out for being of that split.
    several = len({part.named for part in parts if part.named}) > 1
    return [replace(part, split=part.named) for part in parts] if several else list(parts)


def _files_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if not hidden and path.name not in _LIBRARY_FILES and container_of(path):
            yield path


def _of_files(paths: Iterable[Path], root: Path) -> list[Part]:
    files = sorted((path for path in paths if path.is_file()), key=file_order)
    return [Part(str(path), named=_split_of_file(path, root)) for path in files]


def _split_of_file(path: Path, root: Path | None) -> str | None:
    """Return the split that a file's name says, or the nearest folder's below the root that says one."""
    stem = path.name.split(".")[0]
    folders = list(path.relative_to(root).parts[:-1]) if root and root in path.parents else []
    for name in (stem, *reversed(folders)):
        words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_WORDS]
        if len(set(words)) != 1:
            continue
        # train_prefs-00000-of-00001 is a shard of a split of that name. my_train.jsonl is a file of the split train.
        shard = _SHARD.search(name)
        return split_name(name[: shard.start()] if shard and "-of-" in shard[0] else words[0])
    return None


def _of_hub(source: str) -> list[Part]:
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise DataError(f"{source} is no data set of the Hub: write hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]")
    name, revision, config, split = (match[key] for key in ("name", "revision", "config", "split"))
    tables = _loaded(name, config, revision, source)
    pinned = f"{HUB}{name}@{_revision(tables, revision, source)}{f':{config}' if config else ''}"
    parts = [Part(f"{pinned}/{key}", named=split_name(key), table=table) for key, table in tables.items()]
    if split is None:
        return parts
    chosen = [part for key, part in zip(tables, parts, strict=True) if split_name(key) == split_name(split)]
    if not chosen:
        raise DataError(f"{source}: there is no split {split!r}; the splits are: {', '.join(tables)}")
    return chosen


def _loaded(name: str, config: str | None, revision: str | None, source: str) -> dict[str, Any]:
    """Return the splits of a Hub data set, downloaded or from the cache of ``datasets``."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(f"{source} needs the package datasets: pip install datasets") from None
    # Its retries are no news: what comes of them is said below.
    noisy = [logging.getLogger("huggingface_hub"), logging.getLogger("datasets")]
    levels = [one.level for one in noisy]
    try:
        for one in noisy:
            one.setLevel(logging.ERROR)
        return dict(datasets.load_dataset(name, config, revision=revision))
    except (ConnectionError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not isinstance(error, ConnectionError):
            raise DataError(f"{source}: the Hub has no such data set, or shows it to nobody without a token") from error
        raise DataError(
            f"cannot read {source}: the Hugging Face Hub cannot be reached and its cache here does not hold the data "
            "set: download it where there is a network, or name its files"
        ) from error
    # The package raises of everything: each of them means that this data set cannot be read as it was named.
    except Exception as error:
        raise DataError(f"cannot read {source}: {' '.join(str(error).split())[:400]}") from error
    finally:
        for one, level in zip(noisy, levels, strict=True):
            one.setLevel(level)


def _revision(tables: dict[str, Any], asked: str | None, source: str) -> str:
    """Return the commit of the tables, by the folder of the cache that they lie in."""
    folders = {Path(file["filename"]).parent.name for table in tables.values() for file in table.cache_files}
    commits = {name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)}
    if len(commits) != 1:
        return asked or "unknown"
    (commit,) = commits
    # Without a network, the package takes whatever it has, and says so in a warning alone.
    if asked and re.fullmatch(r"[0-9a-f]{7,40}", asked) and not commit.startswith(asked):
        raise DataError(f"{source}: the Hub cannot be reached, and the cache here holds commit {commit} alone")
    return commit
