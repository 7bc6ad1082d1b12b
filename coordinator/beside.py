"""What goes on beside the thread that answers calls: opening a sum, deleting uploads, files for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


class Beside:
    """Of one run: its tasks, and the threads that they wait for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads: set[asyncio.Future[Any]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on while it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """As asyncio.to_thread; a thread that goes on when nobody waits for it any more is known to `abandon`."""
        running = asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))
        self._threads.add(running)
        running.add_done_callback(self._threads.discard)
        return await asyncio.shield(running)

    async def finish(self) -> None:
        """Wait for all of it, and for what it starts meanwhile."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def abandon(self) -> None:
        """Begin nothing more, and wait until no thread writes a file."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._threads, return_exceptions=True)
