"""Writer: one thread that writes to a store, so that no event loop waits for a lock or a disk.

It knows nothing of what is written. Reads need it not: a store answers them at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from hostler.core.errors import HostlerError, StorageBusy

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_S = 4.5  # an order is refused after it, and half a second more for the last try
MOST_WAITING = 1000
_AGAIN_S = 0.02


class Writer:
    """Carries writes out one at a time, in the order given.

    A write that meets another process's lock, or a database out of reach, is tried again until
    `patience_s` after it was ordered; the time in the queue counts, so no order waits longer because
    others wait before it. A refused one has left no trace.
    """

    def __init__(
        self, name: str, *, patience_s: float = PATIENCE_S, most_waiting: int = MOST_WAITING
    ) -> None:
        """name: of the thread. The thread starts with the first write."""
        self._patience_s = patience_s
        self._most = most_waiting
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take orders while the block lasts; what was ordered is done before it ends."""
        try:
            yield
        finally:
            try:
                await self.flush()
            finally:
                self._thread.shutdown(wait=False)

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it in the thread and return its result.

        Raises:
            StorageBusy: locked all the time, or too many writes wait. What `work` raises.
        """
        return await self._order(work, *args, **kwargs)

    def post(
        self, done: Callable[[BaseException | None], None], work: Callable[P, object],
        *args: P.args, **kwargs: P.kwargs,
    ) -> None:  # fmt: skip
        """Do it later. done: told in the event loop how it ended, None for well."""
        try:
            ordered = self._order(work, *args, **kwargs)
        except (StorageBusy, RuntimeError) as error:  # RuntimeError: its thread has ended
            done(error)
            return
        ordered.add_done_callback(
            lambda it: done(asyncio.CancelledError() if it.cancelled() else it.exception())
        )

    def tell(self, callback: Callable[[], object]) -> None:
        """From within a write: call this in the event loop, before who ordered it goes on."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(callback)

    async def flush(self) -> None:
        """Return when everything ordered until now is done."""
        if self._waiting:
            await asyncio.get_running_loop().run_in_executor(self._thread, _nothing)

    # Private

    def _order(
        self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> "asyncio.Future[T]":
        if self._waiting >= self._most:
            raise StorageBusy(f"{self._most} writes wait for the store already", retry_after_s=1)
        self._loop = asyncio.get_running_loop()
        until_s = time.monotonic() + self._patience_s
        ordered = self._loop.run_in_executor(
            self._thread, lambda: _patiently(until_s, lambda: work(*args, **kwargs))
        )
        self._waiting += 1
        ordered.add_done_callback(self._done)
        return ordered

    def _done(self, _: object) -> None:
        self._waiting -= 1


# Private


def _patiently(until_s: float, work: Callable[[], T]) -> T:
    why = "the writes before it took too long"
    while True:
        if time.monotonic() >= until_s:
            raise StorageBusy(f"{why}; nothing was changed", retry_after_s=1)
        try:
            return work()
        except StorageBusy as error:
            why = error.message
            time.sleep(_AGAIN_S)


def _nothing() -> None:
    """What comes after everything else."""


def told(error: BaseException | None) -> str:
    """Why a write failed, for a log line."""
    return error.message if isinstance(error, HostlerError) else str(error)
