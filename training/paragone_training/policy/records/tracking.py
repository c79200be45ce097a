"""Numbers of a run for TensorBoard and the other trackers that accelerate knows.

    step/NAME          of gradient steps, counted over the whole run
    iteration/NAME     of metrics.json, by iteration; names of inner tables follow a slash

Files of local trackers lie in RUN/tracking, beside sent.json: how far each tracker was told. It is written before a
point is sent, so that a run that is resumed, and takes steps again, sends no point twice. The tables of the run stay
the record: a tracker only shows them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

from paragone_training.errors import RecipeError
from paragone_training.policy.rows.files import read_json, write_json

__all__ = ["Trackers", "flattened", "steps_before"]


class Trackers:
    """The trackers of one run; none is a valid number of them.

    Args:
        names: as accelerate calls them: ``tensorboard``, ``wandb``, ``mlflow``, ….
        folder: of the run.
        settings: of the recipe, shown beside the curves.

    Raises:
        RecipeError: if a name is not known, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self._trackers: dict[str, Any] = {}
        work = folder / "tracking"
        self._record = work / "sent.json"
        for name in names:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise RecipeError(
                    f"output.trackers names {name!r}; accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
                )
            if not filter_trackers([name], logging_dir=str(work)):
                extra = "paragone[tracking]" if name == "tensorboard" else name
                raise RecipeError(f"output.trackers names {name!r}, which is not installed: pip install '{extra}'")
        for name in dict.fromkeys(names):
            tracker = LOGGER_TYPE_TO_CLASS[name]
            place = (str(work),) if tracker.requires_logging_directory else ()
            self._trackers[name] = tracker(folder.name, *place)
        known = read_json(self._record) if names and self._record.exists() else {}
        self._sent: dict[str, dict[str, int]] = known | {name: known.get(name, {}) for name in self._trackers}
        told = {key: value if isinstance(value, int | float) else str(value) for key, value in flattened(settings)}
        for started in self._trackers.values():
            started.start()
            started.store_init_configuration(told)

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        """Show the numbers of a gradient step, unless they or later ones were shown.

        Args:
            number: steps of the run so far.
            values: by name.
        """
        self._log(number, "step", values)

    def iteration(self, number: int, values: Mapping[str, Any]) -> None:
        """Show the numbers of an iteration, unless they or later ones were shown.

        Args:
            number: of the iteration, from 1.
            values: the contents of metrics.json.
        """
        self._log(number, "iteration", values)

    def close(self) -> None:
        """Write what is waiting, and end."""
        for tracker in self._trackers.values():
            tracker.finish()

    def _log(self, number: int, group: str, values: Mapping[str, Any]) -> None:
        untold = [name for name in self._trackers if number > self._sent[name].get(group, 0)]
        if not untold:
            return
        for name in untold:
            self._sent[name][group] = number
        write_json(self._record, self._sent)
        found = {
            f"{group}/{name}": float(value)
            for name, value in flattened(values)
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name in untold:
            self._trackers[name].log(found, step=number)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and values of nested tables: ``evaluation/oracle/win_rate``; of a list, ``…/0`` and so on.

    Args:
        values: tables, lists and plain values.
        prefix: of the names.
    """
    for name, value in values.items():
        inner = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(inner, Mapping):
            yield from flattened({str(key): one for key, one in inner.items()}, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def steps_before(folder: Path, step: Path | None = None) -> int:
    """Return how many gradient steps a run took in the regressions that are done.

    Args:
        folder: of the run.
        step: folder of a regression that does not count, because it is taken again.

    Raises:
        RunError: if a file cannot be read.
    """
    paths = (path for path in folder.glob("iteration-*/step-*/history.json") if path.parent != step)
    done = (read_json(path) for path in paths)
    return sum(max((int(line["step"]) for line in lines), default=0) for lines in done)
