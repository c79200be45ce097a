"""An event loop in a thread of its own: what is asked over HTTP goes on while this thread computes."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Background", "together"]

Result = TypeVar("Result")


class Background:
    """A running event loop; what is submitted and not done at the end is cancelled.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._running = set[asyncio.Task[Any]]()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Return what will hold the result of a coroutine.

        Args:
            work: runs in the loop.
        """
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    def close(self, last: Coroutine[Any, Any, Any]) -> None:
        """Cancel what runs, run ``last``, and end the thread.

        Args:
            last: closes what the loop's work used.
        """
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        asyncio.run_coroutine_threadsafe(last, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _tracked(self, work: Coroutine[Any, Any, Result]) -> Result:
        # Only these are cancelled at the end; tasks that they have made are theirs to end.
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await work

    async def _cancel(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of coroutines that run side by side; the first error ends the others and is raised itself.

    Args:
        work: any number.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in made]
